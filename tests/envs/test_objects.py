"""Objects are found in real frames, classified where their class is known, and move independently."""

import numpy as np
import pytest

from common.errors import UserError
from envs.atari import make_envs
from envs.colors import COLORS, color_word
from envs.games import find_game
from envs.objects import find_objects


def play(game, steps, seed=1):
    """Return the frame after some steps of random play."""
    with make_envs(find_game(game), 1) as envs:
        frame, rng = envs.reset([seed]), np.random.default_rng(0)
        for _ in range(steps):
            frame = envs.step(rng.integers(len(envs.action_names), size=1)).frames
    return frame[0]


def count_names(objects):
    """Return the number of objects of each name."""
    names = [thing.name for thing in objects]
    return {name: names.count(name) for name in names}


def scene(*rectangles, background=(0, 28, 136)):
    """Return a frame with rectangles (top, left, bottom, right, rgb)."""
    frame = np.full((210, 160, 3), background, dtype=np.uint8)
    for top, left, bottom, right, rgb in rectangles:
        frame[top:bottom, left:right] = rgb
    return frame


def test_the_four_ghosts_of_ms_pac_man_are_found_with_their_colours():
    found = find_objects(play("MsPacman", 142), "Ms. Pac-Man")
    counts = count_names(found)
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
    assert all(thing.name.startswith(thing.color) for thing in ghosts)
    assert all(40 <= thing.size <= 80 and thing.box[2] - thing.box[0] <= 11 for thing in ghosts)


def test_the_targets_the_gun_and_the_bullet_of_carnival_are_found():
    counts = count_names(find_objects(play("Carnival", 1), "Carnival"))
    assert counts["owl"] == 3
    assert counts["rabbit"] == 6
    assert counts["duck"] >= 3
    assert counts["bullet box"] == 2
    assert counts["gun"] == counts["bullet"] == counts["pipe"] == 1


def test_pieces_of_a_target_at_the_edge_of_the_picture_are_one_object():
    assert None not in count_names(find_objects(play("Carnival", 21), "Carnival"))


def test_scores_and_lives_are_not_objects():
    for game, steps, first, last in (("Carnival", 1, 14, 200), ("MsPacman", 142, 0, 172)):
        found = find_objects(play(game, steps), game)
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
    assert [(thing.color, thing.size, thing.name) for thing in before] == [("yellow", 48, None), ("red", 100, None)]
    assert [(thing.color, thing.size, thing.name) for thing in after] == [("yellow", 48, None), ("red", 100, None)]
    assert before[0].center == (53.5, 62.5)


def test_a_striped_sprite_is_one_object_and_large_neighbors_are_two():
    stripes = [(60 + i, 40, 61 + i, 48, rgb) for i, rgb in enumerate([(200, 72, 72), (66, 158, 130), (187, 187, 53)])]
    assert [thing.size for thing in find_objects(scene(*stripes), "Pong")] == [24]
    walls = ((60, 40, 70, 50, (200, 72, 72)), (60, 50, 70, 60, (187, 187, 53)))
    assert [thing.color for thing in find_objects(scene(*walls), "Pong")] == ["red", "yellow"]


def test_a_sprite_that_flickers_over_the_background_keeps_its_class():
    drawn, blended = (200, 72, 72), (200, 72, 136)  # blended: the maximum of the sprite and the background
    halves = [(60, 40, 65, 48, drawn), (65, 40, 70, 48, blended)]
    (ghost,) = find_objects(scene(*halves), "MsPacman")
    assert (ghost.name, ghost.color, ghost.box) == ("red ghost", "red", (60, 40, 70, 48))


def test_two_sprites_of_known_color_that_touch_stay_two():
    ghosts = ((60, 40, 69, 48, (66, 114, 194)), (64, 48, 73, 56, (198, 89, 179)), (64, 47, 65, 49, (198, 114, 194)))
    assert sorted(thing.name for thing in find_objects(scene(*ghosts), "MsPacman")) == ["blue ghost", "pink ghost"]


def test_the_same_frame_gives_the_same_objects():
    frame = play("SpaceInvaders", 40)
    one, same = ([(t.name, t.color, t.box, t.size) for t in find_objects(frame, "SpaceInvaders")] for _ in range(2))
    assert one == same
    assert len(one) > 40


def test_every_color_word_is_nearest_to_its_own_examples():
    for word, examples in COLORS.items():
        assert {color_word((r << 16) + (g << 8) + b) for r, g, b in examples} == {word}


def test_an_empty_frame_has_no_objects():
    assert find_objects(scene(), "Carnival") == []


def test_noise_has_no_objects():
    assert find_objects(np.random.default_rng(0).integers(0, 256, (210, 160, 3), dtype=np.uint8), "Pong") == []


def test_an_array_that_is_not_a_frame_is_refused():
    with pytest.raises(UserError, match=r"expected a frame uint8\[H, W, 3\], got float64\[210, 160\]"):
        find_objects(np.zeros((210, 160)), "Pong")
