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
from vlm.tokenizer import token_ids

LONGEST_WAVE, SHORTEST_WAVE = 512, 8  # wavelengths, in units of the numbers


def sinusoidal_encoding(
    values: Shaped[Tensor, "..."], width: int, longest: float = LONGEST_WAVE, shortest: float = SHORTEST_WAVE
) -> Float[Tensor, "... width"]:
    """Return sines and cosines of values with wavelengths in geometric progression and a mean square of 1."""
    wavelengths = np.geomspace(longest, shortest, width // 2)
    angles = values.float()[..., None] * torch.tensor(2 * math.pi / wavelengths, dtype=torch.float32)
    return math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=-1)


@torch.no_grad()
def init_number_embeddings(vlm: PixelVLM, amplitude: float = 0.15) -> None:
    """Encode the numbers 0 to 255 in their token embeddings; `UserError` if a number takes several tokens."""
    tokens = [token_ids(vlm.tokenizer, str(number)) for number in range(256)]
    if any(len(number) != 1 for number in tokens):
        raise UserError("expected a tokenizer whose numbers from 0 to 255 are single tokens")
    embeddings = vlm.model.get_input_embeddings().weight
    encoding = sinusoidal_encoding(torch.arange(256), embeddings.shape[1])
    embeddings[torch.tensor(tokens).flatten()] = amplitude * encoding.to(embeddings)


@torch.no_grad()
def init_position_embeddings(
    tower: nn.Module, height: int, width: int, grid: int | None, amplitude: float = 1.0
) -> None:
    """Encode rows and columns in a CLIP tower's position embeddings, half of the width each.

    The images have `height` rows and `width` columns, in the upper left of the square. `grid` is the number of cells
    along each side that prompts count in, None for pixels. `UserError` if the tower has no position embeddings.
    """
    embeddings: Any = getattr(tower, "embeddings", None)
    if not hasattr(embeddings, "position_embedding"):
        raise UserError(f"expected a CLIP tower with position embeddings, got {type(tower).__name__}")
    weight = embeddings.position_embedding.weight
    side, half = embeddings.image_size // embeddings.patch_size, weight.shape[1] // 2
    centers = (torch.arange(side) + 0.5) * embeddings.patch_size
    rows, columns = (centers * (grid / size if grid else 1) - 0.5 for size in (height, width))
    row_encoding = sinusoidal_encoding(rows, half).repeat_interleave(side, 0)
    column_encoding = sinusoidal_encoding(columns, weight.shape[1] - half).repeat(side, 1)
    weight[1:] = amplitude * torch.cat([row_encoding, column_encoding], dim=-1).to(weight)
