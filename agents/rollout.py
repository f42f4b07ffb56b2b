"""The episode loop, once: games in step over many lanes, as a generator of turns.

    for turn in play_games(agent, envs, seeds):
        recorder.step(turn)

Scores, videos and datasets watch the turns; none of them is the loop's business. The frames and rewards in a turn
are the true ones of whole games. With several tables of lanes, `rollout_pipelined`, one table's games step while the agent
of another thinks.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from agents.agent import Actions, Agent
from envs.atari import GameEnvs, Step


@dataclass(frozen=True)
class Transition:
    """One decision of one game: what was seen, what was answered, what came of it.

    frame: uint8[H, W, 3], seen before acting; scores: float32[A] or None; score: the sum of rewards so far, this
    turn's included; step: the number of decisions before this one.
    """

    game_index: int
    seed: int
    step: int
    frame: np.ndarray
    action: int
    text: str
    scores: np.ndarray | None
    invalid: bool
    reward: float
    score: float
    terminated: bool
    truncated: bool

    @property
    def ended(self) -> bool:
        """Whether this was the game's last decision."""
        return self.terminated or self.truncated


@dataclass
class _Lane:
    game_index: int
    seed: int
    step: int = 0
    score: float = 0.0


def play_games(agent: Agent, envs: GameEnvs, seeds: Sequence[int]) -> Iterator[Transition]:
    """Play one game for each seed and yield its turns, interleaved over the lanes.

    A lane whose game has ended takes the next seed; lanes without one idle. The games do not depend on the lanes.
    """
    yield from rollout_pipelined([(agent, envs)], seeds)


def rollout_pipelined(tables: Sequence[tuple[Agent, GameEnvs]], seeds: Sequence[int]) -> Iterator[Transition]:
    """Play one game for each seed at several tables, each with an agent and lanes of its own; yield all turns.

    The games are those of `play_games`: which table plays which does not change them. A table's games step in a thread
    while the agents of the others think, so that with two tables neither waits for the other.
    """
    waiting = list(enumerate(seeds))[::-1]
    sides = [_EnvGroup(agent, envs) for agent, envs in tables]
    with ThreadPoolExecutor(len(sides)) as pool:
        while True:
            for side in sides:
                yield from side.settle()
                side.decide(waiting, pool)
            if not any(side.stepping for side in sides):
                return


class _EnvGroup:
    """An agent, its lanes, and the step that they are taking."""

    def __init__(self, agent: Agent, envs: GameEnvs):
        self.agent, self.envs = agent, envs
        self.lanes: list[_Lane | None] = [None] * envs.n
        self.frames: np.ndarray | None = None
        self.actions: Actions | None = None
        self.stepping: Future[Step] | None = None

    def settle(self) -> Iterator[Transition]:
        """Wait for the step that is being taken, if any, and yield what came of it."""
        if self.stepping is None:
            return
        step, self.stepping = self.stepping.result(), None
        assert self.frames is not None
        assert self.actions is not None
        frames, self.frames = self.frames, step.frames
        for i, lane in enumerate(self.lanes):
            if lane is not None:
                turn = _turn(lane, i, frames, self.actions, step)
                lane.step += 1
                if turn.ended:
                    self.lanes[i] = None
                yield turn

    def decide(self, waiting: list[tuple[int, int]], pool: ThreadPoolExecutor) -> None:
        """Begin games in free lanes, ask the agent, and let all lanes step; nothing if there is no game to play."""
        starts = _fill(self.lanes, waiting)
        if all(lane is None for lane in self.lanes):
            return
        if any(seed is not None for seed in starts):
            self.frames = self.envs.reset(starts)
            self.agent.reset(starts)
        assert self.frames is not None
        self.actions = self.agent.act(self.frames)
        self.stepping = pool.submit(self.envs.step, self.actions.indices)


def _fill(lanes: list[_Lane | None], waiting: list[tuple[int, int]]) -> list[int | None]:
    """Give each free lane the next game; return the seeds of the games that begin, lane by lane."""
    starts: list[int | None] = [None] * len(lanes)
    for i, lane in enumerate(lanes):
        if lane is None and waiting:
            index, seed = waiting.pop()
            lanes[i], starts[i] = _Lane(index, seed), seed
    return starts


def _turn(lane: _Lane, i: int, frames: np.ndarray, actions: Actions, step: Step) -> Transition:
    reward = float(step.rewards[i])
    lane.score += reward
    return Transition(
        game_index=lane.game_index,
        seed=lane.seed,
        step=lane.step,
        frame=frames[i],
        action=int(actions.indices[i]),
        text=actions.texts[i],
        scores=None if actions.scores is None else actions.scores[i],
        invalid=bool(actions.invalid[i]),
        reward=reward,
        score=lane.score,
        terminated=bool(step.terminated[i]),
        truncated=bool(step.truncated[i]),
    )
