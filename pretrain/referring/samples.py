"""Expressions about one image with their masks: what every referring data set returns."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Bool, UInt8


@dataclass(frozen=True)
class ReferringSample:
    """K expressions about one image; a data set's own items have K = 1."""

    frames: UInt8[np.ndarray, "history H W 3"]
    """The image last, behind those before it."""
    expressions: tuple[str, ...]
    masks: Bool[np.ndarray, "K H W"] | UInt8[np.ndarray, "K H W"]
    """Of the expressions' targets; empty for no target. uint8 under LISA's convention (`coco_masks`)."""
    source: str
    """The game, or the image's file name."""
    sent_ids: tuple[int, ...] = ()
    """The expressions' numbers in their data set."""
    ref_ids: tuple[int, ...] = ()
    """The targets' numbers in their data set."""


class ReferringSource(Protocol):
    """A source of random samples to train on."""

    def draw(self, rng: np.random.Generator, count: int) -> ReferringSample:
        """Return `count` expressions about one image; the generator's state alone decides which."""
        ...


class ReferringTestSet(Protocol):
    """A numbered set of expressions to evaluate on."""

    @property
    def name(self) -> str:
        """The data set and its split."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> ReferringSample: ...
