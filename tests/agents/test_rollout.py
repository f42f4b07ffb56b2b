"""The rollout plays whole episodes in order, resets agents with environments, and does not depend on their number."""

import threading

import numpy as np

from agents.agent import Actions
from agents.random_agent import RandomAgent
from agents.rollout import play_games, rollout_pipelined
from envs.atari import AtariEnvs, Step
from envs.games import find_game

CARNIVAL = find_game("Carnival")


class TapedEnvs:
    """Environments whose episodes last as many steps as their seed; every call is taped."""

    def __init__(self, tape, n=2):
        self.num_envs, self.tape, self.left = n, tape, [0] * n

    def frames(self):
        return np.zeros((self.num_envs, 2, 2, 3), dtype=np.uint8)

    def reset(self, seeds):
        self.tape.append(("env.reset", tuple(seeds)))
        self.left = [left if seed is None else seed for left, seed in zip(self.left, seeds, strict=True)]
        return self.frames()

    def step(self, actions):
        self.tape.append(("env.step", tuple(int(a) for a in actions)))
        self.left = [left - 1 for left in self.left]
        over = np.array([left == 0 for left in self.left])
        return Step(
            self.frames(),
            np.ones(self.num_envs, np.float32),
            over,
            np.zeros(self.num_envs, bool),
            np.zeros(self.num_envs, int),
        )


class TapedAgent:
    def __init__(self, tape):
        self.name, self.tape = "taped", tape

    def reset(self, seeds):
        self.tape.append(("agent.reset", tuple(seeds)))

    def act(self, frames):
        self.tape.append(("agent.act", len(frames)))
        n = len(frames)
        return Actions(np.arange(n), ("noop",) * n, None, np.zeros(n, bool))


def test_the_order_of_calls_is_reset_act_step_and_an_idle_environment_takes_the_next_episode():
    tape = []
    transitions = list(play_games(TapedAgent(tape), TapedEnvs(tape), [1, 2, 3]))
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
    assert [
        (transition.game_index, transition.step, transition.score) for transition in transitions if transition.ended
    ] == [
        (0, 0, 1),
        (1, 1, 2),
        (2, 2, 3),
    ]


def test_an_environment_without_an_episode_idles_and_yields_no_transitions():
    tape = []
    transitions = list(play_games(TapedAgent(tape), TapedEnvs(tape), [4]))
    assert len(transitions) == 4
    assert ("env.reset", (4, None)) in tape


def play_random(num_envs, seeds, cap=60):
    """Return {seed: [(action, reward, frame hash)]} of the first transitions of each episode."""
    found = {}
    with AtariEnvs(CARNIVAL, num_envs) as envs:
        agent = RandomAgent(envs.action_names)
        for transition in play_games(agent, envs, seeds):
            game = found.setdefault(transition.seed, [])
            if len(game) < cap:
                game.append((transition.action, transition.reward, hash(transition.frame.tobytes())))
            if all(len(found.get(seed, ())) == cap for seed in seeds[:num_envs]) and num_envs == len(seeds):
                break
            if num_envs == 1 and len(game) == cap and transition.seed == seeds[-1]:
                break
    return found


def test_one_environment_and_several_play_the_same_episodes():
    together = play_random(2, [11, 12])
    alone = {**play_random(1, [11]), **play_random(1, [12])}
    assert together == alone


def test_the_same_seed_plays_the_same_episode_twice_and_another_seed_another():
    first, again, other = play_random(1, [5]), play_random(1, [5]), play_random(1, [6])
    assert first == again
    assert first[5] != other[6]


def test_two_groups_play_the_episodes_of_one_and_every_seed_once():
    def hashes(transitions, cap=80):
        found = {}
        for transition in transitions:
            game = found.setdefault(transition.seed, [])
            game.append((transition.step, transition.action, transition.reward, hash(transition.frame.tobytes())))
            if all(len(games) >= cap for games in found.values()) and len(found) == 3:
                return {seed: game[:cap] for seed, game in found.items()}
        raise AssertionError("episodes ended early")

    seeds = [11, 12, 13]
    with AtariEnvs(CARNIVAL, 3) as envs, AtariEnvs(CARNIVAL, 2) as two, AtariEnvs(CARNIVAL, 1) as one:
        names = envs.action_names
        together = hashes(play_games(RandomAgent(names), envs, seeds))
        apart = hashes(rollout_pipelined([(RandomAgent(names), two), (RandomAgent(names), one)], seeds))
    assert together == apart


def test_one_group_steps_while_the_agent_of_another_acts():
    order = []

    class Slow(TapedEnvs):
        def step(self, actions):
            started.wait(5)  # the other group's agent has to act meanwhile
            order.append("stepped")
            return super().step(actions)

    class Second(TapedAgent):
        def act(self, frames):
            order.append("acted")
            started.set()
            return super().act(frames)

    started, tape = threading.Event(), []
    groups = [(TapedAgent(tape), Slow(tape, 1)), (Second(tape), TapedEnvs(tape, 1))]
    assert len(list(rollout_pipelined(groups, [1, 1]))) == 2
    assert order == ["acted", "stepped"]


def test_a_single_group_takes_no_thread():
    threads = set()

    class Envs(TapedEnvs):
        def step(self, actions):
            threads.add(threading.get_ident())
            return super().step(actions)

    tape = []
    assert len(list(play_games(TapedAgent(tape), Envs(tape), [2, 1]))) == 3
    assert threads == {threading.get_ident()}
