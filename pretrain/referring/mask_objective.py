"""Masks by the mask head as an objective: sampled frames with expressions, and the loss of their masks.

The loss is binary cross-entropy plus Dice, in float32, as LISA's (Lai et al. 2024), each averaged over masks. But a
mask's cross-entropy is summed over pixels and divided by the object's area, so that small objects weigh as much.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from pretrain.referring.referring_config import ReferringData
from pretrain.referring.samples import ReferringSource, pad_stack
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM
from vlm.segmentation.encoder_maps import encoder_maps
from vlm.segmentation.mask_head import MaskHead, expression_states, expression_tokens
from vlm.training.objective import Batch, Losses, Objective, images_of

MIN_AREA = 64  # pixels that a mask counts as at least, in its cross-entropy
DICE_SMOOTH = 1.0  # pixels added to both sides of Dice's fraction, so that an empty mask that is right costs nothing


@dataclass(frozen=True)
class MaskBatch(Batch):
    """Frames with K expressions each and their masks."""

    frames: UInt8[Tensor, "B history H W 3"]
    input_ids: Int[Tensor, "B K L"]
    lengths: Int[Tensor, "B K"]
    masks: Bool[Tensor, "B K H W"]


class MaskSampler:
    """Samples the frames, expressions and masks of a step."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, source: ReferringSource, data: ReferringData):
        self.tokenizer, self.source, self.data = tokenizer, source, data

    def __call__(self, step: int, rng: np.random.Generator) -> MaskBatch:
        """Return the batch of a step."""
        samples = [self.source.draw(rng, self.data.expressions) for _ in range(self.data.images)]
        _, input_ids, lengths = expression_tokens(self.tokenizer, [sample.expressions for sample in samples])
        frames = torch.from_numpy(pad_stack([sample.frames for sample in samples]))
        return MaskBatch(frames, input_ids, lengths, torch.from_numpy(pad_stack([sample.masks for sample in samples])))


class MaskHeadObjective(Objective[PixelVLM, MaskBatch]):
    """The mask head, trained beside the model."""

    stream = (0x5E6,)

    def __init__(self, vlm: PixelVLM, head: MaskHead, sampler: MaskSampler):
        super().__init__(vlm, sampler)
        self.head, self.shared = head, expression_tokens(vlm.tokenizer, [["object"]])[0]

    def modules(self) -> Mapping[str, nn.Module]:
        """Return the head."""
        return {"mask_head": self.head}

    def encode(self, batch: MaskBatch) -> ImageFeatures:
        """Return the features of the frames, with the encoder's hidden states."""
        return self.vlm.encode_images(images_of(self.vlm, batch), output_hidden_states=True)

    def loss(self, features: ImageFeatures, batch: MaskBatch) -> Losses:
        """Return the loss, its two parts, and `iou`, the mean over expressions that have an object."""
        states = expression_states(self.vlm, features, self.shared, batch.input_ids, batch.lengths)
        height, width = batch.frames.shape[2:4]
        logits = self.head(encoder_maps(self.vlm, features), *states)[..., :height, :width].float()
        target = batch.masks.float()
        pixel_losses = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        bce = area_normalized_bce(pixel_losses, target).mean()
        dice = dice_loss(logits.sigmoid(), target).mean()
        predicted, has_object = logits.detach() > 0, batch.masks.flatten(2).any(-1)
        iou = (predicted & batch.masks).sum((2, 3)) / (predicted | batch.masks).sum((2, 3)).clamp_min(1)
        return Losses(bce + dice, {"bce": bce.detach(), "dice": dice.detach(), "iou": iou[has_object].mean()})


def area_normalized_bce(pixel_losses: Tensor, masks: Tensor) -> Tensor:
    """Return the sums of pixel losses [..., H, W] over the areas of masks, `MIN_AREA` at least: [...]."""
    return pixel_losses.sum((-2, -1)) / masks.sum((-2, -1)).clamp_min(MIN_AREA)


def dice_loss(probabilities: Tensor, masks: Tensor) -> Tensor:
    """Return one minus Dice's coefficient of probabilities and masks [..., H, W]: [...] (Milletari et al. 2016)."""
    both = (probabilities * masks).sum((-2, -1))
    total = probabilities.sum((-2, -1)) + masks.sum((-2, -1))
    return 1 - (2 * both + DICE_SMOOTH) / (total + DICE_SMOOTH)
