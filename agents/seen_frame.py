"""What a model sees of the frames of a game: its answers for every cell of a grid, beside the truth."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from agents.frame_stack import FrameStack
from agents.rollout import Transition


@dataclass(frozen=True)
class GridAnswer:
    """A model's answers for every cell of a grid over a frame, and the truth."""

    predicted: UInt8[np.ndarray, "rows columns 3"]
    true: UInt8[np.ndarray, "rows columns 3"]

    @property
    def mae(self) -> float:
        """The mean absolute error, of 255."""
        return float(np.abs(self.predicted.astype(int) - self.true).mean())


@dataclass(frozen=True)
class SeenFrame:
    """The answers about one frame of an episode."""

    grid: GridAnswer
    step: int


class FrameReader:
    """Asks a `QuestionedModel` for every cell of every `every`-th frame of one episode after the other.

    It keeps the seconds that each took, and each mean absolute error.
    """

    def __init__(self, model: Any, every: int = 1):
        self.model, self.every = model, every
        self.seconds: list[float] = []
        self.errors: list[float] = []
        self._frame_stack = FrameStack(model.vlm.history)
        self._seen: SeenFrame | None = None

    def read(self, transition: Transition) -> SeenFrame:
        """Return the answers about a transition's frame, or about the last frame that was asked about."""
        self._frame_stack.reset(np.array([transition.step == 0]))
        stack = self._frame_stack.add(transition.frame[None])[0]
        if self._seen is None or transition.step % self.every == 0:
            start = time.perf_counter()
            self._seen = SeenFrame(self.model.about(stack).grid(), transition.step)
            self.seconds.append(time.perf_counter() - start)
            self.errors.append(self._seen.grid.mae)
        return self._seen

    def summary(self) -> dict[str, Any]:
        """Return the grid, the median milliseconds a frame and the mean absolute error over the frames asked about."""
        assert self._seen
        rows, columns, _ = self._seen.grid.true.shape
        milliseconds, mae = 1000 * float(np.median(self.seconds)), float(np.mean(self.errors))
        return {"see_grid": f"{rows} x {columns}", "see_ms": round(milliseconds, 1), "see_mae": round(mae, 2)}
