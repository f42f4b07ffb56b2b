"""Parallel environments of one game as stable-baselines3 takes them."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from agents.sb3_agent import OBSERVATIONS, STACK, shrink
from envs.atari import GameEnvs


class ExpertEnvs(VecEnv):
    """`GameEnvs` with four small gray frames, rewards clipped to their sign, and automatic resets.

    SB3's own wrappers differ: VecFrameStack starts with black frames, and VecMonitor would count clipped rewards.
    """

    def __init__(self, envs: GameEnvs, seed: int):
        self.envs, self._rng = envs, np.random.default_rng(seed)
        self._scores, self._lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, int)
        self._points, self._final_scores = 0.0, list[float]()
        super().__init__(envs.num_envs, OBSERVATIONS, spaces.Discrete(len(envs.action_names)))

    def _start(self, started: np.ndarray) -> np.ndarray:
        """Start episodes in the environments `started`, bool[n]; return their first observations."""
        self._scores[started], self._lengths[started] = 0, 0
        frames = self.envs.reset([int(self._rng.integers(2**31)) if start else None for start in started])
        return np.repeat(shrink(frames)[:, None], STACK, axis=1)

    def reset(self) -> np.ndarray:
        """Start an episode in every environment; return uint8[n, 4, 84, 84]."""
        self._observations = self._start(np.ones(self.num_envs, dtype=bool))
        return self._observations

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict]]:
        """Take one step in every environment; one that ends is reset, with its last observation in the info."""
        step = self.envs.step(self._actions)
        self._scores += step.rewards
        self._lengths += 1
        ended = step.terminated | step.truncated
        observations = np.concatenate([self._observations[:, 1:], shrink(step.frames)[:, None]], axis=1)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        self._points += float(step.rewards.sum())
        self._final_scores += self._scores[ended].tolist()
        for i in np.flatnonzero(ended):
            infos[i] = {
                "terminal_observation": observations[i].copy(),
                "TimeLimit.truncated": bool(step.truncated[i]),
                "episode": {"r": float(self._scores[i]), "l": int(self._lengths[i])},
            }
        if ended.any():
            observations = np.where(ended[:, None, None, None], self._start(ended), observations)
        self._observations = observations
        return observations, np.sign(step.rewards), ended, infos

    def take_progress(self) -> tuple[float, list[float]]:
        """Return the raw rewards' sum, and the raw scores of the episodes that ended, since the last call."""
        points, scores = self._points, self._final_scores
        self._points, self._final_scores = 0.0, []
        return points, scores

    def close(self) -> None:
        """Free the emulators."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return None for each environment; SB3 reads `render_mode`."""
        return [None for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """Return False for each environment."""
        return [False for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: these are not gymnasium environments."""
        raise NotImplementedError(f"set_attr({attr_name})")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Refuse: these are not gymnasium environments."""
        raise NotImplementedError(f"env_method({method_name})")
