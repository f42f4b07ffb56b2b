"""The last frames of parallel environments; a model's preset (`vlm/presets.py`) says how many it sees."""

import numpy as np


class FrameStack:
    """The last `history` frames of every environment, oldest first; an episode's first frame is repeated."""

    def __init__(self, history: int):
        self.history = history
        self._stacks: np.ndarray | None = None
        self._starting = np.zeros(0, dtype=bool)

    def reset(self, started: np.ndarray) -> None:
        """Forget the frames of the environments `started`, bool[n]."""
        if len(self._starting) != len(started):
            self._stacks, self._starting = None, np.ones(len(started), dtype=bool)
        self._starting |= started

    def add(self, frames: np.ndarray) -> np.ndarray:
        """Add frames uint8[n, H, W, C]; return the stacks uint8[n, history, H, W, C]."""
        repeated = np.repeat(frames[:, None], self.history, axis=1)
        if self._stacks is None:
            self._stacks = repeated
        else:
            shifted = np.concatenate([self._stacks[:, 1:], frames[:, None]], axis=1)
            self._stacks = np.where(self._starting[:, None, None, None, None], repeated, shifted)
        self._starting[:] = False
        return self._stacks
