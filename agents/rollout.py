"""The episode loop, written once: episodes of parallel environments as a generator of transitions.

    for transition in play_games(agent, envs, seeds):
        recorder.step(transition)

Scores, videos and datasets observe the transitions. Frames and rewards are the true ones of whole episodes.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from agents.agent import Actions, Agent, report_idle
from envs.atari import GameEnvs, Step


@dataclass(frozen=True)
class Transition:
    """One agent step of one episode."""

    game_index: int  # the episode's place among the seeds
    seed: int
    step: int  # the agent steps before this one
    frame: np.ndarray  # uint8[H, W, 3], the observation before the action
    action: int
    text: str  # the agent's answer
    scores: np.ndarray | None  # float32[A]
    invalid: bool  # whether the answer names no legal action
    reward: float
    score: float  # the sum of rewards up to and including this step
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

    One group's environments step in a thread while another group's agent computes; a single group takes no thread.
    """
    pending = list(enumerate(seeds))[::-1]
    env_groups = [_EnvGroup(agent, envs) for agent, envs in groups]
    with ThreadPoolExecutor(len(env_groups)) as pool:
        start_step = pool.submit if len(env_groups) > 1 else _at_once
        while True:
            for group in env_groups:
                yield from group.collect()
                group.dispatch(pending, start_step)
            if not any(group.step_future for group in env_groups):
                return


class _EnvGroup:
    """An agent, its environments, and the step in progress."""

    def __init__(self, agent: Agent, envs: GameEnvs):
        self.agent, self.envs = agent, envs
        self.episodes: list[_Episode | None] = [None] * envs.num_envs
        self.frames: np.ndarray
        self.actions: Actions
        self.step_future: Future[Step] | None = None

    def collect(self) -> Iterator[Transition]:
        """Wait for the step in progress, if any, and yield its transitions."""
        if self.step_future is None:
            return
        step, self.step_future = self.step_future.result(), None
        frames, self.frames = self.frames, step.frames
        for i, episode in enumerate(self.episodes):
            if episode is not None:
                transition = _transition(episode, i, frames, self.actions, step)
                if transition.ended:
                    self.episodes[i] = None
                yield transition

    def dispatch(self, pending: list[tuple[int, int]], start_step: Callable[..., "Future[Step]"]) -> None:
        """Start episodes in idle environments, ask the agent for actions and start the step; nothing if all idle."""
        starts: list[int | None] = [None] * len(self.episodes)
        for i, episode in enumerate(self.episodes):
            if episode is None and pending:
                game_index, seed = pending.pop()
                self.episodes[i], starts[i] = _Episode(game_index, seed), seed
        if all(episode is None for episode in self.episodes):
            return
        if any(seed is not None for seed in starts):
            self.frames = self.envs.reset(starts)
            self.agent.reset(starts)
        report_idle(self.agent, np.array([episode is None for episode in self.episodes]))
        self.actions = self.agent.act(self.frames)
        self.step_future = start_step(self.envs.step, self.actions.indices)


def _at_once(step: Callable[..., Step], actions: np.ndarray) -> "Future[Step]":
    future: Future[Step] = Future()
    future.set_result(step(actions))
    return future


def _transition(episode: _Episode, i: int, frames: np.ndarray, actions: Actions, step: Step) -> Transition:
    """Return the transition of environment `i`, and count it in its episode."""
    reward = float(step.rewards[i])
    episode.score += reward
    episode.step += 1
    return Transition(
        game_index=episode.game_index,
        seed=episode.seed,
        step=episode.step - 1,
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
