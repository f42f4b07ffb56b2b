"""A condition of play changes what it says and nothing else."""

import dataclasses

import numpy as np
import pytest

from common.errors import UserError
from envs.atari import EmulatorEnvs
from envs.games import find_game
from envs.play_conditions import CONDITIONS, SCORE_DISPLAYS, game_conditions, hide_box
from envs.protocol import MACHADO2018, MNIH2015

CARNIVAL = find_game("Carnival")


def changed(name, frames, game=CARNIVAL):
    return CONDITIONS[name].change_of(game)(frames)


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_palettes_permute_the_channels_and_nothing_else():
    red_green_blue = np.array([[[[200, 0, 0], [0, 100, 0], [0, 0, 50]]]], dtype=np.uint8)
    assert changed("palette-bgr", red_green_blue).tolist() == [[[[0, 0, 200], [0, 100, 0], [50, 0, 0]]]]
    assert changed("palette-rotated", red_green_blue).tolist() == [[[[0, 200, 0], [0, 0, 100], [50, 0, 0]]]]
    frames = noise(2, 5, 6, 3)
    rotated = frames
    for _ in range(3):
        rotated = changed("palette-rotated", rotated)
    assert np.array_equal(rotated, frames)
    assert np.array_equal(changed("palette-bgr", changed("palette-bgr", frames)), frames)


def test_a_shifted_frame_is_the_true_one_4_pixels_to_the_right_and_down_with_its_edge_repeated():
    frames = noise(2, 20, 16, 3)
    shifted = changed("shifted", frames)
    assert shifted.shape == frames.shape
    assert np.array_equal(shifted[:, 4:, 4:], frames[:, :-4, :-4])
    assert np.array_equal(shifted[:, 4:, :4], np.repeat(frames[:, :-4, :1], 4, axis=2))
    assert np.array_equal(shifted[:, :4], np.repeat(shifted[:, 4:5], 4, axis=1))


def frames_with_points(game):
    """Frames of a game in which points were made: it plays up, fire or at random."""
    with EmulatorEnvs(game, 1) as envs:
        rng, frames = np.random.default_rng(0), [envs.reset([1])[0]]
        for _ in range(1500):
            action = envs.action_names.index("up") if game.name == "Freeway" else rng.integers(len(envs.action_names))
            step = envs.step(np.array([action]))
            frames.append(step.frames[0])
            if step.rewards[0] and len(frames) > 20:
                break
        else:
            pytest.fail(f"no points in {game.name}")
        for _ in range(4):  # until they are on the screen
            frames.append(envs.step(np.array([0])).frames[0])
    return np.stack(frames)


@pytest.mark.parametrize("name", sorted(SCORE_DISPLAYS))
def test_the_points_are_in_their_box_and_only_the_box_is_hidden(name):
    game, (top, bottom, left, right) = find_game(name), SCORE_DISPLAYS[name]
    frames = frames_with_points(game)
    hidden = changed("score-hidden", frames, game)
    box = np.s_[:, top:bottom, left:right]
    assert not np.array_equal(frames[20][box[1:]], frames[-1][box[1:]])  # the points that were made
    assert np.array_equal(hidden[box], np.broadcast_to(frames[:, top:bottom, left : left + 1], hidden[box].shape))
    outside = hidden.copy()
    outside[box] = frames[box]
    assert np.array_equal(outside, frames)
    true_rows = (frames[box] != frames[:, top:bottom, left : left + 1]).any(axis=(0, 2, 3))
    assert not true_rows[0]  # no digit is cut by the box's edges
    assert not true_rows[-1]


def test_true_frames_are_not_written_over():
    frames = noise(1, 214, 160, 3)
    before = frames.copy()
    for condition in game_conditions(["all"], CARNIVAL):
        if change := condition.change_of(CARNIVAL):
            assert not np.array_equal(change(frames), frames), condition.name
            assert np.array_equal(frames, before), condition.name
    assert np.array_equal(hide_box(frames, (0, 0, 0, 0)), before)


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("sticky-0", {"repeat_action_probability": 0.0}),
        ("sticky-0.5", {"repeat_action_probability": 0.5}),
        ("noop-30", {"noop_max": 30}),
        *((name, {}) for name in ("unchanged", "palette-bgr", "palette-rotated", "shifted", "score-hidden")),
    ],
)
def test_a_condition_changes_the_rules_that_it_names(name, rules):
    for protocol in (MACHADO2018, MNIH2015):
        assert CONDITIONS[name].protocol(protocol).to_dict() == dataclasses.asdict(protocol) | rules
    assert (CONDITIONS[name].frame_change is None) == (bool(rules) or name == "unchanged")


def test_all_conditions_are_those_known_in_the_game_and_each_counts_once():
    names = [condition.name for condition in game_conditions(["shifted", "all", "shifted"], CARNIVAL)]
    assert sorted(names) == sorted(CONDITIONS)
    other = {condition.name for condition in game_conditions(["all"], find_game("Alien"))}
    assert other == set(CONDITIONS) - {"score-hidden"}


def test_an_unknown_condition_or_score_display_is_refused():
    with pytest.raises(UserError, match=r"expected a condition \(unchanged, .*, all\), got 'shfted'; nearest: shifted"):
        game_conditions(["shfted"], CARNIVAL)
    with pytest.raises(UserError, match=r"score-hidden is known in Breakout, Carnival, .*, not in Alien; leave it"):
        game_conditions(["score-hidden"], find_game("Alien"))
