"""The episode loop, once: games in step over many lanes, as a generator of turns.

    for turn in play_games(agent, envs, seeds):
        recorder.step(turn)

Scores, videos and datasets watch the turns; none of them is the loop's business. The frames and rewards in a turn
are the true ones of whole games.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from agents.agent import Actions, Agent
from envs.atari import Lanes, Step


@dataclass(frozen=True)
class Turn:
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
    unparsable: bool
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


def play_games(agent: Agent, envs: Lanes, seeds: Sequence[int]) -> Iterator[Turn]:
    """Play one game for each seed and yield its turns, interleaved over the lanes.

    A lane whose game has ended takes the next seed; lanes without one idle. The games do not depend on the lanes.
    """
    waiting = list(enumerate(seeds))[::-1]
    lanes: list[_Lane | None] = [None] * envs.n
    frames: np.ndarray | None = None
    while True:
        starts = _fill(lanes, waiting)
        if all(lane is None for lane in lanes):
            return
        if any(seed is not None for seed in starts):
            frames = envs.reset(starts)
            agent.reset(starts)
        assert frames is not None
        actions = agent.act(frames)
        step = envs.step(actions.indices)
        for i, lane in enumerate(lanes):
            if lane is not None:
                turn = _turn(lane, i, frames, actions, step)
                lane.step += 1
                if turn.ended:
                    lanes[i] = None
                yield turn
        frames = step.frames


def _fill(lanes: list[_Lane | None], waiting: list[tuple[int, int]]) -> list[int | None]:
    """Give each free lane the next game; return the seeds of the games that begin, lane by lane."""
    starts: list[int | None] = [None] * len(lanes)
    for i, lane in enumerate(lanes):
        if lane is None and waiting:
            index, seed = waiting.pop()
            lanes[i], starts[i] = _Lane(index, seed), seed
    return starts


def _turn(lane: _Lane, i: int, frames: np.ndarray, actions: Actions, step: Step) -> Turn:
    reward = float(step.rewards[i])
    lane.score += reward
    return Turn(
        game_index=lane.game_index,
        seed=lane.seed,
        step=lane.step,
        frame=frames[i],
        action=int(actions.indices[i]),
        text=actions.texts[i],
        scores=None if actions.scores is None else actions.scores[i],
        unparsable=bool(actions.unparsable[i]),
        reward=reward,
        score=lane.score,
        terminated=bool(step.terminated[i]),
        truncated=bool(step.truncated[i]),
    )
