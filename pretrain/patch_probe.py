"""What a model's image tokens tell of detail: each its own patch's colour and its own place, by linear probes.

A probe is ridge regression from single tokens, as the decoder would get them before the connector, on mosaics of 1 to 8
cells a side, fitted on half of the mosaics and asked about the others. Nothing of them can be remembered.
"""

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pretrain.data.synthetic_images import mosaic
from pretrain.semantic_probe import r_squared, read_tokens, ridge
from vlm.model import PixelModel
from vlm.training.attention_supervision import patch_edges

MOSAICS, HEIGHT, WIDTH, FINEST = 48, 210, 160, 8
WAVES = 8  # of the code of places
SEED = 30_000


@torch.no_grad()
def measure_patch_probe(model: PixelModel) -> dict[str, float]:
    """Return what probes read off a model's image tokens.

    `colour` is the mean absolute error, of 255, for the mean colour of a token's own patch, and `colour_mean` that of
    answering the mosaic's mean; `place` is R^2 of the code of its place. Patches within the image are asked about.
    """
    rng = np.random.default_rng(SEED)
    images = np.stack([mosaic(rng, HEIGHT, WIDTH, int(rng.integers(1, FINEST + 1))) for _ in range(MOSAICS)])
    down, along = (borders.round().int().tolist() for borders in patch_edges(model, HEIGHT, WIDTH))
    cells = [(rows, columns) for rows in pairwise(down) for columns in pairwise(along)]
    inside = [number for number, (rows, columns) in enumerate(cells) if rows[1] <= HEIGHT and columns[1] <= WIDTH]
    tokens = read_tokens(model, images)[:, inside].numpy()  # [N, T, D]
    colours = np.stack([patch_colours(image, [cells[number] for number in inside]) for image in images])  # [N, T, 3]
    middles = torch.tensor([[sum(rows) / 2 / HEIGHT, sum(columns) / 2 / WIDTH] for rows, columns in cells])[inside]
    places = np.broadcast_to(place_code(middles, WAVES).numpy(), (MOSAICS, len(inside), 4 * WAVES))
    known, asked = np.split(tokens, 2)
    read = {name: _probe(known, asked, wanted) for name, wanted in (("colour", colours), ("place", places))}
    whole = images.mean((1, 2))[MOSAICS // 2 :, None]
    return {
        "colour": float(np.abs(read["colour"] - colours[MOSAICS // 2 :]).mean()),
        "colour_mean": float(np.abs(whole - colours[MOSAICS // 2 :]).mean()),
        "place": r_squared(read["place"], places[MOSAICS // 2 :]),
    }


def place_code(places: Tensor, waves: int) -> Tensor:
    """Return sines and cosines [..., 4 * waves] of places [..., 2]: sines of rows, of columns, then cosines."""
    lengths = torch.tensor(np.geomspace(0.25, 2.0, waves), dtype=torch.float32)
    angles = (2 * math.pi * places.float()[..., None] / lengths).flatten(-2)  # [..., 2 * waves]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def patch_colours(image: np.ndarray, cells: list[tuple[tuple[int, int], tuple[int, int]]]) -> np.ndarray:
    """Return the mean colours [T, 3] of parts of an image, each ((top, bottom), (left, right))."""
    return np.stack([image[top:bottom, left:right].mean((0, 1)) for (top, bottom), (left, right) in cells])


def _probe(known: np.ndarray, asked: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return a probe's answers for `asked` [M, T, D], fitted to the first of `wanted` [N, T, K] on `known`."""
    flat = lambda part: part.reshape(-1, part.shape[-1])  # noqa: E731
    return ridge(flat(known), flat(wanted[: len(known)]), flat(asked)).reshape(*asked.shape[:2], -1)
