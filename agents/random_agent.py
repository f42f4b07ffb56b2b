"""The floor: any legal action, each as likely as the next."""

from collections.abc import Sequence

import numpy as np

from agents.agent import Actions


class RandomAgent:
    """Plays uniformly at random; the same seed plays the same game."""

    name = "random"

    def __init__(self, action_names: Sequence[str]):
        self.action_names = tuple(action_names)
        self._rngs: list[np.random.Generator] = []

    def reset(self, seeds: Sequence[int | None]) -> None:
        """Begin new games; see `agents.agent.Agent`."""
        if len(self._rngs) != len(seeds):
            self._rngs = [np.random.default_rng(0)] * len(seeds)
        for lane, seed in enumerate(seeds):
            if seed is not None:
                self._rngs[lane] = np.random.default_rng([seed, 0x7A2])

    def act(self, frames: np.ndarray) -> Actions:
        """Answer n frames with n random actions."""
        count = len(self.action_names)
        indices = np.array([rng.integers(count) for rng in self._rngs])
        scores = np.full((len(frames), count), 1 / count, dtype=np.float32)
        return Actions(indices, tuple(self.action_names[i] for i in indices), scores, np.zeros(len(frames), bool))
