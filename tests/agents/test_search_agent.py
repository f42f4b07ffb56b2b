"""Search leaves the emulator unchanged, evaluates every action, and beats random play."""

import numpy as np
import pytest

from agents.experts.search import FireLookahead, RandomRolloutSearch, RewardShaping
from agents.experts.search_agent import SearchAgent, default_search, make_search
from agents.registry import make_agent
from agents.rollout import play_games
from common.errors import UserError
from envs.atari import EmulatorEnvs
from envs.games import action_names, find_game

CARNIVAL, PACMAN = find_game("Carnival"), find_game("MsPacman")


class Corridor:
    """A toy emulator: action 1 goes right, 2 goes left; one position has a reward, the left end ends the episode."""

    def __init__(self, position=5, reward_at=8):
        self.position, self.reward_at, self.lives, self.game_over = position, reward_at, 1, False

    def act(self, action):
        self.position += {0: 0, 1: 1, 2: -1}[action]
        if self.position <= 0:
            self.lives, self.game_over = 0, True
        return 10.0 if self.position == self.reward_at else 0.0

    def clone(self):
        return self.position, self.lives, self.game_over

    def restore(self, state):
        self.position, self.lives, self.game_over = state


def test_random_rollouts_find_the_reward_and_avoid_the_end():
    values = RandomRolloutSearch((0, 1, 2), 3, horizon=10).values(Corridor(3, 6), np.random.default_rng(0))
    assert values.argmax() == 1
    doomed = RandomRolloutSearch((2, 1), 3, horizon=4, num_rollouts=8).values(Corridor(1, 99), np.random.default_rng(0))
    assert doomed[2] == -500
    assert doomed[1] > -500
    assert np.isneginf(doomed[0])


def test_random_rollouts_are_extended_where_none_gains_anything():
    near = RandomRolloutSearch((1, 2), 3, horizon=5, extended_horizon=5, reversal_probability=0, opposites={1: 2, 2: 1})
    far = RandomRolloutSearch((1, 2), 3, horizon=5, extended_horizon=60, reversal_probability=0, opposites={1: 2, 2: 1})
    distant = lambda: Corridor(5, 30)  # noqa: E731
    assert near.values(distant(), np.random.default_rng(0)).max() == 0
    assert far.values(distant(), np.random.default_rng(0))[1] > 0


class Gun(Corridor):
    """Action 1 fires and hits the target at position 0, one closer after every step; byte 3 counts bullets."""

    def __init__(self):
        super().__init__()
        self.position, self.bullets = 4, 9

    @property
    def ram(self):
        ram = np.zeros(128, np.uint8)
        ram[3] = self.bullets
        return ram

    def act(self, action):
        hit = action == 1 and self.position == 0
        self.bullets -= action == 1
        self.position -= 1
        return 100.0 if hit else 0.0

    def clone(self):
        return self.position, self.bullets

    def restore(self, state):
        self.position, self.bullets = state


@pytest.mark.parametrize(("distance", "best"), [(4, 0), (1, 0), (0, 1), (-1, 0)])
def test_the_value_of_a_shot_is_its_hit_minus_its_bullet(distance, best):
    gun = Gun()
    gun.position = distance
    search = FireLookahead(moves=(0,), shots=(1,), num_actions=2, fire=1, shaping=RewardShaping(ram={3: 60.0}))
    values = search.values(gun, np.random.default_rng(0))
    assert values.argmax() == best
    assert values[1] == (40.0 if distance == 0 else -60.0)
    assert gun.position == distance


def test_carnival_is_searched_by_shots_and_ms_pacman_by_rollouts_without_diagonals():
    shots = default_search(CARNIVAL, action_names(CARNIVAL))
    assert isinstance(shots, FireLookahead)
    assert shots.shaping.ram == {3: 60.0}
    rollouts = default_search(PACMAN, action_names(PACMAN))
    assert isinstance(rollouts, RandomRolloutSearch)
    assert rollouts.moves == (1, 2, 3, 4)
    assert rollouts.opposites == {1: 4, 4: 1, 2: 3, 3: 2, 5: 8, 8: 5, 6: 7, 7: 6}


def search_once(game):
    """Return the values of a search after 70 steps, and whether it left the console's memory unchanged."""
    with EmulatorEnvs(game, 1) as envs:
        envs.reset([3])
        for _ in range(70):
            envs.step(np.array([1]))
        planner = SearchAgent(envs, make_search("planner", envs))
        planner.reset([3])
        before = envs.emulators[0].ram.copy()
        values = planner.values(0)
        return values, np.array_equal(before, envs.emulators[0].ram)


@pytest.mark.parametrize("game", [CARNIVAL, PACMAN], ids=lambda game: game.name)
def test_search_leaves_the_emulator_unchanged_and_the_same_seed_gives_the_same_values(game):
    values, unchanged = search_once(game)
    assert unchanged
    assert np.array_equal(search_once(game)[0], values)


def score_after(agent_id, game_name, seed, steps):
    """Return the score after some steps, or of a shorter episode."""
    with EmulatorEnvs(find_game(game_name), 1) as envs:
        for transition in play_games(make_agent(agent_id, envs), envs, [seed]):
            if transition.step >= steps:
                break
    return transition.score


@pytest.mark.slow
@pytest.mark.parametrize(
    ("expert", "game_name", "seed", "steps", "gain"),
    [
        ("planner", "MsPacman", 1, 109, 60),
        ("mspacman-expert", "MsPacman", 3, 600, 1000),
        ("paddle-expert", "Pong", 3, 200, 3),
        ("paddle-expert", "Breakout", 3, 200, 5),
        ("freeway-expert", "Freeway", 3, 120, 2),
    ],
)
def test_an_expert_outscores_random_play(expert, game_name, seed, steps, gain):
    assert score_after(expert, game_name, seed, steps) >= score_after("random", game_name, seed, steps) + gain


@pytest.mark.parametrize(
    ("expert", "games", "other"),
    [
        ("carnival-expert", "Carnival", "Pong"),
        ("mspacman-expert", "MsPacman", "Pong"),
        ("paddle-expert", "Pong or Breakout", "Tennis"),
        ("freeway-expert", "Freeway", "Pong"),
    ],
)
def test_a_game_that_an_expert_does_not_play_is_refused(expert, games, other):
    with EmulatorEnvs(find_game(other), 1) as envs, pytest.raises(UserError) as caught:
        make_search(expert, envs)
    assert str(caught.value) == f"expected {games} for {expert}, got {other}; nearest agent: planner"


def test_seaquest_is_searched_by_rollouts_that_always_fire():
    game = find_game("Seaquest")
    names = action_names(game)
    moves = [names[move] for move in default_search(game, names).moves]
    assert sorted(moves) == ["down fire", "fire", "left fire", "right fire", "up fire"]
