"""The dense color loss: a linear layer reads the colors of each image token's cells off the token.

It tells the encoder what its tokens have to hold while the decoder cannot ask for it yet. The layer trains beside the
model and is no part of it.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from common.errors import UserError
from pretrain.pvp_questions import parse_grid
from vlm.model import PixelVLM


class DenseColorHead(nn.Module):
    """Reads the `cells` x `cells` grid cells of each token, for images of one size and grid."""

    def __init__(self, vlm: PixelVLM, grid: str, size: tuple[int, int]):
        super().__init__()
        padded = vlm.image_config.padded_size(*size)
        self.tokens = vlm.cell_grid(*padded)
        cell_size = parse_grid(grid).cell_size(*size)
        per_token = [side / count / cell for side, count, cell in zip(padded, self.tokens, cell_size, strict=True)]
        self.cells = round(per_token[0])
        if self.cells < 1 or any(abs(number - self.cells) > 1e-6 for number in per_token):
            height, width = (round(number, 2) for number in per_token)
            raise UserError(
                f"--dense-loss-weight needs a grid whose cells lie whole in the image tokens, got {height} x {width} "
                f"cells a token on grid {grid}"
            )
        self.linear = nn.Linear(vlm.token_width, 3 * self.cells**2)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B rows columns 3"]:
        """Return the colors of the cells of the whole encoder input, from 0 to 1."""
        (rows, columns), m = self.tokens, self.cells
        colors = self.linear(tokens).view(len(tokens), rows, columns, m, m, 3)
        return colors.transpose(2, 3).reshape(len(tokens), rows * m, columns * m, 3)

    def loss(self, tokens: Float[Tensor, "B N D"], true: UInt8[Tensor, "B R C 3"]) -> Tensor:
        """Return the mean absolute error, from 0 to 1, at the cells of the images."""
        found = self(tokens)[:, : true.shape[1], : true.shape[2]]
        return (found.float() - true / 255).abs().mean()


def new_dense_head(vlm: PixelVLM, grid: str, size: tuple[int, int], seed: int) -> DenseColorHead:
    """Return a head with weights drawn from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DenseColorHead(vlm, grid, size).to(vlm.device)
