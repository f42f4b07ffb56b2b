"""Patch expansion: a linear layer that gives each image token as the k x k cells of the image that it covers.

    tokens [B, rows * columns, D]  ->  cells [B, k rows * k columns, D], row by row over the image

An image token holds what a patch looks like, and pixel value prediction asks for a place within it. A decoder that
reads whole patches answers with their mean and learns nothing of what varies inside; one that reads a token a cell
does (`docs/log/`). The layer is the patch expanding of Swin-Unet (Cao et al. 2021), a sub-pixel convolution of kernel 1
(Shi et al. 2016). Play reads the tokens before it, so that an action costs no more.
"""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

NAME = "patch_expansion"  # the module's name in a model, and the prefix of its weights in a checkpoint
MAX_CELLS = 128  # rows and columns that have a position embedding
NOISE = 0.3  # of the initial weights, relative to the identity that copies a token into each of its cells


class PatchExpansion(nn.Module):
    """Expands each token of width D into `factor` x `factor` cells, and adds the embeddings of their row and column."""

    def __init__(self, width: int, factor: int):
        super().__init__()
        self.factor = factor
        self.linear = nn.Linear(width, factor * factor * width)
        self.row_embedding, self.column_embedding = nn.Embedding(MAX_CELLS, width), nn.Embedding(MAX_CELLS, width)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Start as a copy of the token in each cell with noise, and without positions."""
        width = self.linear.in_features
        noise = torch.randn(self.linear.weight.shape, generator=generator) * (NOISE / math.sqrt(width))
        self.linear.weight.copy_(torch.eye(width).repeat(self.factor**2, 1) + noise)
        self.linear.bias.zero_()
        for embedding in (self.row_embedding, self.column_embedding):
            embedding.weight.zero_()

    def forward(self, tokens: Float[Tensor, "B N D"], rows: int, columns: int) -> Float[Tensor, "B cells D"]:
        """Return the cells of images of rows x columns tokens, row by row."""
        k = self.factor
        cells = self.linear(tokens).view(len(tokens), rows, columns, k, k, -1)
        cells = cells.transpose(2, 3).reshape(len(tokens), rows * k, columns * k, -1)
        positions = self.row_embedding.weight[: rows * k, None] + self.column_embedding.weight[: columns * k]
        return (cells + positions.to(cells.dtype)).flatten(1, 2)


def expansion_of(weights: Mapping[str, Tensor]) -> PatchExpansion:
    """Return the module whose weights these are, by their names without prefix."""
    out, width = weights["linear.weight"].shape
    module = PatchExpansion(width, math.isqrt(out // width))
    module.load_state_dict(dict(weights))
    return module
