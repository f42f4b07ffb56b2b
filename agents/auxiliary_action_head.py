"""A small network beside the decoder, in training only, so that the encoder learns before the decoder can read it.

The gradient through a new decoder is thin: one answer attends to dozens of tokens. A two-layer network on all image
tokens, with the same targets, trains the encoder directly (docs/log). It is no part of the model.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vlm.model import PixelVLM

HIDDEN_SIZE = 512


class AuxiliaryActionHead(nn.Module):
    """Predicts the action in each of `games`, given as (rows, columns, actions), from a model's image tokens."""

    def __init__(self, vlm: PixelVLM, games: Mapping[str, tuple[int, int, int]]):
        super().__init__()
        self.nets = nn.ModuleDict()
        for game, (rows, columns, actions) in games.items():
            blank = torch.zeros(1, vlm.history, rows, columns, 3, dtype=torch.uint8)
            with torch.no_grad():
                size = vlm.encode_images(vlm.preprocess(blank)).tokens.numel()
            self.nets[game] = nn.Sequential(nn.Linear(size, HIDDEN_SIZE), nn.ReLU(), nn.Linear(HIDDEN_SIZE, actions))

    def forward(self, game: str, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B A"]:
        """Return the log-probabilities of a game's actions."""
        return self.nets[game](tokens.flatten(1)).float().log_softmax(-1)
