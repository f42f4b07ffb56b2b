"""Objects are found in real frames, named where that can be told, and move alone."""

import numpy as np
import pytest

from common.errors import UserError
from envs.atari import make_envs
from envs.games import find_game
from envs.objects import COLOURS, colour_word, find_objects


def play(game, decisions, seed=1):
    """The frame after so many decisions of random play."""
    with make_envs(find_game(game), 1) as envs:
        frame, rng = envs.reset([seed]), np.random.default_rng(0)
        for _ in range(decisions):
            frame = envs.step(rng.integers(len(envs.action_names), size=1)).frames
    return frame[0]


def named(objects):
    """How many there are of each name."""
    names = [thing.name for thing in objects]
    return {name: names.count(name) for name in names}


def scene(*things, floor=(0, 28, 136)):
    """A frame with rectangles (top, left, bottom, right, rgb) on a plain floor."""
    frame = np.full((210, 160, 3), floor, dtype=np.uint8)
    for top, left, bottom, right, rgb in things:
        frame[top:bottom, left:right] = rgb
    return frame


def test_the_four_ghosts_of_ms_pac_man_are_found_with_their_colours():
    found = find_objects(play("MsPacman", 142), "Ms. Pac-Man")
    counts = named(found)
    assert {f"{colour} ghost": counts.get(f"{colour} ghost") for colour in ("red", "pink", "cyan", "orange")} == {
        "red ghost": 1,
        "pink ghost": 1,
        "cyan ghost": 1,
        "orange ghost": 1,
    }
    assert counts["pac-man"] == 1
    assert counts["energizer"] == 2
    assert 130 < counts["pellet"] < 160
    ghosts = [thing for thing in found if "ghost" in (thing.name or "")]
    assert all(thing.name.startswith(thing.colour) for thing in ghosts)
    assert all(40 <= thing.size <= 80 and thing.box[2] - thing.box[0] <= 11 for thing in ghosts)


def test_the_targets_the_gun_and_the_bullet_of_carnival_are_found():
    counts = named(find_objects(play("Carnival", 1), "Carnival"))
    assert counts["owl"] == 3
    assert counts["rabbit"] == 6
    assert counts["duck"] >= 3
    assert counts["bullet box"] == 2
    assert counts["gun"] == counts["bullet"] == counts["pipe"] == 1


def test_what_the_edge_of_the_picture_cuts_into_pieces_is_one_target():
    assert None not in named(find_objects(play("Carnival", 21), "Carnival"))


def test_scores_and_lives_are_no_objects():
    for game, decisions, first, last in (("Carnival", 1, 14, 200), ("MsPacman", 142, 0, 172)):
        found = find_objects(play(game, decisions), game)
        assert all(first <= thing.box[0] and thing.box[2] <= last for thing in found)


def test_every_pixel_of_an_object_is_in_its_box_and_in_no_other_object():
    frame = play("MsPacman", 142)
    total = np.zeros(frame.shape[:2], dtype=int)
    for thing in find_objects(frame, "MsPacman"):
        rows, columns = np.nonzero(thing.mask)
        assert (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1) == thing.box
        assert len(rows) == thing.size
        total += thing.mask
    assert total.max() == 1


def test_moving_one_object_moves_its_box_and_nothing_else():
    still = (150, 20, 160, 30, (214, 92, 92))
    before = find_objects(scene(still, (50, 60, 58, 66, (187, 187, 53))), "Pong")
    after = find_objects(scene(still, (53, 64, 61, 70, (187, 187, 53))), "Pong")
    assert [thing.box for thing in before] == [(50, 60, 58, 66), (150, 20, 160, 30)]
    assert [thing.box for thing in after] == [(53, 64, 61, 70), (150, 20, 160, 30)]
    assert [(thing.colour, thing.size, thing.name) for thing in before] == [("yellow", 48, None), ("red", 100, None)]
    assert [(thing.colour, thing.size, thing.name) for thing in after] == [("yellow", 48, None), ("red", 100, None)]
    assert before[0].centre == (53.5, 62.5)


def test_a_sprite_of_stripes_is_one_object_and_large_neighbours_are_two():
    stripes = [(60 + i, 40, 61 + i, 48, rgb) for i, rgb in enumerate([(200, 72, 72), (66, 158, 130), (187, 187, 53)])]
    assert [thing.size for thing in find_objects(scene(*stripes), "Pong")] == [24]
    walls = ((60, 40, 70, 50, (200, 72, 72)), (60, 50, 70, 60, (187, 187, 53)))
    assert [thing.colour for thing in find_objects(scene(*walls), "Pong")] == ["red", "yellow"]


def test_a_sprite_that_flickers_over_the_floor_is_still_itself():
    whole, half = (200, 72, 72), (200, 72, 136)  # half: the brighter of the sprite and the floor
    things = [(60, 40, 65, 48, whole), (65, 40, 70, 48, half)]
    (ghost,) = find_objects(scene(*things), "MsPacman")
    assert (ghost.name, ghost.colour, ghost.box) == ("red ghost", "red", (60, 40, 70, 48))


def test_two_known_sprites_that_touch_stay_two():
    ghosts = ((60, 40, 69, 48, (66, 114, 194)), (64, 48, 73, 56, (198, 89, 179)), (64, 47, 65, 49, (198, 114, 194)))
    assert sorted(thing.name for thing in find_objects(scene(*ghosts), "MsPacman")) == ["blue ghost", "pink ghost"]


def test_the_same_frame_gives_the_same_objects():
    frame = play("SpaceInvaders", 40)
    one, same = ([(t.name, t.colour, t.box, t.size) for t in find_objects(frame, "SpaceInvaders")] for _ in range(2))
    assert one == same
    assert len(one) > 40


def test_every_word_of_colour_names_its_own_examples():
    for word, examples in COLOURS.items():
        assert {colour_word((r << 16) + (g << 8) + b) for r, g, b in examples} == {word}


def test_an_empty_frame_has_no_objects():
    assert find_objects(scene(), "Carnival") == []


def test_noise_has_no_objects():
    assert find_objects(np.random.default_rng(0).integers(0, 256, (210, 160, 3), dtype=np.uint8), "Pong") == []


def test_a_frame_of_another_kind_is_refused():
    with pytest.raises(UserError, match=r"expected a frame uint8\[H, W, 3\], got float64\[210, 160\]"):
        find_objects(np.zeros((210, 160)), "Pong")
