"""The paddle expert follows the ball of Pong and Breakout, and serves."""

import numpy as np
import pytest

from agents.experts.paddle_expert import NO_SERVE_COST, RAM_LAYOUTS, PaddleExpert
from envs.atari import EmulatorEnvs
from envs.games import find_game


@pytest.mark.parametrize("name", RAM_LAYOUTS)
def test_it_serves_while_no_ball_is_in_play_and_leaves_the_emulator_unchanged(name):
    with EmulatorEnvs(find_game(name), 1) as envs:
        envs.reset([5])
        emulator, rng = envs.emulators[0], np.random.default_rng(0)
        layout, fire = RAM_LAYOUTS[name], envs.action_names.index("fire")
        expert = PaddleExpert(layout, envs.action_names)
        while emulator.ram[layout.in_play]:  # Breakout shows a ball before it is served
            envs.step(np.array([0]))
        values = expert.values(emulator, rng)
        assert values.argmax() == fire
        assert values.max() - np.sort(values)[-2] == NO_SERVE_COST
        for _ in range(30):
            envs.step(np.array([fire]))
        before = emulator.ram.copy()
        assert before[layout.in_play]
        values = expert.values(emulator, rng)
        assert np.array_equal(emulator.ram, before)
        assert np.isfinite(values).sum() == 3
        assert values.max() <= 0


@pytest.mark.slow
def test_it_wins_points_of_pong_by_the_part_of_the_paddle_that_meets_the_ball():
    with EmulatorEnvs(find_game("Pong"), 1) as envs:
        envs.reset([6])
        emulator, rng = envs.emulators[0], np.random.default_rng(0)
        expert = PaddleExpert(RAM_LAYOUTS["Pong"], envs.action_names)
        rewards = []
        while not any(rewards):
            rewards.append(emulator.act(int(expert.values(emulator, rng).argmax())))
            assert len(rewards) < 400, "from the middle of the paddle alone a point takes a thousand steps"
        assert rewards[-1] == 1


def test_breakout_is_played_from_the_middle_of_the_paddle():
    assert RAM_LAYOUTS["Breakout"].aims == ()
    assert RAM_LAYOUTS["Pong"].center_offset in RAM_LAYOUTS["Pong"].aims
