"""Where a new model's numbers and places start from: one code of waves, so that near is alike from the first step.

A question names a place by two numbers, and the decoder has to find the image token at that place: the score of
query and key is a product of the numbers' embeddings and the tower's position embedding. If both are made of the same
waves, one small map finds every place; if both are random, each number has to be learnt by itself. The same code makes
the answers an ordered scale: the logit of 130 rises with that of 131. Everything remains trainable.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import UserError
from vlm.model import PixelVLM

LONGEST_WAVE, SHORTEST_WAVE = 512, 8  # in units of the numbers


def sinusoidal_encoding(
    values: Tensor, width: int, longest: float = LONGEST_WAVE, shortest: float = SHORTEST_WAVE
) -> Tensor:
    """Return sines and cosines [..., width] of values [...], with waves in geometric order and a mean square of 1."""
    lengths = np.geomspace(longest, shortest, width // 2)
    angles = values.float()[..., None] * torch.tensor(2 * math.pi / lengths, dtype=torch.float32)
    return math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=-1)


@torch.no_grad()
def init_number_embeddings(vlm: PixelVLM, amplitude: float = 0.15) -> None:
    """Give the numbers 0 to 255 the embeddings of the code; `UserError` where a number takes several tokens."""
    tokens = vlm.tokenizer([str(number) for number in range(256)], add_special_tokens=False)["input_ids"]
    if any(len(number) != 1 for number in tokens):
        raise UserError("expected a tokenizer whose numbers from 0 to 255 are single tokens")
    table = vlm.model.get_input_embeddings().weight
    table[torch.tensor(tokens).flatten()] = amplitude * sinusoidal_encoding(torch.arange(256), table.shape[1]).to(table)


@torch.no_grad()
def init_position_embeddings(
    tower: nn.Module, height: int, width: int, grid: int | None, amplitude: float = 1.0
) -> None:
    """Give a CLIP tower's positions the code of their rows and columns, half of the width each.

    Args:
        tower: a CLIP vision tower, of a VLM or of a CLIP.
        height: rows of the images that will be asked about, which lie in the square_size's upper left.
        width: their columns.
        grid: the grid that questions count on; None for pixels.
        amplitude: the code's root mean square.
    """
    embeddings = getattr(tower, "embeddings", None)
    table = getattr(embeddings, "position_embedding", None)
    if embeddings is None or table is None:
        raise UserError(f"expected a CLIP tower with position embeddings, got {type(tower).__name__}")
    side, half = embeddings.image_size // embeddings.patch_size, table.weight.shape[1] // 2
    middles = (torch.arange(side) + 0.5) * embeddings.patch_size
    rows, columns = (middles * (grid / size if grid else 1) - 0.5 for size in (height, width))
    code = torch.cat(
        [
            sinusoidal_encoding(rows, half)[:, None].expand(-1, side, -1),
            sinusoidal_encoding(columns, table.weight.shape[1] - half)[None].expand(side, -1, -1),
        ],
        dim=-1,
    )
    table.weight[1:] = amplitude * code.flatten(0, 1).to(table.weight)
