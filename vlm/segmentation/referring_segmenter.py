"""Finds what words mean in a picture, in whichever way a checkpoint was taught: by its mask head or by points in text.

    finder = load_segmenter(Path("runs/refer/last"))
    probabilities = finder.find(stack, ["the red ghost"])        float32[1, H, W]

A checkpoint that can be asked for masks holds a mask head (`vlm.segmentation.mask_head`), or says in its `training.json`, under
`points`, the grid on which it was taught to answer with 0 and 1 (`vlm.segmentation.point_prediction`), or both; under `points_shift`,
what its log-odds lack to be those of all places of a picture alike.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vlm import checkpoint
from vlm.checkpoint import CheckpointError
from vlm.model import PixelVLM
from vlm.segmentation.mask_head import SHAPE, MaskHead, encoder_maps, expression_states, expression_tokens
from vlm.segmentation.point_prediction import predict_points
from vlm.training_resolution import resize_image, training_resolution

POINT_GRID, LOGIT_BIAS = "point_grid", "logit_bias"


class ReferringSegmenter:
    """A model that can be asked for masks.

    Args:
        vlm: the model.
        head: its mask head, or None where masks are points.
        grid: the places of points along each side.
        size: rows and columns that pictures are brought to; None leaves them as they are.
        shift: what is added to the log-odds of points.
    """

    def __init__(
        self,
        vlm: PixelVLM,
        head: MaskHead | None,
        grid: int = 32,
        size: tuple[int, int] | None = None,
        shift: float = 0.0,
    ):
        self.vlm, self.head, self.grid, self.size, self.shift = vlm, head, grid, size, shift

    @property
    def way(self) -> str:
        """How it answers, in words."""
        return "mask head" if self.head else f"points of a grid of {self.grid}, the probability of 1 against 0"

    @torch.no_grad()
    def find(self, stack: np.ndarray, words: Sequence[str]) -> np.ndarray:
        """Return float32[K, H, W]: each pixel's probability of belonging to what each expression means.

        Args:
            stack: uint8[history, H, W, 3], or [1, H, W, 3], which is repeated.
            words: K expressions.
        """
        height, width = stack.shape[1:3]
        shown = np.stack([resize_image(frame, self.size) for frame in stack])
        if len(shown) < self.vlm.history:
            shown = np.repeat(shown[-1:], self.vlm.history, axis=0)
        found = self._by_head(shown, words) if self.head else self._by_points(shown, words)
        return resize_logits(found, height, width).sigmoid().cpu().numpy()

    def _by_head(self, shown: np.ndarray, words: Sequence[str]) -> Tensor:
        assert self.head is not None
        features = self.vlm.encode_images(self.vlm.preprocess(shown[None]), output_hidden_states=True)
        states = expression_states(self.vlm, features, *expression_tokens(self.vlm, [words]))
        height, width = shown.shape[1:3]
        maps = encoder_maps(self.vlm, features, (height, width))
        return self.head(maps, *states)[0, :, :height, :width]

    def _by_points(self, shown: np.ndarray, words: Sequence[str]) -> Tensor:
        features = self.vlm.encode_images(self.vlm.preprocess(shown[None]))
        found = predict_points(self.vlm, features, words, self.grid, shift=self.shift)
        return resize_logits(found, *shown.shape[1:3])


def resize_logits(logits: Tensor, height: int, width: int) -> Tensor:
    """Return logits [K, height, width] of logits [K, h, w], interpolated where sizes differ."""
    if logits.shape[1:] == (height, width):
        return logits
    return functional.interpolate(logits[None], size=(height, width), mode="bilinear", align_corners=False)[0]


def load_segmenter(directory: Path, by_points: bool = False) -> ReferringSegmenter:
    """Return what a checkpoint of `pretrain.referring.train` finds masks with: its head, or points if asked for or without one.

    Raises:
        CheckpointError: it was taught no masks, or no points where they are asked for.
    """
    directory, training = Path(directory), checkpoint.read_training(directory)
    if (directory / SHAPE).is_file() and not by_points:
        vlm = checkpoint.load(directory)
        head = MaskHead.load(directory).to(vlm.device)
        for part in (vlm.model, head):  # frames come with channels last, and convolutions need not turn their weights
            part.to(memory_format=torch.channels_last)
        return ReferringSegmenter(vlm, head, size=training_resolution(directory))
    if POINT_GRID in training:
        shift = float(training.get(LOGIT_BIAS, 0.0))
        return ReferringSegmenter(
            checkpoint.load(directory), None, int(training[POINT_GRID]), training_resolution(directory), shift
        )
    taught = "points" if by_points else "masks"
    raise CheckpointError(f"expected a checkpoint that was taught {taught} (`pretrain.referring`), got {directory}")
