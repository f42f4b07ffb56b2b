"""The floor of every comparison: uniformly random legal actions."""

from collections.abc import Sequence

import numpy as np

from agents.agent import Actions
from agents.env_rngs import EnvRngs


class RandomAgent:
    """Plays uniformly at random; the same seed plays the same game."""

    name = "random"

    def __init__(self, action_names: Sequence[str]):
        self.action_names = tuple(action_names)
        self._rngs = EnvRngs(0x7A2)

    def reset(self, seeds: Sequence[int | None]) -> None:
        """Start new games; see `agents.agent.Agent`."""
        self._rngs.reset(seeds)

    def act(self, frames: np.ndarray) -> Actions:
        """Answer n frames with n random actions."""
        count = len(self.action_names)
        indices = np.array([rng.integers(count) for rng in self._rngs])
        scores = np.full((len(frames), count), 1 / count, dtype=np.float32)
        return Actions(indices, tuple(self.action_names[i] for i in indices), scores, np.zeros(len(frames), bool))
