"""Referring segmentation with a trained checkpoint: by its mask head, or by points in text.

    segmenter = load_segmenter(Path("runs/refer/last"))
    probabilities = segmenter.predict(frames, ["the red ghost"])        float32[1, H, W]

Its checkpoint holds a mask head, or the grid (`POINT_GRID`) and the `LOGIT_BIAS` of points in `training.json`, or both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from vlm import checkpoint
from vlm.checkpoint import CheckpointError, training_resolution
from vlm.image_features import ImageFeatures
from vlm.image_input import resize_image
from vlm.model import PixelVLM
from vlm.segmentation.encoder_maps import encoder_maps
from vlm.segmentation.mask_head import CONFIG_FILE, MaskHead, MaskHeadConfig, expression_states, expression_tokens
from vlm.segmentation.point_prediction import predict_points

POINT_GRID, LOGIT_BIAS = "point_grid", "logit_bias"


@dataclass
class ReferringSegmenter:
    """A model that predicts masks for expressions, by its mask head, or without one by points."""

    vlm: PixelVLM
    head: MaskHead | None
    grid: int = 32  # points along each side
    size: tuple[int, int] | None = None  # rows and columns that images are resized to; None keeps them
    logit_bias: float = 0.0  # added to the logits of points

    @property
    def method(self) -> str:
        """How it predicts masks, in words."""
        return "mask head" if self.head else f"points of a grid of {self.grid}, the probability of 1 against 0"

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns that images of a size are resized to."""
        return self.size or self.vlm.image_config.fit(height, width)

    @torch.no_grad()
    def predict(
        self,
        frames: UInt8[np.ndarray, "history H W 3"],
        expressions: Sequence[str],
        features: ImageFeatures | None = None,
    ) -> Float[np.ndarray, "K H W"]:
        """Return each pixel's probability, float32, of belonging to the target of each of K expressions.

        The image is the last frame, behind those before it; a single frame is repeated to the model's history.
        `features` are those of the frames at this segmenter's size, with hidden states for a mask head, where they are
        computed already.
        """
        resized = np.stack([resize_image(frame, self.input_size(*frame.shape[:2])) for frame in frames])
        if len(resized) < self.vlm.history:
            resized = np.repeat(resized[-1:], self.vlm.history, axis=0)
        size = resized.shape[1:3]
        if features is None:
            features = self.vlm.encode_images(self.vlm.preprocess(resized[None]), output_hidden_states=bool(self.head))
        if self.head:
            states = expression_states(self.vlm, features, *expression_tokens(self.vlm.tokenizer, [expressions]))
            logits = self.head(encoder_maps(self.vlm, features, size), *states)[0, :, : size[0], : size[1]]
        else:
            points = predict_points(self.vlm, features, expressions, self.grid, logit_bias=self.logit_bias)
            logits = _resize_logits(points, *size)
        return _resize_logits(logits, *frames.shape[1:3]).sigmoid().cpu().numpy()


def _resize_logits(logits: Float[Tensor, "K h w"], height: int, width: int) -> Float[Tensor, "K H W"]:
    """Return logits at another size, bilinear."""
    if logits.shape[1:] == (height, width):
        return logits
    return functional.interpolate(logits[None], size=(height, width), mode="bilinear", align_corners=False)[0]


def load_segmenter(directory: Path, points: bool = False) -> ReferringSegmenter:
    """Return the segmenter of a checkpoint, by its mask head, or without one or with `points` by points in text.

    Raises:
        CheckpointError: it was not trained on masks, or not on points.
    """
    directory, training = Path(directory), checkpoint.read_training(directory)
    if (directory / CONFIG_FILE).is_file() and not points:
        vlm = checkpoint.load(directory)
        head = MaskHead.load(directory).to(vlm.device)
        if not head.config.fits(expected := MaskHeadConfig.of(vlm)):
            raise CheckpointError(f"{directory / CONFIG_FILE} does not fit its model: expected {expected}")
        modules: tuple[Any, ...] = (vlm.model, head)
        for module in modules:  # frames have channels last: without it convolutions reorder their weights
            module.to(memory_format=torch.channels_last)
        return ReferringSegmenter(vlm, head, size=training_resolution(directory))
    if POINT_GRID not in training:
        target = "points" if points else "masks"
        raise CheckpointError(f"expected a checkpoint trained on {target} (`pretrain.referring`), got {directory}")
    size, logit_bias = training_resolution(directory), float(training.get(LOGIT_BIAS, 0.0))
    return ReferringSegmenter(checkpoint.load(directory), None, int(training[POINT_GRID]), size, logit_bias)
