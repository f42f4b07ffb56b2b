"""The searcher leaves the game as it found it, values every action, and beats random play."""

import numpy as np
import pytest

from agents.experts.search import FireLookahead, RandomRolloutSearch, RewardShaping
from agents.experts.search_agent import SearchAgent, default_search, find_search
from agents.random_agent import RandomAgent
from agents.rollout import play_games
from envs.atari import EmulatorEnvs
from envs.games import action_names, find_game

CARNIVAL, PACMAN = find_game("Carnival"), find_game("MsPacman")


class Corridor:
    """A toy emulator: action 1 goes right, 2 goes left; the right end of the corridor pays, the left end kills."""

    def __init__(self, place=5, prize_at=8):
        self.place, self.prize_at, self.lives, self.game_over = place, prize_at, 1, False

    def act(self, action):
        self.place += {0: 0, 1: 1, 2: -1}[action]
        if self.place <= 0:
            self.lives, self.game_over = 0, True
        return 10.0 if self.place == self.prize_at else 0.0

    def clone(self):
        return self.place, self.lives, self.game_over

    def restore(self, state):
        self.place, self.lives, self.game_over = state


def test_walks_find_the_prize_and_fear_the_end():
    values = RandomRolloutSearch((0, 1, 2), 3, depth=10).values(Corridor(3, 6), np.random.default_rng(0))
    assert values.argmax() == 1
    doomed = RandomRolloutSearch((2, 1), 3, depth=4, walks=8).values(Corridor(1, 99), np.random.default_rng(0))
    assert doomed[2] == -500
    assert doomed[1] > -500
    assert np.isneginf(doomed[0])


def test_walks_look_further_where_nothing_is_near():
    near = RandomRolloutSearch((1, 2), 3, depth=5, far_depth=5, turn_back=0, opposite={1: 2, 2: 1})
    far = RandomRolloutSearch((1, 2), 3, depth=5, far_depth=60, turn_back=0, opposite={1: 2, 2: 1})
    distant = lambda: Corridor(5, 30)  # noqa: E731
    assert near.values(distant(), np.random.default_rng(0)).max() == 0
    assert far.values(distant(), np.random.default_rng(0))[1] > 0


class Gun(Corridor):
    """Action 1 fires: it hits when the target, a step nearer each decision, is at 0; a bullet is in byte 3."""

    def __init__(self):
        super().__init__()
        self.place, self.bullets = 4, 9

    @property
    def ram(self):
        ram = np.zeros(128, np.uint8)
        ram[3] = self.bullets
        return ram

    def act(self, action):
        hit = action == 1 and self.place == 0
        self.bullets -= action == 1
        self.place -= 1
        return 100.0 if hit else 0.0

    def clone(self):
        return self.place, self.bullets

    def restore(self, state):
        self.place, self.bullets = state


@pytest.mark.parametrize(("distance", "best"), [(4, 0), (1, 0), (0, 1), (-1, 0)])
def test_a_shot_is_worth_what_it_hits_less_its_bullet(distance, best):
    gun = Gun()
    gun.place = distance
    search = FireLookahead(moves=(0,), shots=(1,), actions=2, trigger=1, stakes=RewardShaping(ram={3: 60.0}))
    values = search.values(gun, np.random.default_rng(0))
    assert values.argmax() == best
    assert values[1] == (40.0 if distance == 0 else -60.0)
    assert gun.place == distance


def test_carnival_is_searched_by_shots_and_ms_pacman_by_walks_without_diagonals():
    aim = default_search(CARNIVAL, action_names(CARNIVAL))
    assert isinstance(aim, FireLookahead)
    assert aim.stakes.ram == {3: 60.0}
    walks = default_search(PACMAN, action_names(PACMAN))
    assert isinstance(walks, RandomRolloutSearch)
    assert walks.moves == (1, 2, 3, 4)
    assert walks.opposite == {1: 4, 4: 1, 2: 3, 3: 2, 5: 8, 8: 5, 6: 7, 7: 6}


def search_once(game):
    """Return the values of a search some way into a game, and whether the console's memory was left as it was."""
    with EmulatorEnvs(game, 1) as envs:
        envs.reset([3])
        for _ in range(70):
            envs.step(np.array([1]))
        planner = SearchAgent(envs, find_search("planner", envs))
        planner.reset([3])
        before = envs.emulators[0].ram.copy()
        values = planner.values(0)
        return values, np.array_equal(before, envs.emulators[0].ram)


@pytest.mark.parametrize("game", [CARNIVAL, PACMAN], ids=lambda game: game.name)
def test_searching_leaves_the_game_as_it_was_and_the_same_seed_searches_alike(game):
    values, untouched = search_once(game)
    assert untouched
    assert np.array_equal(search_once(game)[0], values)


def score_after(make_agent, decisions):
    with EmulatorEnvs(PACMAN, 1) as envs:
        for turn in play_games(make_agent(envs), envs, [1]):
            if turn.step == decisions - 1:
                return turn.score


def test_the_planner_outscores_random_play_in_the_first_seconds_of_a_game():
    random = score_after(lambda envs: RandomAgent(envs.action_names), 110)
    planner = score_after(lambda envs: SearchAgent(envs, find_search("planner", envs)), 110)
    assert planner > random + 50


def test_seaquest_is_searched_by_walks_that_fire_as_they_go():
    game = find_game("Seaquest")
    names = action_names(game)
    moves = [names[move] for move in default_search(game, names).moves]
    assert sorted(moves) == ["down fire", "fire", "left fire", "right fire", "up fire"]
