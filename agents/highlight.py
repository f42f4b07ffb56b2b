"""What a viewer asks to see in a video: the mask of an expression, frame by frame."""

from pathlib import Path

import numpy as np

from agents.frame_memory import FrameMemory
from agents.rollout import Turn
from vlm.mask_finder import MaskFinder, load_finder

SURE = 0.5  # the probability from which a pixel is shown


class Highlight:
    """Finds what words mean in the frames of a game, one game after the other."""

    def __init__(self, finder: MaskFinder, words: str):
        self.finder, self.words = finder, words
        self._memory = FrameMemory(finder.vlm.history)

    @classmethod
    def load(cls, directory: Path, words: str) -> "Highlight":
        """Build from a checkpoint that was taught masks."""
        return cls(load_finder(directory), words)

    def find(self, turn: Turn) -> np.ndarray:
        """Return the mask bool[H, W] in the frame of a turn."""
        self._memory.reset(np.array([turn.step == 0]))
        return self.finder.find(self._memory.add(turn.frame[None])[0], [self.words])[0] > SURE
