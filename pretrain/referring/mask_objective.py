"""Masks for expressions as a lesson: what is asked in a step, and the loss of the mask head.

Several expressions about a frame share one pass over it (`vlm.decoding.packing`). The loss is binary cross-entropy plus Dice, in
float32, as LISA's (Lai et al. 2024), each averaged over masks. But a mask's cross-entropy is summed over pixels and
divided by the size of what is meant: averaged over pixels, a bullet would weigh a hundredth of a wall.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from pretrain.referring.samples import ReferringSource
from vlm.model import PixelVLM
from vlm.segmentation.encoder_maps import encoder_maps
from vlm.segmentation.mask_head import MaskHead, expression_states, expression_tokens
from vlm.training.trainer import Objective

MIN_AREA = 64  # pixels that a mask counts as at least, in its cross-entropy
DICE_SMOOTH = (
    1.0  # pixels added to both sides of Dice's fraction, so that an empty mask that is found empty costs nothing
)


def pad_stack(stacks: list[np.ndarray]) -> np.ndarray:
    """Return stacks [T, H, W, ...] of several sizes in one array [B, T, H, W, ...], zero below and to the right."""
    rows, columns = max(s.shape[1] for s in stacks), max(s.shape[2] for s in stacks)
    laid = np.zeros((len(stacks), stacks[0].shape[0], rows, columns, *stacks[0].shape[3:]), dtype=stacks[0].dtype)
    for number, stack in enumerate(stacks):
        laid[number, :, : stack.shape[1], : stack.shape[2]] = stack
    return laid


class ReferringDataset(Dataset):
    """Step i's frames, expressions and masks, drawn from the seed and i alone.

    An item is `frames` uint8[B, history, H, W, 3], `read` int[B, K, L] and `lengths` int[B, K] of the expressions'
    tokens, and `masks` bool[B, K, H, W].
    """

    def __init__(self, vlm: PixelVLM, source: ReferringSource, steps: int, images: int, count: int, seed: int):
        self.vlm, self.source = vlm, source
        self.steps, self.images, self.count, self.seed = steps, images, count, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, step, 0x5E6])
        drawn = [self.source.draw(rng, self.count) for _ in range(self.images)]
        _, read, lengths = expression_tokens(self.vlm, [one.expressions for one in drawn])
        return {
            "frames": torch.from_numpy(pad_stack([one.frames for one in drawn])),
            "read": read,
            "lengths": lengths,
            "masks": torch.from_numpy(pad_stack([one.masks for one in drawn])),
        }


class MaskHeadObjective(Objective):
    """The mask head as a lesson. The head is trained beside the model and saved with it."""

    vlm: PixelVLM

    def __init__(self, vlm: PixelVLM, head: MaskHead, bf16: bool | None, attention: str = "sdpa"):
        super().__init__(vlm, bf16, attention)
        self.head = head
        self.shared = expression_tokens(vlm, [["object"]])[0]

    def forward(self, frames: Tensor, read: Tensor, lengths: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Return the loss, its two parts, and `iou`, the mean over expressions that mean something.

        Args:
            frames: uint8[B, history, H, W, 3].
            read: int[B, K, L], of `expression_tokens`, and `lengths` int[B, K].
            lengths: see `read`.
            masks: bool[B, K, H, W].
        """
        with self.autocast():
            features = self.vlm.encode_images(self.vlm.preprocess(frames), output_hidden_states=True)
            states = expression_states(self.vlm, features, self.shared, read, lengths)
            logits = self.head(encoder_maps(self.vlm, features), *states).float()
            logits = logits[..., : frames.shape[2], : frames.shape[3]]
        wanted = masks.float()
        bce = area_normalized_bce(
            functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none"), wanted
        ).mean()
        dice = dice_loss(logits.sigmoid(), wanted).mean()
        shown, there = logits.detach() > 0, masks.flatten(2).any(-1)
        iou = (shown & masks).sum((2, 3)) / (shown | masks).sum((2, 3)).clamp_min(1)
        return {"loss": bce + dice, "bce": bce.detach(), "dice": dice.detach(), "iou": iou[there].mean()}

    def save_auxiliary(self, directory: Path) -> None:
        """Write the head."""
        self.head.save(directory)

    def load_auxiliary(self, directory: Path) -> None:
        """Take the head of `save_auxiliary`."""
        self.head.load_state_dict(MaskHead.load(directory).state_dict())


def area_normalized_bce(losses: Tensor, wanted: Tensor) -> Tensor:
    """Return the sums of pixels' losses [..., H, W] over the sizes of masks, [...], at least `MIN_AREA` each."""
    return losses.sum((-2, -1)) / wanted.sum((-2, -1)).clamp_min(MIN_AREA)


def dice_loss(shown: Tensor, wanted: Tensor) -> Tensor:
    """Return one minus Dice's coefficient of probabilities and masks [..., H, W]: [...] (Milletari et al. 2016)."""
    both = (shown * wanted).sum((-2, -1))
    return 1 - (2 * both + DICE_SMOOTH) / (shown.sum((-2, -1)) + wanted.sum((-2, -1)) + DICE_SMOOTH)
