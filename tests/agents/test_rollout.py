"""The loop plays whole games in order, tells agents when one begins, and plays the same in any number of lanes."""

import threading

import numpy as np

from agents.agent import Actions
from agents.random_agent import RandomAgent
from agents.rollout import play_games, rollout_pipelined
from envs.atari import AtariEnvs, Step
from envs.games import find_game

CARNIVAL = find_game("Carnival")


class TapedEnvs:
    """Two lanes whose games last as many steps as their seed says; every call goes on a tape."""

    def __init__(self, tape, n=2):
        self.n, self.tape, self.left = n, tape, [0] * n

    def frames(self):
        return np.zeros((self.n, 2, 2, 3), dtype=np.uint8)

    def reset(self, seeds):
        self.tape.append(("env.reset", tuple(seeds)))
        self.left = [left if seed is None else seed for left, seed in zip(self.left, seeds, strict=True)]
        return self.frames()

    def step(self, actions):
        self.tape.append(("env.step", tuple(int(a) for a in actions)))
        self.left = [left - 1 for left in self.left]
        over = np.array([left == 0 for left in self.left])
        return Step(self.frames(), np.ones(self.n, np.float32), over, np.zeros(self.n, bool), np.zeros(self.n, int))


class TapedAgent:
    def __init__(self, tape):
        self.name, self.tape = "taped", tape

    def reset(self, seeds):
        self.tape.append(("agent.reset", tuple(seeds)))

    def act(self, frames):
        self.tape.append(("agent.act", len(frames)))
        n = len(frames)
        return Actions(np.arange(n), ("noop",) * n, None, np.zeros(n, bool))


def test_the_order_of_calls_is_reset_act_step_and_a_free_lane_takes_the_next_game():
    tape = []
    turns = list(play_games(TapedAgent(tape), TapedEnvs(tape), [1, 2, 3]))
    assert tape == [
        ("env.reset", (1, 2)),
        ("agent.reset", (1, 2)),
        ("agent.act", 2),
        ("env.step", (0, 1)),
        ("env.reset", (3, None)),
        ("agent.reset", (3, None)),
        ("agent.act", 2),
        ("env.step", (0, 1)),
        ("agent.act", 2),
        ("env.step", (0, 1)),
        ("agent.act", 2),
        ("env.step", (0, 1)),
    ]
    assert [(turn.game_index, turn.step, turn.score) for turn in turns if turn.ended] == [
        (0, 0, 1),
        (1, 1, 2),
        (2, 2, 3),
    ]


def test_a_lane_without_a_game_idles_and_yields_no_turns():
    tape = []
    turns = list(play_games(TapedAgent(tape), TapedEnvs(tape), [4]))
    assert len(turns) == 4
    assert ("env.reset", (4, None)) in tape


def play_random(lanes, seeds, cap=60):
    """Return {seed: [(action, reward, frame hash)]} of the first turns of each game."""
    found = {}
    with AtariEnvs(CARNIVAL, lanes) as envs:
        agent = RandomAgent(envs.action_names)
        for turn in play_games(agent, envs, seeds):
            game = found.setdefault(turn.seed, [])
            if len(game) < cap:
                game.append((turn.action, turn.reward, hash(turn.frame.tobytes())))
            if all(len(found.get(seed, ())) == cap for seed in seeds[:lanes]) and lanes == len(seeds):
                break
            if lanes == 1 and len(game) == cap and turn.seed == seeds[-1]:
                break
    return found


def test_one_lane_and_many_lanes_play_the_same_games():
    together = play_random(2, [11, 12])
    alone = {**play_random(1, [11]), **play_random(1, [12])}
    assert together == alone


def test_the_same_seed_plays_the_same_game_twice_and_another_seed_another():
    first, again, other = play_random(1, [5]), play_random(1, [5]), play_random(1, [6])
    assert first == again
    assert first[5] != other[6]


def test_games_at_two_tables_are_those_of_one_and_every_seed_is_played_once():
    def hashes(turns, cap=80):
        found = {}
        for turn in turns:
            game = found.setdefault(turn.seed, [])
            game.append((turn.step, turn.action, turn.reward, hash(turn.frame.tobytes())))
            if all(len(games) >= cap for games in found.values()) and len(found) == 3:
                return {seed: game[:cap] for seed, game in found.items()}
        raise AssertionError("games ended early")

    seeds = [11, 12, 13]
    with AtariEnvs(CARNIVAL, 3) as envs, AtariEnvs(CARNIVAL, 2) as two, AtariEnvs(CARNIVAL, 1) as one:
        names = envs.action_names
        together = hashes(play_games(RandomAgent(names), envs, seeds))
        apart = hashes(rollout_pipelined([(RandomAgent(names), two), (RandomAgent(names), one)], seeds))
    assert together == apart


def test_a_table_steps_while_the_agent_of_another_thinks():
    order = []

    class Slow(TapedEnvs):
        def step(self, actions):
            started.wait(5)  # the other table's agent has to be asked meanwhile
            order.append("stepped")
            return super().step(actions)

    class Second(TapedAgent):
        def act(self, frames):
            order.append("thought")
            started.set()
            return super().act(frames)

    started, tape = threading.Event(), []
    tables = [(TapedAgent(tape), Slow(tape, 1)), (Second(tape), TapedEnvs(tape, 1))]
    assert len(list(rollout_pipelined(tables, [1, 1]))) == 2
    assert order == ["thought", "stepped"]
