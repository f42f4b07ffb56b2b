"""The episode loop, written once: episodes of parallel environments as a generator of transitions.

    for transition in play_games(agent, envs, seeds):
        recorder.step(transition)

Scores, videos and datasets observe the transitions. Frames and rewards are the true ones of whole episodes.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from agents.agent import Actions, Agent
from envs.atari import GameEnvs, Step


@dataclass(frozen=True)
class Transition:
    """One agent step of one episode.

    game_index: the episode's place among the seeds; step: the agent steps before this one; frame: uint8[H, W, 3], the
    observation before the action; text: the agent's answer; scores: float32[A] or None; invalid: whether the answer
    named no legal action; score: the sum of rewards up to and including this step.
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
        """Whether this is the episode's last transition."""
        return self.terminated or self.truncated


@dataclass
class _Episode:
    game_index: int
    seed: int
    step: int = 0
    score: float = 0.0


def play_games(agent: Agent, envs: GameEnvs, seeds: Sequence[int]) -> Iterator[Transition]:
    """Play one episode for each seed and yield its transitions, interleaved over the environments.

    An environment whose episode has ended takes the next seed; one without a seed idles. An episode does not depend on
    the number of environments.
    """
    yield from rollout_pipelined([(agent, envs)], seeds)


def rollout_pipelined(groups: Sequence[tuple[Agent, GameEnvs]], seeds: Sequence[int]) -> Iterator[Transition]:
    """Do what `play_games` does with several groups of environments, each with an agent of its own.

    One group's environments step in a thread while another group's agent computes, so that with two groups neither
    waits for the other.
    """
    pending = list(enumerate(seeds))[::-1]
    env_groups = [_EnvGroup(agent, envs) for agent, envs in groups]
    with ThreadPoolExecutor(len(env_groups)) as pool:
        while True:
            for group in env_groups:
                yield from group.collect()
                group.dispatch(pending, pool)
            if not any(group.step_future for group in env_groups):
                return


class _EnvGroup:
    """An agent, its environments, and the step in progress."""

    def __init__(self, agent: Agent, envs: GameEnvs):
        self.agent, self.envs = agent, envs
        self.episodes: list[_Episode | None] = [None] * envs.num_envs
        self.frames: np.ndarray | None = None
        self.actions: Actions | None = None
        self.step_future: Future[Step] | None = None

    def collect(self) -> Iterator[Transition]:
        """Wait for the step in progress, if any, and yield its transitions."""
        if self.step_future is None:
            return
        step, self.step_future = self.step_future.result(), None
        assert self.frames is not None
        assert self.actions is not None
        frames, self.frames = self.frames, step.frames
        for i, episode in enumerate(self.episodes):
            if episode is not None:
                transition = _transition(episode, i, frames, self.actions, step)
                episode.step += 1
                if transition.ended:
                    self.episodes[i] = None
                yield transition

    def dispatch(self, pending: list[tuple[int, int]], pool: ThreadPoolExecutor) -> None:
        """Start episodes in idle environments, ask the agent for actions and start the step; nothing if all idle."""
        starts = _start_episodes(self.episodes, pending)
        if all(episode is None for episode in self.episodes):
            return
        if any(seed is not None for seed in starts):
            self.frames = self.envs.reset(starts)
            self.agent.reset(starts)
        assert self.frames is not None
        self.actions = self.agent.act(self.frames)
        self.step_future = pool.submit(self.envs.step, self.actions.indices)


def _start_episodes(episodes: list[_Episode | None], pending: list[tuple[int, int]]) -> list[int | None]:
    """Give each idle environment the next pending episode; return the seeds to reset with, None where one continues."""
    starts: list[int | None] = [None] * len(episodes)
    for i, episode in enumerate(episodes):
        if episode is None and pending:
            index, seed = pending.pop()
            episodes[i], starts[i] = _Episode(index, seed), seed
    return starts


def _transition(episode: _Episode, i: int, frames: np.ndarray, actions: Actions, step: Step) -> Transition:
    reward = float(step.rewards[i])
    episode.score += reward
    return Transition(
        game_index=episode.game_index,
        seed=episode.seed,
        step=episode.step,
        frame=frames[i],
        action=int(actions.indices[i]),
        text=actions.texts[i],
        scores=None if actions.scores is None else actions.scores[i],
        invalid=bool(actions.invalid[i]),
        reward=reward,
        score=episode.score,
        terminated=bool(step.terminated[i]),
        truncated=bool(step.truncated[i]),
    )
