"""Expressions refer to exactly one object, and the same objects give the same expressions."""

import numpy as np
import pytest

from envs.expressions import KIND_NAMES, draw_expression, list_expressions, nouns_of
from envs.objects import GameObject, find_objects


def make_object(name, color, top, left, height=10, width=8, frame_size=(210, 160)):
    patch = np.ones((height, width), dtype=bool)
    return GameObject(name, color, (top, left, top + height, left + width), patch, frame_size)


def words(objects):
    return {expression.words: expression.target for expression in list_expressions(objects)}


def test_nouns_are_names_or_else_color_and_size():
    assert nouns_of(make_object("rabbit", "white", 0, 0)) == ("rabbit", "white rabbit")
    assert nouns_of(make_object("red ghost", "red", 0, 0)) == ("red ghost", "ghost")
    assert nouns_of(make_object(None, "blue", 0, 0)) == ("blue object",)
    assert nouns_of(make_object(None, "blue", 0, 0, 2, 2)) == ("blue object", "small blue object")
    assert nouns_of(make_object(None, "blue", 0, 0, 20, 20)) == ("blue object", "large blue object")


def test_each_kind_of_expression_refers_to_the_right_object():
    objects = [
        make_object("rabbit", "white", 20, 10),
        make_object("rabbit", "white", 20, 60),
        make_object("rabbit", "white", 100, 130, height=16),
        make_object("owl", "red", 60, 60),
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
    ambiguous = ("the rabbit", "the top-most rabbit", "the smallest rabbit", "the rabbit above the owl")
    assert not any(expression in found for expression in ambiguous)


def test_objects_that_differ_by_less_than_the_margin_are_not_distinguished():
    near = [make_object("duck", "yellow", 50, 40), make_object("duck", "yellow", 51, 80)]
    found = words(near)
    assert "the left-most duck" in found
    assert "the top-most duck" not in found
    edge = [
        make_object("duck", "yellow", 65, 10),
        make_object("duck", "yellow", 150, 10),
    ]  # centers at rows 69.5, 154.5
    assert "the duck on the left" not in words(edge)  # 0.5 from the border at row 70


def test_many_objects_of_one_noun_have_no_expression_but_a_unique_one_among_them_has():
    crowd = [make_object("pellet", "red", 10 * row, 20, 2, 4) for row in range(1, 20)] + [
        make_object("pac-man", "yellow", 100, 80)
    ]
    assert set(words(crowd)) == {"the pac-man", "the yellow pac-man"}


@pytest.mark.parametrize("game", ["Carnival", "MsPacman", "Pong"])
def test_every_expression_of_random_objects_has_exactly_one_target(game):
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
            candidates = [i for i, other in enumerate(objects) if noun in nouns_of(other)]
            assert expression.target in candidates
            assert (expression.kind == "name") == (len(candidates) == 1)
            if expression.words.startswith("the left-most"):
                lefts = [objects[i].center[1] for i in candidates]
                assert objects[expression.target].center[1] == min(lefts)
                assert sorted(lefts)[1] - min(lefts) >= 3


def test_draws_depend_on_the_generator_alone_and_no_target_expressions_match_nothing():
    objects = [
        make_object("rabbit", "white", 20, 10),
        make_object("owl", "red", 60, 60),
        make_object("owl", "red", 60, 90),
    ]
    drawn = [draw_expression(objects, np.random.default_rng(seed), no_target=0.5) for seed in range(60)]
    assert drawn == [draw_expression(objects, np.random.default_rng(seed), no_target=0.5) for seed in range(60)]
    without_target = [expression for expression in drawn if expression.target is None]
    assert 15 < len(without_target) < 45
    present = {noun for one in objects for noun in nouns_of(one)}
    assert all(expression.words.removeprefix("the ") not in present for expression in without_target)
    assert {expression.kind for expression in drawn} >= {"name", "extreme", "relation", "no_target"}
    assert draw_expression([], np.random.default_rng(0)) is None
