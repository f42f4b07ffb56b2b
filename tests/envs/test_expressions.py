"""Expressions single out exactly the object they name, and the same objects give the same ones."""

import numpy as np
import pytest

from envs.expressions import KIND_NAMES, draw_expression, list_expressions, nouns_of
from envs.objects import GameObject, find_objects


def thing(name, colour, top, left, height=10, width=8, frame_size=(210, 160)):
    patch = np.ones((height, width), dtype=bool)
    return GameObject(name, colour, (top, left, top + height, left + width), patch, frame_size)


def words(objects):
    return {expression.words: expression.target for expression in list_expressions(objects)}


def test_objects_are_called_by_name_or_else_by_colour_and_size():
    assert nouns_of(thing("rabbit", "white", 0, 0)) == ("rabbit", "white rabbit")
    assert nouns_of(thing("red ghost", "red", 0, 0)) == ("red ghost", "ghost")
    assert nouns_of(thing(None, "blue", 0, 0)) == ("blue object",)
    assert nouns_of(thing(None, "blue", 0, 0, 2, 2)) == ("blue object", "small blue object")
    assert nouns_of(thing(None, "blue", 0, 0, 20, 20)) == ("blue object", "large blue object")


def test_each_way_of_singling_out_names_the_right_one():
    objects = [
        thing("rabbit", "white", 20, 10),
        thing("rabbit", "white", 20, 60),
        thing("rabbit", "white", 100, 130, height=16),
        thing("owl", "red", 60, 60),
    ]
    found = words(objects)
    assert found["the owl"] == found["the red owl"] == 3
    assert found["the left-most rabbit"] == 0
    assert found["the right-most rabbit"] == found["the bottom-most rabbit"] == 2
    assert found["the second rabbit from the left"] == 1
    assert found["the third rabbit from the left"] == 2
    assert found["the largest rabbit"] == 2
    assert found["the rabbit on the right"] == 2
    assert found["the rabbit below the owl"] == 2
    assert found["the rabbit left of the owl"] == 0
    assert found["the rabbit nearest to the owl"] == 1
    unclear = ("the rabbit", "the top-most rabbit", "the smallest rabbit", "the rabbit above the owl")
    assert not any(expression in found for expression in unclear)


def test_what_differs_by_less_than_is_clear_is_not_told_apart():
    near = [thing("duck", "yellow", 50, 40), thing("duck", "yellow", 51, 80)]
    found = words(near)
    assert "the left-most duck" in found
    assert "the top-most duck" not in found
    edge = [thing("duck", "yellow", 65, 10), thing("duck", "yellow", 150, 10)]  # middles at rows 69.5, 154.5
    assert "the duck on the left" not in words(edge)  # 0.5 from the border at row 70


def test_a_crowd_is_not_counted_but_what_is_alone_in_it_is_named():
    crowd = [thing("pellet", "red", 10 * row, 20, 2, 4) for row in range(1, 20)] + [thing("pac-man", "yellow", 100, 80)]
    assert set(words(crowd)) == {"the pac-man", "the yellow pac-man"}


@pytest.mark.parametrize("game", ["Carnival", "MsPacman", "Pong"])
def test_every_expression_of_random_objects_has_one_target_and_one_meaning(game):
    rng = np.random.default_rng(0)
    for _ in range(20):
        frame = np.zeros((210, 160, 3), dtype=np.uint8)
        for cell in rng.permutation(20)[: rng.integers(2, 9)]:
            row, column, size = 40 + 30 * (cell // 5), 12 + 30 * (cell % 5), int(rng.integers(3, 14))
            frame[row : row + size, column : column + size] = rng.integers(60, 256, 3)
        objects = find_objects(frame, game)
        listed = list_expressions(objects)
        assert len({expression.words for expression in listed}) == len(listed)
        assert listed == list_expressions(objects)
        for expression in listed:
            assert expression.kind in KIND_NAMES
            noun = max((n for n in nouns_of(objects[expression.target]) if n in expression.words), key=len)
            alike = [i for i, other in enumerate(objects) if noun in nouns_of(other)]
            assert expression.target in alike
            assert (expression.kind == "name") == (len(alike) == 1)
            if expression.words.startswith("the left-most"):
                lefts = [objects[i].centre[1] for i in alike]
                assert objects[expression.target].centre[1] == min(lefts)
                assert sorted(lefts)[1] - min(lefts) >= 3


def test_drawing_is_decided_by_the_generator_and_absent_ones_name_what_is_not_there():
    objects = [thing("rabbit", "white", 20, 10), thing("owl", "red", 60, 60), thing("owl", "red", 60, 90)]
    drawn = [draw_expression(objects, np.random.default_rng(seed), absent=0.5) for seed in range(60)]
    assert drawn == [draw_expression(objects, np.random.default_rng(seed), absent=0.5) for seed in range(60)]
    absent = [expression for expression in drawn if expression.target is None]
    assert 15 < len(absent) < 45
    here = {noun for one in objects for noun in nouns_of(one)}
    assert all(expression.words.removeprefix("the ") not in here for expression in absent)
    assert {expression.kind for expression in drawn} >= {"name", "extreme", "relation", "absent"}
    assert draw_expression([], np.random.default_rng(0)) is None
