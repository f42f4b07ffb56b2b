"""Parallel environments play true episodes, identical for every number and class of environments."""

import numpy as np
import pytest
from ale_py import ALEInterface, roms
from jaxtyping import UInt8

from common.errors import UserError
from envs.atari import AtariEnvs, Emulator, EmulatorEnvs, Step, make_envs
from envs.games import find_game, list_games
from envs.protocol import MACHADO2018, MNIH2015, Protocol

CARNIVAL, PACMAN = find_game("Carnival"), find_game("MsPacman")


def random_actions(envs, steps, seed=0):
    return np.random.default_rng(seed).integers(len(envs.action_names), size=(steps, envs.num_envs))


@pytest.mark.parametrize("game", [CARNIVAL, PACMAN], ids=lambda game: game.name)
def test_both_classes_give_the_same_episode_for_the_same_seeds_and_actions(game):
    with AtariEnvs(game, 2) as threaded, EmulatorEnvs(game, 2) as searchable:
        assert np.array_equal(threaded.reset([5, 6]), searchable.reset([5, 6]))
        for actions in random_actions(threaded, 150):
            a, b = threaded.step(actions), searchable.step(actions)
            assert np.array_equal(a.frames, b.frames)
            assert np.array_equal(a.rewards, b.rewards)
            assert np.array_equal(a.lives, b.lives)


def test_frames_and_rewards_are_those_of_a_hand_written_loop_over_the_emulator():
    ale = ALEInterface()
    ale.setInt("random_seed", 9)
    ale.setFloat("repeat_action_probability", 0.25)
    ale.loadROM(roms.get_rom_path("ms_pacman"))
    ale.reset_game()
    with AtariEnvs(PACMAN, 1) as envs:
        assert np.array_equal(envs.reset([9])[0], ale.getScreenRGB())
        for (action,) in random_actions(envs, 120):
            reward, screens = 0, []
            for _ in range(4):
                reward += ale.act(ale.getMinimalActionSet()[action])
                screens.append(ale.getScreenRGB())
            step = envs.step(np.array([action]))
            assert np.array_equal(step.frames[0], np.maximum(screens[-1], screens[-2]))
            assert step.rewards[0] == reward


def play_scripted(envs, env_index, seed, steps):
    """Play scripted actions in one environment, no-ops in the others; return that environment's frames."""
    seeds = [seed + 100 + i for i in range(envs.num_envs)]
    seeds[env_index] = seed
    frames = [envs.reset(seeds)[env_index]]
    for action in np.random.default_rng(seed).integers(len(envs.action_names), size=steps):
        actions = np.zeros(envs.num_envs, dtype=int)
        actions[env_index] = action
        frames.append(envs.step(actions).frames[env_index])
    return np.stack(frames)


def test_an_episode_does_not_depend_on_the_number_of_environments():
    with AtariEnvs(CARNIVAL, 1) as one, AtariEnvs(CARNIVAL, 3) as three:
        assert np.array_equal(play_scripted(one, 0, 3, 80), play_scripted(three, 2, 3, 80))


def test_an_environment_that_is_reset_restarts_and_the_others_continue():
    with AtariEnvs(CARNIVAL, 2) as envs, AtariEnvs(CARNIVAL, 2) as untouched:
        first = envs.reset([1, 2])
        untouched.reset([1, 2])
        for actions in random_actions(envs, 30):
            envs.step(actions)
            other = untouched.step(actions)
        again = envs.reset([None, 2])
        assert np.array_equal(again[1], first[1])
        assert np.array_equal(again[0], other.frames[0])


def test_an_ended_environment_idles_without_rewards_until_it_is_reset():
    short = Protocol("short", 0.25, 4, 0, False, 40)
    with AtariEnvs(CARNIVAL, 1, short) as envs:
        first = envs.reset([1])
        steps = [envs.step(np.array([1])) for _ in range(12)]
        ended = [bool(step.truncated[0]) for step in steps]
        assert ended.count(True) == 1
        after = steps[ended.index(True) + 1 :]
        assert after
        assert all(step.rewards[0] == 0 and not step.terminated[0] for step in after)
        assert np.array_equal(envs.reset([1])[0], first[0])


def test_the_frame_limit_truncates_and_does_not_terminate():
    short = Protocol("short", 0.0, 4, 0, False, 40)
    with EmulatorEnvs(CARNIVAL, 1, short) as envs:
        envs.reset([1])
        steps = [envs.step(np.array([0])) for _ in range(10)]
    assert bool(steps[-1].truncated[0])
    assert not bool(steps[-1].terminated[0])
    assert not any(step.truncated[0] for step in steps[:-1])


def test_a_restored_state_has_the_same_future_without_sticky_actions():
    protocol = Protocol("plain", 0.0, 4, 0, False, 108_000)
    emulator = Emulator(PACMAN, protocol)
    emulator.reset(1)
    for _ in range(20):
        emulator.act(1)
    state = emulator.clone()
    futures = []
    for _ in range(2):
        emulator.restore(state)
        futures.append([emulator.step(action)[1] for action in (2, 3, 4, 1)])
    assert np.array_equal(futures[0], futures[1])


def test_no_op_starts_depend_on_the_seed_alone():
    with make_envs(PACMAN, 1, MNIH2015) as envs:
        starts = [envs.reset([seed])[0] for seed in range(4)]
        assert len({start.tobytes() for start in starts}) > 1
        assert np.array_equal(envs.reset([2])[0], starts[2])


@pytest.mark.slow
def test_every_game_starts_and_steps_at_its_native_size():
    for game in list_games()[::9]:
        with AtariEnvs(game, 1) as envs:
            frames = envs.reset([1])
            step = envs.step(np.zeros(1, dtype=int))
            height, width, _ = envs.frame_shape
            assert isinstance(frames, UInt8[np.ndarray, f"1 {height} {width} 3"])
            for name, annotation in Step.__annotations__.items():
                assert isinstance(getattr(step, name), annotation)


@pytest.mark.parametrize("actions", [[0], [0, 6], [-1, 0]])
def test_illegal_actions_are_refused(actions):
    with AtariEnvs(CARNIVAL, 2) as envs:
        envs.reset([1, 2])
        with pytest.raises(UserError, match="expected 2 actions from 0 to 5"):
            envs.step(np.array(actions))


def test_zero_environments_are_refused():
    with pytest.raises(UserError, match="at least 1 environment"):
        AtariEnvs(CARNIVAL, 0, MACHADO2018)
