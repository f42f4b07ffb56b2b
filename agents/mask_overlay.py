"""What a viewer asks to see in a video: the mask of an expression, frame by frame."""

from pathlib import Path

import numpy as np

from agents.frame_stack import FrameStack
from agents.rollout import Transition
from vlm.segmentation.referring_segmenter import ReferringSegmenter, load_segmenter

SURE = 0.5  # the probability from which a pixel is shown


class MaskOverlay:
    """Finds what words mean in the frames of a game, one game after the other."""

    def __init__(self, segmenter: ReferringSegmenter, words: str):
        self.segmenter, self.words = segmenter, words
        self._memory = FrameStack(segmenter.vlm.history)

    @classmethod
    def load(cls, directory: Path, words: str) -> "MaskOverlay":
        """Build from a checkpoint that was taught masks."""
        return cls(load_segmenter(directory), words)

    def find(self, turn: Transition) -> np.ndarray:
        """Return the mask bool[H, W] in the frame of a turn."""
        self._memory.reset(np.array([turn.step == 0]))
        return self.segmenter.find(self._memory.add(turn.frame[None])[0], [self.words])[0] > SURE
