"""The Carnival expert shoots the wheel while it is green, then the sign; it knows the steps to a firing position."""

import numpy as np
import pytest

from agents.experts.carnival_expert import (
    FRAME_SKIP,
    MAX_OFFSET,
    MIN_SIGN,
    MOVES,
    PIPES,
    STICKY_PROBABILITY,
    CarnivalExpert,
    cost_to_go,
    transition_distribution,
)
from agents.experts.search_agent import SearchAgent, make_search
from agents.rollout import play_games
from envs.atari import EmulatorEnvs
from envs.games import find_game


def test_it_shoots_green_pipes_one_after_the_other():
    with EmulatorEnvs(find_game("Carnival"), 1) as envs:
        agent = SearchAgent(envs, make_search("carnival-expert", envs), "carnival-expert")
        pipes = []
        for transition in play_games(agent, envs, [600]):
            if transition.reward in (200, 800):
                pipes.append(transition.reward)
            if transition.step >= 300:
                break
    assert len(pipes) >= 3
    assert pipes[0] == 200
    assert set(pipes[1:]) == {800}  # the pipe before had the same colour


@pytest.mark.slow
def test_once_the_pipes_are_gone_it_waits_below_the_sign_and_shoots_at_what_it_gives():
    """The sign of this seed gives 500 points at decision 809, and takes 500 before: a shot then is worth as little."""
    with EmulatorEnvs(find_game("Carnival"), 1) as envs:
        agent = SearchAgent(envs, make_search("carnival-expert", envs), "carnival-expert")
        gone, rewards, worst = None, [], 0.0
        noop, fire = (envs.action_names.index(name) for name in ("noop", "fire"))
        for transition in play_games(agent, envs, [611]):
            if gone is None and not envs.emulators[0].ram[PIPES]:
                gone = transition.step
            if gone is not None:
                worst = min(worst, transition.scores[fire] - transition.scores[noop])
                if transition.reward:
                    rewards.append(transition.reward)
            if transition.step >= 900:
                break
    assert gone is not None
    assert 500 in rewards
    assert worst <= -500
    assert sum(reward >= MIN_SIGN for reward in rewards) >= len(rewards) / 2  # others crossed a shot's way


def test_evaluating_actions_leaves_the_emulator_unchanged_and_repeats_the_values_of_moves():
    with EmulatorEnvs(find_game("Carnival"), 1) as envs:
        envs.reset([601])
        expert, rng = CarnivalExpert(envs.action_names), np.random.default_rng(0)
        emulator, moves = envs.emulators[0], [envs.action_names.index(name) for name in MOVES]
        for _ in range(60):
            before = emulator.ram.copy()
            values = expert.values(emulator, rng)
            assert np.array_equal(emulator.ram, before)
            again = expert.values(emulator, rng)
            np.testing.assert_array_equal(again[moves], values[moves])  # a shot may fire a frame later
            assert np.isfinite(values).sum() == 4
            envs.step(np.array([int(values.argmax())]))


def test_the_transition_distribution_is_that_of_sticky_actions():
    rng, ends = np.random.default_rng(0), []
    for _ in range(20_000):
        current, pixels = -1, 0
        for _ in range(FRAME_SKIP):
            current = current if rng.random() < STICKY_PROBABILITY else 1
            pixels += current
        ends.append((pixels, current))
    for pixels, current, probability in transition_distribution(1, -1):
        assert ends.count((pixels, current)) / len(ends) == pytest.approx(probability, abs=0.01)


@pytest.mark.parametrize("offset", [-30, -2, -1, 2, 7])
def test_the_cost_to_go_is_the_mean_of_simulated_steps(offset):
    costs, rng, lengths = cost_to_go(2), np.random.default_rng(1), []
    for _ in range(2000):
        at, last, steps = offset, 0, 0
        while True:
            move = list(MOVES.values())[int(costs[at + MAX_OFFSET, last + 1].argmin())]
            outcomes = transition_distribution(move, last)
            pixels, last, _ = outcomes[rng.choice(len(outcomes), p=[probability for _, _, probability in outcomes])]
            if not move and 0 <= at < 2 and 0 <= at + pixels < 2:
                break
            at, steps = at + pixels, steps + 1
        lengths.append(steps)
    assert np.mean(lengths) == pytest.approx(costs[offset + MAX_OFFSET, 1].min(), rel=0.15)
