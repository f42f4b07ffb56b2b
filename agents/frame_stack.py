"""What an agent remembers of the frames it saw."""

import numpy as np


class FrameStack:
    """The last frames of every lane, oldest first; at the start of a game its first frame is repeated."""

    def __init__(self, history: int):
        self.history = history
        self._stacks: np.ndarray | None = None
        self._fresh = np.zeros(0, dtype=bool)

    def reset(self, started: np.ndarray) -> None:
        """Forget the games of the lanes `started`, bool[n]."""
        if len(self._fresh) != len(started):
            self._stacks, self._fresh = None, np.ones(len(started), dtype=bool)
        self._fresh |= started

    def add(self, frames: np.ndarray) -> np.ndarray:
        """Take in frames uint8[n, H, W, C]; return the stacks uint8[n, history, H, W, C]."""
        repeated = np.repeat(frames[:, None], self.history, axis=1)
        if self._stacks is None:
            self._stacks = repeated
        else:
            moved_on = np.concatenate([self._stacks[:, 1:], frames[:, None]], axis=1)
            self._stacks = np.where(self._fresh[:, None, None, None, None], repeated, moved_on)
        self._fresh[:] = False
        return self._stacks

    def replace(self, lanes: np.ndarray, stacks: np.ndarray) -> None:
        """Put stacks uint8[n, history, H, W, C] in the memory of `lanes`, bool[n], as if they had been seen."""
        assert self._stacks is not None
        self._stacks = np.where(lanes[:, None, None, None, None], stacks, self._stacks)
        self._fresh &= ~lanes
