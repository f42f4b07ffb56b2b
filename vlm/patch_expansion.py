"""Patch expansion: a linear layer that gives each image token as the k x k cells of the image that it covers.

    tokens [B, rows * columns, D]  ->  cells [B, k rows * k columns, D], row by row over the image

An image token holds what a patch looks like, and pixel value prediction asks for a place within it. A decoder that
reads whole patches answers with their mean and learns nothing of what varies inside; one that reads a token a cell
does (`docs/log/`). The layer is the patch expanding of Swin-Unet (Cao et al. 2021), a sub-pixel convolution of kernel 1
(Shi et al. 2016). Play reads the tokens before it, so that an action costs no more.

With a skip connection (Ronneberger et al. 2015, "U-Net"), each cell also gets the encoder's own map at its place: an
encoder of coarse tokens, such as a ResNet at stride 32, then need not carry every color through its last stage.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from common.errors import UserError

NAME = "patch_expansion"  # the module's name in a model, and the prefix of its weights in a checkpoint
MAX_CELLS = 128  # rows and columns that have a position embedding
NOISE = 0.3  # of the initial weights, relative to the identity that copies a token into each of its cells


class PatchExpansion(nn.Module):
    """Expands each token of width D into `factor` x `factor` cells, and adds the embeddings of their row and column.

    skip_channels: of the encoder's map that has as many rows and columns as there are cells; 0: no skip connection.
    """

    def __init__(self, width: int, factor: int, skip_channels: int = 0):
        super().__init__()
        self.factor = factor
        self.linear = nn.Linear(width, factor * factor * width)
        self.skip = nn.Linear(skip_channels, width) if skip_channels else None
        self.row_embedding, self.column_embedding = nn.Embedding(MAX_CELLS, width), nn.Embedding(MAX_CELLS, width)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Start as a copy of the token in each cell with noise, and without positions."""
        width = self.linear.in_features
        noise = torch.randn(self.linear.weight.shape, generator=generator) * (NOISE / math.sqrt(width))
        self.linear.weight.copy_(torch.eye(width).repeat(self.factor**2, 1) + noise)
        self.linear.bias.zero_()
        if self.skip is not None:
            self.skip.weight.copy_(torch.randn(self.skip.weight.shape, generator=generator))
            self.skip.weight.div_(math.sqrt(self.skip.in_features))
            self.skip.bias.zero_()
        for embedding in (self.row_embedding, self.column_embedding):
            embedding.weight.zero_()

    def forward(
        self, tokens: Float[Tensor, "B N D"], rows: int, columns: int, maps: Sequence[Tensor] = ()
    ) -> Float[Tensor, "B cells D"]:
        """Return the cells of images of rows x columns tokens, row by row.

        `maps` are the encoder's hidden states; `UserError` if a skip connection finds none [B, C, k rows, k columns].
        """
        k = self.factor
        cells = self.linear(tokens).view(len(tokens), rows, columns, k, k, -1)
        cells = cells.transpose(2, 3).reshape(len(tokens), rows * k, columns * k, -1)
        if self.skip is not None:
            cells = cells + self.skip(_map_of_size(maps, (rows * k, columns * k)).movedim(1, -1))
        positions = self.row_embedding.weight[: rows * k, None] + self.column_embedding.weight[: columns * k]
        return (cells + positions.to(cells.dtype)).flatten(1, 2)


def _map_of_size(maps: Sequence[Tensor], size: tuple[int, int]) -> Float[Tensor, "B C H W"]:
    """Return the map of a size."""
    for found in maps:
        if found.ndim == 4 and tuple(found.shape[2:]) == size:
            return found
    sizes = [tuple(one.shape[2:]) for one in maps]
    raise UserError(f"expected a map of the encoder with {size[0]} x {size[1]} cells, got maps of {sizes}")


def add_expansion(vlm: Any, factor: int, skip: bool, generator: torch.Generator) -> PatchExpansion:
    """Add a new patch expansion to a `PixelVLM` of ours."""
    expansion = PatchExpansion(vlm.token_width, factor, skip_channels=_skip_channels(vlm, factor) if skip else 0)
    expansion.init_weights(generator)
    vlm.model.add_module(NAME, expansion.to(vlm.device))
    return expansion


@torch.no_grad()
def _skip_channels(vlm: Any, factor: int) -> int:
    """Return the channels of the encoder's map at the resolution of the cells."""
    images = vlm.preprocess(torch.zeros(1, vlm.history, 64, 64, 3, dtype=torch.uint8))
    rows, columns = vlm.token_grid(*images.shape[2:])
    maps = vlm.encode_images(images, output_hidden_states=True).hidden_states
    return int(_map_of_size(maps, (rows * factor, columns * factor)).shape[1])


def expansion_of(weights: Mapping[str, Tensor]) -> PatchExpansion:
    """Return the module whose weights these are, by their names without prefix."""
    out, width = weights["linear.weight"].shape
    skip = weights["skip.weight"].shape[1] if "skip.weight" in weights else 0
    module = PatchExpansion(width, math.isqrt(out // width), skip)
    module.load_state_dict(dict(weights))
    return module
