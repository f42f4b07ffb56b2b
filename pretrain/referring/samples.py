"""Expressions about one image with their masks: what every referring data set returns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Bool, UInt8


@dataclass(frozen=True)
class ReferringSample:
    """K expressions about one image; a data set's own items have K = 1."""

    frames: UInt8[np.ndarray, "history H W 3"]  # the image last, behind those before it
    expressions: tuple[str, ...]
    masks: Bool[np.ndarray, "K H W"] | UInt8[np.ndarray, "K H W"]  # of targets; uint8 if `compat="lisa"` (`coco_masks`)
    source: str  # the game, or the image's file name
    sent_ids: tuple[int, ...] = ()  # the expressions' numbers in their data set
    ref_ids: tuple[int, ...] = ()  # the targets' numbers in their data set


def pad_stack(stacks: Sequence[np.ndarray]) -> np.ndarray:
    """Return stacks [T, H, W, ...] of several sizes as one array [B, T, H, W, ...], zero below and to the right."""
    rows, columns = (max(stack.shape[axis] for stack in stacks) for axis in (1, 2))
    padded = np.zeros((len(stacks), stacks[0].shape[0], rows, columns, *stacks[0].shape[3:]), dtype=stacks[0].dtype)
    for number, stack in enumerate(stacks):
        padded[number, :, : stack.shape[1], : stack.shape[2]] = stack
    return padded


class ReferringSource(Protocol):
    """A source of random samples to train on."""

    def draw(self, rng: np.random.Generator, count: int) -> ReferringSample:
        """Return `count` expressions about one image; the generator's state alone decides which."""
        ...


class ReferringTestSet(Protocol):
    """A numbered set of expressions to evaluate on."""

    name: str  # of the data set and its split

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> ReferringSample: ...
