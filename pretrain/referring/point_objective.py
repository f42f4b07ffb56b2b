"""Masks as a lesson in text: is this place part of what the expression means, 0 or 1?

Places are drawn as in the paper's lab (Vision-CAIR's paint data): on what is meant, on other objects that are referred
to, on a ring round what is meant, and anywhere. All questions about a frame share one look at it, and those about an
expression one reading of it (`vlm.decoding.packing.read_branches`). With `gaze` above 0 the decoder is told where to look
(`vlm.training.attention_supervision`), as in pixel value prediction; then each question reads its expression itself.

Places drawn so are 1 far more often than those of a whole picture. What the odds are to be lowered by is found at the
end of a training, on places drawn evenly (`calibrate_logit_bias`), as one corrects a logistic regression for how its cases were
chosen (King & Zeng 2001, "Logistic Regression in Rare Events Data", section 4).
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage, optimize, special
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from common.errors import UserError
from pretrain.pvp_prompts import IGNORE_INDEX
from pretrain.referring.mask_objective import pad_stack
from pretrain.referring.samples import ReferringSource
from vlm.decoding.packing import forward_packed_tree, forward_packed_with_attention, pad_token_lists
from vlm.model import PixelVLM
from vlm.segmentation.point_prediction import PointPromptFormat, PointSampler
from vlm.training.attention_supervision import (
    ANSWER_LAYER,
    COORDINATE_LAYER,
    PATCH_LAYER,
    AttentionTargets,
    attention_supervision_loss,
    patch_edges,
    require_attention_access,
    target_patch_index,
)
from vlm.training.trainer import Objective

SHARES = (0.40, 0.30, 0.24, 0.06)  # of places on what is meant, on other objects, on the ring, and anywhere
RING = 8  # the ring is as wide as this part of the grid
COLUMN = 2  # tokens from a place's row to its column: the row and a comma
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


class PointQADataset(Dataset):
    """Step i's frames, expressions and places, drawn from the seed and i alone.

    An item is `frames` uint8[B, history, H, W, 3]; `trunks` int[B, E, T] and `lengths` int[B, E] of the expressions'
    tokens; `read` int[B, E, K, L], places and answers, and `said` int[B, E, K, L], what shall be said next; `places`
    float32[B, E, K, 2], what is asked about, as shares of the height and width of `frames`.
    """

    def __init__(
        self,
        vlm: PixelVLM,
        source: ReferringSource,
        steps: int,
        images: int,
        count: int,
        seed: int,
        grid: int = 32,
        points: int = 16,
    ):
        self.language, self.source, self.steps = PointPromptFormat.of(vlm), source, steps
        self.images, self.count, self.seed, self.grid, self.points = images, count, seed, grid, points

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, step, 0x901])
        drawn = [self.source.draw(rng, self.count) for _ in range(self.images)]
        frames = pad_stack([one.frames for one in drawn])
        asked = [self._ask(masks, rng) for one in drawn for masks in _each_and_others(one.masks)]
        sizes = np.array([one.masks.shape[1:] for one in drawn for _ in one.masks]) / frames.shape[2:4]
        places = [(own + 0.5) / self.grid * size for (_, _, own), size in zip(asked, sizes, strict=True)]
        trunks, lengths = pad_token_lists([[self.language.expression_tokens(w) for w in one.expressions] for one in drawn], self._pad)
        shape = (self.images, self.count)
        return {
            "frames": torch.from_numpy(frames),
            "trunks": trunks,
            "lengths": lengths,
            "read": pad_token_lists([read for read, _, _ in asked], self._pad)[0].unflatten(0, shape),
            "said": pad_token_lists([said for _, said, _ in asked], IGNORE_INDEX)[0].unflatten(0, shape),
            "places": torch.from_numpy(np.stack(places).astype(np.float32)).unflatten(0, shape),
        }

    @property
    def _pad(self) -> int:
        return self.language.pad

    def _ask(
        self, masks: tuple[np.ndarray, np.ndarray], rng: np.random.Generator
    ) -> tuple[list[list[int]], list[list[int]], np.ndarray]:
        own, others = (grid_mask(mask, self.grid) for mask in masks)
        read, said, places = [], [], draw_points(own, others, self.points, rng)
        for row, column in places:
            leaf, answer = self.language.point_tokens(row, column), int(self.language.answers[int(own[row, column])])
            read.append([*leaf, answer])
            said.append([IGNORE_INDEX] * (len(leaf) - 1) + [answer, self.language.end])
        return read, said, places


def _each_and_others(masks: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each mask of bool[K, H, W] with the union of all, what is also referred to."""
    union = np.logical_or.reduce(masks)
    return [(mask, union) for mask in masks]


