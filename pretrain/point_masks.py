"""Masks as a lesson in text: is this place part of what the expression means, 0 or 1?

Places are drawn as in the paper's lab (Vision-CAIR's paint data): on what is meant, on other objects that are referred
to, on a ring round what is meant, and anywhere. All questions about a frame share one look at it, and those about an
expression one reading of it (`vlm.packing.read_branches`).
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from pretrain.masks import lay
from pretrain.questions import IGNORED, pad_rows
from pretrain.referrals import ReferralSource
from vlm.model import PixelVLM
from vlm.packing import pad_questions, read_branches
from vlm.point_masks import PointLanguage
from vlm.trainer import Lesson

SHARES = (0.40, 0.30, 0.24, 0.06)  # of places on what is meant, on other objects, on the ring, and anywhere
RING = 8  # the ring is as wide as this part of the grid
MOSTLY = 0.5  # of a place's area has to belong to what is meant


def grid_mask(mask: np.ndarray, grid: int) -> np.ndarray:
    """Return bool[grid, grid]: the places of a grid that belong to a mask bool[H, W], by area.

    What is too small to fill half of any place has the one that it fills most.
    """
    share = np.asarray(Image.fromarray(mask.astype(np.float32)).resize((grid, grid), Image.Resampling.BOX))
    there = share >= MOSTLY
    return there if there.any() or not mask.any() else share == share.max()


def draw_points(own: np.ndarray, others: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return int[count, 2], rows and columns of places to ask about.

    Args:
        own: bool[G, G], what is meant; may be empty.
        others: bool[G, G], what else is referred to in the picture.
        count: how many.
        rng: where the choice comes from.
    """
    ring = ndimage.binary_dilation(own, iterations=max(1, len(own) // RING)) & ~own if own.any() else own
    groups = (own, others & ~own, ring, ~own & ~ring)
    shares = list(SHARES)
    if not groups[1].any():  # as in the lab: the ring has the share of other objects where there are none
        shares[2] += shares[1]
    there = np.array([share if group.any() else 0.0 for share, group in zip(shares, groups, strict=True)])
    flat = [np.flatnonzero(group) for group in groups]
    chosen = rng.choice(len(groups), count, p=there / there.sum())
    places = np.array([flat[group][rng.integers(len(flat[group]))] for group in chosen])
    return np.stack(np.divmod(places, len(own)), axis=1)


class PointQuestions(Dataset):
    """Step i's frames, expressions and places, drawn from the seed and i alone.

    An item is `frames` uint8[B, history, H, W, 3]; `trunks` int[B, E, T] and `lengths` int[B, E] of the expressions'
    tokens; `read` int[B, E, K, L], places and answers, and `said` int[B, E, K, L], what shall be said next.
    """

    def __init__(
        self,
        vlm: PixelVLM,
        source: ReferralSource,
        steps: int,
        images: int,
        count: int,
        seed: int,
        grid: int = 32,
        points: int = 16,
    ):
        self.language, self.source, self.steps = PointLanguage.of(vlm), source, steps
        self.images, self.count, self.seed, self.grid, self.points = images, count, seed, grid, points

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, step, 0x901])
        drawn = [self.source.draw(rng, self.count) for _ in range(self.images)]
        asked = [self._ask(masks, rng) for one in drawn for masks in _each_and_others(one.masks)]
        trunks, lengths = pad_questions([[self.language.trunk(w) for w in one.words] for one in drawn], self._pad)
        shape = (self.images, self.count)
        return {
            "frames": torch.from_numpy(lay([one.stack for one in drawn])),
            "trunks": trunks,
            "lengths": lengths,
            "read": pad_rows([read for read, _ in asked], self._pad).unflatten(0, shape),
            "said": pad_rows([said for _, said in asked], IGNORED).unflatten(0, shape),
        }

    @property
    def _pad(self) -> int:
        return self.language.pad

    def _ask(
        self, masks: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
    ) -> tuple[list[list[int]], list[list[int]]]:
        own, others = (grid_mask(mask, self.grid) for mask in masks)
        read, said = [], []
        for row, column in draw_points(own, others, self.points, rng):
            leaf, answer = self.language.leaf(row, column), int(self.language.answers[int(own[row, column])])
            read.append([*leaf, answer])
            said.append([IGNORED] * (len(leaf) - 1) + [answer, self.language.end])
        return read, said


def _each_and_others(masks: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each mask of bool[K, H, W] with the union of all, what is also referred to."""
    union = np.logical_or.reduce(masks)
    return [(mask, union) for mask in masks]


class PointMasks(Lesson):
    """Points as a lesson: cross-entropy on the answer and its end."""

    vlm: PixelVLM

    def __init__(self, vlm: PixelVLM, bf16: bool | None, attention: str = "sdpa"):
        super().__init__(vlm, bf16, attention)
        self.language = PointLanguage.of(vlm)

    def forward(self, frames: Tensor, trunks: Tensor, lengths: Tensor, read: Tensor, said: Tensor) -> dict[str, Tensor]:
        """Return the loss, `right`, the share of places answered rightly, and `found`, of those that are 1.

        Args:
            frames: uint8[B, history, H, W, 3].
            trunks: int[B, E, T], of `PointLanguage.trunk`, and `lengths` int[B, E].
            lengths: see `trunks`.
            read: int[B, E, K, L], places and answers.
            said: int[B, E, K, L], what shall be said next.
        """
        device = frames.device
        with self.autocast():
            shared = self.language.shared.to(device)
            hidden = read_branches(self.vlm, self.vlm.pixels(frames), shared, trunks, lengths, read)
            logits = self.vlm.model.get_output_embeddings()(hidden[said != IGNORED]).float()  # [A, V]
        wanted = said[said != IGNORED]
        no, yes = self.language.answers.to(device)
        among = (wanted == no) | (wanted == yes)
        says_yes = logits[among, yes] > logits[among, no]
        truth = wanted[among] == yes
        return {
            "loss": functional.cross_entropy(logits, wanted),
            "right": (says_yes == truth).float().mean(),
            "found": says_yes[truth].float().mean(),
        }
