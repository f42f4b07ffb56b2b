"""The paddle expert follows the ball of Pong and Breakout, and serves."""

import numpy as np
import pytest

from agents.experts.paddle_expert import NO_SERVE_COST, RAM_LAYOUTS, PaddleExpert
from agents.experts.search_agent import SearchAgent, make_search
from agents.random_agent import RandomAgent
from agents.rollout import play_games
from common.errors import UserError
from envs.atari import EmulatorEnvs
from envs.games import find_game


def score_after(agent, envs, steps):
    """Return the score after some steps, or of a shorter episode."""
    score = 0.0
    for transition in play_games(agent, envs, [3]):
        score = transition.score
        if transition.step >= steps:
            break
    return score


@pytest.mark.parametrize(("name", "better"), [("Pong", 3), ("Breakout", 5)])
def test_it_plays_far_better_than_random(name, better):
    with EmulatorEnvs(find_game(name), 1) as envs:
        score = score_after(SearchAgent(envs, make_search("paddle-expert", envs), "paddle-expert"), envs, 200)
        assert score >= score_after(RandomAgent(envs.action_names), envs, 200) + better


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


def test_another_game_is_refused():
    with (
        EmulatorEnvs(find_game("Tennis"), 1) as envs,
        pytest.raises(UserError, match="expected Pong or Breakout for paddle-expert, got Tennis"),
    ):
        make_search("paddle-expert", envs)
