"""The baseline of every comparison: uniformly random legal actions."""

from collections.abc import Sequence

import numpy as np

from agents.agent import Actions, Rngs, reset_rngs


class RandomAgent:
    """Plays uniformly at random; the same seed plays the same game."""

    name = "random"

    def __init__(self, action_names: Sequence[str]):
        self.action_names = tuple(action_names)
        self._rngs: Rngs = []

    def reset(self, seeds: Sequence[int | None]) -> None:
        """See `agents.agent.Agent`."""
        self._rngs = reset_rngs(self._rngs, seeds, 0x7A2)

    def act(self, frames: np.ndarray) -> Actions:
        """See `agents.agent.Agent`."""
        count = len(self.action_names)
        indices = np.array([rng.integers(count) for rng in self._rngs])
        return Actions.legal(indices, self.action_names, np.full((len(frames), count), 1 / count, dtype=np.float32))
