"""The marksman shoots Carnival's wheel while it is green, and knows how long the way to a post is."""

import numpy as np
import pytest

from agents.experts.carnival_expert import (
    MOVES,
    SPAN,
    STEP,
    STICK,
    CarnivalExpert,
    decisions_to,
    transition_distribution,
)
from agents.experts.search_agent import SearchAgent, find_search
from agents.rollout import play_games
from common.errors import UserError
from envs.atari import EmulatorEnvs
from envs.games import find_game


def test_it_shoots_green_pipes_one_after_the_other():
    with EmulatorEnvs(find_game("Carnival"), 1) as envs:
        marksman = SearchAgent(envs, find_search("carnival-expert", envs), "carnival-expert")
        pipes = []
        for turn in play_games(marksman, envs, [600]):
            if turn.reward in (200, 800):
                pipes.append(turn.reward)
            if turn.step >= 300:
                break
    assert len(pipes) >= 3
    assert pipes[0] == 200
    assert set(pipes[1:]) == {800}  # the pipe before had the same colour


def test_looking_ahead_leaves_the_game_as_it_was_and_repeats_its_moves():
    with EmulatorEnvs(find_game("Carnival"), 1) as envs:
        envs.reset([601])
        search, rng = CarnivalExpert.of("Carnival", envs.action_names), np.random.default_rng(0)
        emulator, moves = envs.emulators[0], [envs.action_names.index(name) for name in MOVES]
        for _ in range(60):
            before = emulator.ram.copy()
            values = search.values(emulator, rng)
            assert np.array_equal(emulator.ram, before)
            again = search.values(emulator, rng)
            np.testing.assert_array_equal(again[moves], values[moves])  # a shot may leave a frame later
            assert np.isfinite(values).sum() == 4
            envs.step(np.array([int(values.argmax())]))


def test_landings_are_those_of_sticky_frames():
    rng, ends = np.random.default_rng(0), []
    for _ in range(20_000):
        way, moved = -1, 0
        for _ in range(STEP):
            way = way if rng.random() < STICK else 1
            moved += way
        ends.append((moved, way))
    for moved, way, chance in transition_distribution(1, -1):
        assert ends.count((moved, way)) / len(ends) == pytest.approx(chance, abs=0.01)


@pytest.mark.parametrize("offset", [-30, -2, -1, 2, 7])
def test_ways_take_as_long_as_they_are_said_to(offset):
    costs, rng, took = decisions_to(2), np.random.default_rng(1), []
    for _ in range(2000):
        at, last, decisions = offset, 0, 0
        while True:
            move = list(MOVES.values())[int(costs[at + SPAN, last + 1].argmin())]
            ways = transition_distribution(move, last)
            moved, last, _ = ways[rng.choice(len(ways), p=[chance for _, _, chance in ways])]
            if not move and 0 <= at < 2 and 0 <= at + moved < 2:
                break
            at, decisions = at + moved, decisions + 1
        took.append(decisions)
    assert np.mean(took) == pytest.approx(costs[offset + SPAN, 1].min(), rel=0.15)


def test_another_game_is_refused():
    with (
        EmulatorEnvs(find_game("Pong"), 1) as envs,
        pytest.raises(UserError, match="expected Carnival for carnival-expert, got Pong"),
    ):
        find_search("carnival-expert", envs)
