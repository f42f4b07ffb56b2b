"""Fixed-length rollouts of parallel environments, for on-policy learning.

Episodes continue from one rollout to the next. The state of an environment is its episode's seed and the actions since:
replaying them restores the emulator exactly, sticky actions included, so that a killed training resumes exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.frame_stack import FrameStack
from common.errors import UserError
from envs.atari import GameEnvs
from envs.protocol import EPISODES_PER_SEED, episode_seeds

REWARD_TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "clip": np.sign,  # Mnih et al. 2015
    "sqrt": lambda rewards: np.sign(rewards) * (np.sqrt(np.abs(rewards) + 1) - 1),  # Pohlen et al. 2018, epsilon 0
    "none": lambda rewards: rewards,
}


@dataclass(frozen=True)
class PolicyOutput:
    """A policy's actions int[N] for N environments, and by name what else is kept for learning, [N, ...] each."""

    actions: np.ndarray
    extras: dict[str, np.ndarray]


Policy = Callable[[np.ndarray, int], PolicyOutput]  # of obs uint8[N, history, H, W, 3] and the step within the rollout


@dataclass(frozen=True)
class RolloutBatch:
    """T steps of N environments."""

    obs: np.ndarray  # uint8[T, N, history, H, W, 3]
    actions: np.ndarray  # int[T, N]
    extras: dict[str, np.ndarray]  # of the policy, [T, N, ...]
    rewards: np.ndarray  # float32[T, N], not transformed
    dones: np.ndarray  # bool[T, N]
    next_obs: np.ndarray  # uint8[N, history, H, W, 3], after the last step
    scores: list[float]  # of the episodes that ended


class RolloutCollector:
    """Steps a policy through parallel environments, one episode after the other.

    An observation has `history` frames. `seed` is the published seed of the first episodes; later ones follow.
    """

    def __init__(self, envs: GameEnvs, history: int, seed: int):
        self.envs, self.seed = envs, seed
        self._frame_stack = FrameStack(history)
        self._num_started = 0
        self._episode_seeds: list[int] = [0] * envs.num_envs
        self._episode_actions: list[list[int]] = [[] for _ in range(envs.num_envs)]
        self._scores = np.zeros(envs.num_envs)
        self._obs: np.ndarray | None = None

    def collect(self, policy: Policy, num_steps: int) -> RolloutBatch:
        """Return a rollout of `num_steps` steps in every environment."""
        if self._obs is None:
            self._obs = self._frame_stack.add(self._start_episodes(np.ones(self.envs.num_envs, dtype=bool)))
        observations, outputs, rewards, dones, scores = [], [], [], [], []
        for number in range(num_steps):
            output = policy(self._obs, number)
            observations.append(self._obs)
            outputs.append(output)
            step = self.envs.step(output.actions)
            done = step.terminated | step.truncated
            self._scores += step.rewards
            for env_actions, action in zip(self._episode_actions, output.actions, strict=True):
                env_actions.append(int(action))
            scores += self._scores[done].tolist()
            self._obs = self._frame_stack.add(self._start_episodes(done) if done.any() else step.frames)
            rewards.append(step.rewards)
            dones.append(done)
        extras = {name: np.stack([output.extras[name] for output in outputs]) for name in outputs[0].extras}
        actions = np.stack([output.actions for output in outputs])
        obs = np.stack(observations)
        return RolloutBatch(obs, actions, extras, np.stack(rewards), np.stack(dones), self._obs, scores)

    def state(self) -> dict[str, Any]:
        """Return the state of all environments, for JSON."""
        return {
            "num_started": self._num_started,
            "episode_seeds": self._episode_seeds,
            "episode_actions": self._episode_actions,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Bring the environments, of the same number, to a state of `state`."""
        num_envs = self.envs.num_envs
        if len(state["episode_seeds"]) != num_envs:
            raise UserError(f"expected the state of {num_envs} environments, got {len(state['episode_seeds'])}")
        self._num_started, self._episode_seeds = state["num_started"], list(state["episode_seeds"])
        self._episode_actions = [list(actions) for actions in state["episode_actions"]]
        lengths = np.array([len(actions) for actions in self._episode_actions])
        for number in range(lengths.max() + 1):  # shorter episodes start later, so that all reach their ends together
            offsets = number - (lengths.max() - lengths)  # steps since the start
            if number:
                replays = zip(self._episode_actions, offsets, strict=True)
                step = self.envs.step(np.array([actions[at - 1] if at > 0 else 0 for actions, at in replays]))
                self._scores += step.rewards
                frames = step.frames
            starts = offsets == 0
            if starts.any():
                seeds = [seed if start else None for seed, start in zip(self._episode_seeds, starts, strict=True)]
                frames = self.envs.reset(seeds)
                self._frame_stack.reset(starts)
                self._scores[starts] = 0
            self._obs = self._frame_stack.add(frames)

    def _start_episodes(self, done: np.ndarray) -> np.ndarray:
        """Start an episode in every environment of `done`, bool[N]; return the frames of all."""
        seeds: list[int | None] = [None] * self.envs.num_envs
        for env_index in np.flatnonzero(done):
            seed, episode = divmod(self._num_started, EPISODES_PER_SEED)
            self._num_started += 1
            seeds[env_index] = self._episode_seeds[env_index] = episode_seeds(self.seed + seed, episode + 1)[episode]
            self._episode_actions[env_index], self._scores[env_index] = [], 0.0
        self._frame_stack.reset(done)
        return self.envs.reset(seeds)
