"""The mask of a referring expression in every frame of a video."""

from pathlib import Path

import numpy as np

from agents.frame_stack import FrameStack
from agents.rollout import Transition
from vlm.segmentation.referring_segmenter import ReferringSegmenter, load_segmenter

MASK_THRESHOLD = 0.5  # of a pixel's probability


class MaskOverlay:
    """Segments an expression in the frames of one episode after the other."""

    def __init__(self, segmenter: ReferringSegmenter, expression: str):
        self.segmenter, self.expression = segmenter, expression
        self._frames = FrameStack(segmenter.vlm.history)

    @classmethod
    def load(cls, directory: Path, expression: str) -> "MaskOverlay":
        """Return the overlay of a segmentation checkpoint."""
        return cls(load_segmenter(directory), expression)

    def segment(self, transition: Transition) -> np.ndarray:
        """Return the mask bool[H, W] in a transition's frame."""
        self._frames.reset(np.array([transition.step == 0]))
        stack = self._frames.add(transition.frame[None])[0]
        return self.segmenter.predict(stack, [self.expression])[0] > MASK_THRESHOLD