class PointObjective(Objective):
    """Points as a lesson: cross-entropy on the answer and its end."""

    vlm: PixelVLM

    def __init__(self, vlm: PixelVLM, bf16: bool | None, attention: str = "sdpa", gaze: float = 0.0):
        super().__init__(vlm, bf16, attention)
        self.language, self.gaze = PointPromptFormat.of(vlm), gaze
        if gaze:
            require_attention_access(vlm)
            if len(self.language.point_tokens(0, 0)) != len(self.language.point_tokens(255, 255)):
                raise UserError("a gaze asks for a tokenizer whose numbers from 0 to 255 are single tokens")

    def forward(
        self, frames: Tensor, trunks: Tensor, lengths: Tensor, read: Tensor, said: Tensor, places: Tensor
    ) -> dict[str, Tensor]:
        """Return the loss, `right`, the share of places answered rightly, and `found`, of those that are 1.

        With a gaze, its loss is part of the loss, and what its heads give is among the figures.

        Args:
            frames: uint8[B, history, H, W, 3].
            trunks: int[B, E, T], of `PointPromptFormat.expression_tokens`, and `lengths` int[B, E].
            lengths: see `trunks`.
            read: int[B, E, K, L], places and answers.
            said: int[B, E, K, L], what shall be said next.
            places: float[B, E, K, 2], what is asked about, as shares of the height and width of `frames`.
        """
        looking: dict[str, Tensor] = {}
        with self.autocast():
            shared = self.language.shared.to(frames.device)
            features = self.vlm.encode_images(self.vlm.preprocess(frames))
            if self.gaze:
                read, said = concat_prefix_suffix(trunks, lengths, read, said)
                hidden, looks = forward_packed_with_attention(
                    self.vlm, features, shared, read, (COORDINATE_LAYER, PATCH_LAYER, ANSWER_LAYER)
                )
                looking = attention_supervision_loss(self.vlm, looks, self._sights(lengths, said, places, frames))
            else:
                hidden = forward_packed_tree(self.vlm, features, shared, trunks, lengths, read)
            logits = self.vlm.model.get_output_embeddings()(hidden[said != IGNORE_INDEX]).float()  # [A, V]
        out = self._figures(logits, said[said != IGNORE_INDEX])
        if looking:
            out["loss"] = out["loss"] + self.gaze * looking.pop("loss")
        return out | looking

    def _figures(self, logits: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        no, yes = self.language.answers.to(wanted.device)
        among = (wanted == no) | (wanted == yes)
        says_yes = logits[among, yes] > logits[among, no]
        truth = wanted[among] == yes
        return {
            "loss": functional.cross_entropy(logits, wanted),
            "right": (says_yes == truth).float().mean(),
            "found": says_yes[truth].float().mean(),
        }

    def _sights(self, lengths: Tensor, said: Tensor, places: Tensor, frames: Tensor) -> AttentionTargets:
        """Return what questions of `concat_prefix_suffix` and their answers shall look at."""
        height, width = frames.shape[2:4]
        answers, index = said != IGNORE_INDEX, torch.arange(said.shape[2], device=said.device)
        ends = answers.int().argmax(-1)  # [B, E * K]
        row = lengths.repeat_interleave(places.shape[2], dim=1)  # each place begins with its row
        return AttentionTargets(
            coordinates=torch.stack([row, row + COLUMN], dim=-1),
            ends=ends,
            later=answers & (index > ends[:, :, None]),
            tokens=target_patch_index(patch_edges(self.vlm, height, width), places.flatten(1, 2), height, width),
        )


@torch.no_grad()
def calibrate_logit_bias(
    vlm: PixelVLM, source: ReferringSource, grid: int, seed: int, pictures: int = 96, places: int = 256
) -> float:
    """Return what to add to the log-odds of points so that they say 1 as often as it is true, of places drawn evenly.

    Args:
        vlm: a model that was taught points.
        source: pictures and expressions, of those it was taught on.
        grid: places along each side.
        seed: of all drawing.
        pictures: looked at, with one expression each.
        places: asked about in each.
    """
    rng, language = np.random.default_rng([seed, 0x5F]), PointPromptFormat.of(vlm)
    odds, truth = [], []
    for _ in range(pictures):
        drawn = source.draw(rng, 1)
        asked = rng.integers(grid, size=(places, 2))
        features = vlm.encode_images(vlm.preprocess(drawn.frames[None]))
        answers = PointSampler(vlm, features, language, drawn.expressions[0]).point_logits(torch.from_numpy(asked))
        odds.append(answers.numpy().astype(np.float64))
        truth.append(grid_mask(drawn.masks[0], grid)[asked[:, 0], asked[:, 1]])
    share = np.clip(np.mean(truth), 1e-4, 1 - 1e-4)
    said = np.concatenate(odds)
    return float(optimize.brentq(lambda shift: special.expit(said + shift).mean() - share, -50, 50))


def concat_prefix_suffix(trunks: Tensor, lengths: Tensor, read: Tensor, said: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole questions and what shall be said next, int[B, E * K, T + L] each: every place behind its expression.

    Args:
        trunks: int[B, E, T], padded on the right to T, and `lengths` int[B, E].
        lengths: see `trunks`.
        read: int[B, E, K, L], padded on the right.
        said: int[B, E, K, L].
    """
    count, trunk, leaf = read.shape[2], trunks.shape[2], read.shape[3]
    place = torch.arange(trunk + leaf, device=read.device)
    own = lengths[:, :, None, None]
    source = torch.where(place < own, place, place - own + trunk).clamp_max(trunk + leaf - 1)
    source = source.expand(*read.shape[:3], -1)  # [B, E, K, T + L]
    behind = place >= own + leaf
    heads = trunks[:, :, None].expand(-1, -1, count, -1)
    whole = torch.cat([heads, read], dim=-1).gather(-1, source)
    wanted = torch.cat([torch.full_like(heads, IGNORE_INDEX), said], dim=-1).gather(-1, source)
    return whole.flatten(1, 2), wanted.masked_fill(behind, IGNORE_INDEX).flatten(1, 2)
