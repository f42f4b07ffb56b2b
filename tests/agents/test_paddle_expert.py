"""The tracker follows the ball of Pong and Breakout, and serves."""

import numpy as np
import pytest

from agents.experts.paddle_expert import GAMES, IDLE, PaddleExpert
from agents.experts.search_agent import SearchAgent, find_search
from agents.random_agent import RandomAgent
from agents.rollout import play_games
from common.errors import UserError
from envs.atari import EmulatorEnvs
from envs.games import find_game


def points(agent, envs, decisions):
    """The score after so many decisions, or of the whole game where that is shorter."""
    score = 0.0
    for turn in play_games(agent, envs, [3]):
        score = turn.score
        if turn.step >= decisions:
            break
    return score


@pytest.mark.parametrize(("name", "better"), [("Pong", 3), ("Breakout", 5)])
def test_it_plays_far_better_than_random(name, better):
    with EmulatorEnvs(find_game(name), 1) as envs:
        tracker = points(SearchAgent(envs, find_search("paddle-expert", envs), "paddle-expert"), envs, 200)
        assert tracker >= points(RandomAgent(envs.action_names), envs, 200) + better


@pytest.mark.parametrize("name", GAMES)
def test_it_serves_where_no_ball_is_in_play_and_leaves_the_game_as_it_was(name):
    with EmulatorEnvs(find_game(name), 1) as envs:
        envs.reset([5])
        emulator, rng = envs.emulators[0], np.random.default_rng(0)
        search = PaddleExpert.of(name, envs.action_names)
        game, fire = GAMES[name], envs.action_names.index("fire")
        while emulator.ram[game.in_play]:  # Breakout shows a ball before it is served
            envs.step(np.array([0]))
        values = search.values(emulator, rng)
        assert values.argmax() == fire
        assert values.max() - np.sort(values)[-2] == IDLE
        for _ in range(30):
            envs.step(np.array([fire]))
        before = emulator.ram.copy()
        assert before[game.in_play]
        values = search.values(emulator, rng)
        assert np.array_equal(emulator.ram, before)
        assert np.isfinite(values).sum() == 3
        assert values.max() <= 0


def test_another_game_is_refused():
    with (
        EmulatorEnvs(find_game("Tennis"), 1) as envs,
        pytest.raises(UserError, match="expected Pong or Breakout for paddle-expert, got Tennis"),
    ):
        find_search("paddle-expert", envs)
