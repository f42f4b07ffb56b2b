"""What a training on referring expressions draws, wherever it comes from: a picture, words about it and their masks."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class ReferringSample:
    """K expressions about one picture.

    stack: uint8[history, H, W, 3], the picture and what came before it; words: K of them; masks: bool[K, H, W], empty
    where words mean nothing in the picture; kinds: of the words, if they are told apart.
    """

    stack: np.ndarray
    words: tuple[str, ...]
    masks: np.ndarray
    kinds: tuple[str, ...] = ()


class ReferringSource(Protocol):
    """Pictures that expressions can be drawn about."""

    def draw(self, rng: np.random.Generator, count: int) -> ReferringSample:
        """Return `count` expressions about one picture, the same for a generator in the same state."""
        ...
