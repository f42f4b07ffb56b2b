"""Sinusoidal initial embeddings of a new model's numbers and positions.

A PVP prompt names a pixel by two numbers, and the decoder has to find the image token at that position. If numbers and
positions have the same sinusoidal encoding, one linear map finds every position; if both are random, each number has to
be learned separately. It also orders the answers: the logit of 130 rises with that of 131. All stay trainable.
"""

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from common.errors import UserError
from vlm.model import PixelVLM
from vlm.patch_expansion import PatchExpansion
from vlm.tokenizer import token_ids

WAVELENGTHS = (8.0, 512.0)  # the shortest and the longest, in units of the numbers
SCALE_WIDTH = 16  # dimensions that hold a number, and as many its square


def sinusoidal_encoding(
    values: Shaped[Tensor, "..."], width: int, wavelengths: tuple[float, float] = WAVELENGTHS
) -> Float[Tensor, "... width"]:
    """Return sines and cosines of values with wavelengths in geometric progression and a mean square of 1."""
    shortest, longest = wavelengths
    waves = torch.tensor(2 * math.pi / np.geomspace(longest, shortest, width // 2), dtype=torch.float32)
    angles = values.float()[..., None] * waves
    return math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=-1)


@torch.no_grad()
def init_number_embeddings(
    vlm: PixelVLM, amplitude: float = 0.15, scale: float = 0.0, wavelengths: tuple[float, float] = WAVELENGTHS
) -> None:
    """Encode the numbers 0 to 255 in their token embeddings; `UserError` if a number takes several tokens.

    With `scale`, the first `SCALE_WIDTH` dimensions hold the number instead, and as many its square, both of that root
    mean square: a Gaussian over numbers is then linear in the decoder's state. `wavelengths` are the shortest and the
    longest.
    """
    tokens = [token_ids(vlm.tokenizer, str(number)) for number in range(256)]
    if any(len(number) != 1 for number in tokens):
        raise UserError("expected a tokenizer whose numbers from 0 to 255 are single tokens")
    embeddings, numbers = vlm.model.get_input_embeddings().weight, torch.arange(256.0)
    encoding = amplitude * sinusoidal_encoding(numbers, embeddings.shape[1], wavelengths)
    if scale:
        value = (numbers - 127.5) / numbers.std(correction=0)
        square = (value**2 - 1) / (value**2).std(correction=0)
        encoding[:, :SCALE_WIDTH], encoding[:, SCALE_WIDTH : 2 * SCALE_WIDTH] = (
            scale * value[:, None],
            scale * square[:, None],
        )
    embeddings[torch.tensor(tokens).flatten()] = encoding.to(embeddings)


@torch.no_grad()
def init_position_embeddings(
    tower: nn.Module,
    cell_size: tuple[float, float],
    amplitude: float = 1.0,
    wavelengths: tuple[float, float] = WAVELENGTHS,
) -> None:
    """Encode rows and columns in a CLIP tower's position embeddings, half of the width each.

    `cell_size` is the height and width in pixels of the cells that prompts count in; images lie in the upper left of
    the square. `UserError` if the tower has no position embeddings.
    """
    embeddings: Any = getattr(tower, "embeddings", None)
    if not hasattr(embeddings, "position_embedding"):
        raise UserError(f"expected a CLIP tower with position embeddings, got {type(tower).__name__}")
    weight = embeddings.position_embedding.weight
    side, half = embeddings.image_size // embeddings.patch_size, weight.shape[1] // 2
    centers = (torch.arange(side) + 0.5) * embeddings.patch_size
    rows, columns = (centers / size - 0.5 for size in cell_size)
    row_encoding = sinusoidal_encoding(rows, half, wavelengths).repeat_interleave(side, 0)
    column_encoding = sinusoidal_encoding(columns, weight.shape[1] - half, wavelengths).repeat(side, 1)
    weight[1:] = amplitude * torch.cat([row_encoding, column_encoding], dim=-1).to(weight)


@torch.no_grad()
def init_patch_embedding(tower: nn.Module, amplitude: float) -> None:
    """Start a CLIP tower's patch embedding as the lowest cosine waves of each channel (those of a discrete cosine
    transform), so that a token holds its patch's colors from the first step on, louder than its position.

    Channels share the width equally; what is left of it starts as zeros.
    """
    embeddings: Any = tower.embeddings
    weight: Tensor = embeddings.patch_embedding.weight
    channels, size = weight.shape[1], weight.shape[-1]
    count = math.isqrt(weight.shape[0] // channels)
    at = (torch.arange(size) + 0.5) / size
    wave = torch.stack([torch.cos(math.pi * k * at) * (1 if k == 0 else math.sqrt(2)) for k in range(count)])
    basis = torch.einsum("ih,jw->ijhw", wave, wave).reshape(-1, size, size) / size**2
    weight.zero_()
    for channel in range(channels):
        weight[channel * count**2 : (channel + 1) * count**2, channel] = amplitude * basis.to(weight)


@torch.no_grad()
def init_cell_positions(
    expansion: PatchExpansion,
    cell_pixels: tuple[float, float],
    cell_size: tuple[float, float],
    amplitude: float,
    wavelengths: tuple[float, float] = WAVELENGTHS,
) -> None:
    """Encode rows and columns in the embeddings of expanded cells, half of the width each.

    `cell_pixels` is the size of the expansion's cells, `cell_size` that of those that prompts count in.
    """
    for embedding, own, asked, first in zip(
        (expansion.row_embedding, expansion.column_embedding), cell_pixels, cell_size, (True, False), strict=True
    ):
        weight = embedding.weight
        half = weight.shape[1] // 2
        positions = (torch.arange(len(weight)) + 0.5) * own / asked - 0.5
        part = slice(0, half) if first else slice(half, None)
        weight.zero_()
        weight[:, part] = amplitude * sinusoidal_encoding(positions, weight[:, part].shape[1], wavelengths).to(weight)
