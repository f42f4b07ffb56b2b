"""A plain net beside the decoder, in training only, so that the encoder learns before the decoder can read it.

What the encoder is told through a decoder is thin at first: one answer looks at dozens of tokens at once. A two-layer
net that reads all image tokens for the same actions tells it directly, and the decoder follows: Ms. Pac-Man's targets
reached 1.07 nats after 400 steps with it and 1.31 without (`docs/log/`). It is no part of the model: play,
checkpoints and whoever loads them know nothing of it.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlm.checkpoint import CheckpointError
from vlm.model import PixelVLM

WIDTH = 512
FILE = "readout.safetensors"  # in a training's directory and its checkpoints, beside what is saved of the model


class AuxiliaryActionHead(nn.Module):
    """Reads the actions of each game off a model's image tokens.

    Args:
        vlm: the model.
        games: for each game, the rows and columns of its frames and the number of its actions.
    """

    def __init__(self, vlm: PixelVLM, games: Mapping[str, tuple[int, int, int]]):
        super().__init__()
        self.nets = nn.ModuleDict()
        for game, (rows, columns, actions) in games.items():
            blank = torch.zeros(1, vlm.history, rows, columns, 3, dtype=torch.uint8)
            with torch.no_grad():
                width = vlm.encode_images(vlm.preprocess(blank)).tokens.numel()
            self.nets[game] = nn.Sequential(nn.Linear(width, WIDTH), nn.ReLU(), nn.Linear(WIDTH, actions))

    def forward(self, game: str, tokens: Tensor) -> Tensor:
        """Return float32[B, A], log-probabilities of a game's actions, for image tokens [B, N, D]."""
        return self.nets[game](tokens.flatten(1)).float().log_softmax(-1)

    def save(self, directory: Path) -> None:
        """Write the weights into a training's checkpoint."""
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, directory / FILE)

    def restore(self, directory: Path) -> None:
        """Take the weights of `save`."""
        if not (directory / FILE).is_file():
            raise CheckpointError(f"{directory} holds no {FILE}: was its training begun with --readout 0?")
        found = load_file(directory / FILE)
        if {name: found[name].shape for name in found} != {name: own.shape for name, own in self.state_dict().items()}:
            raise CheckpointError(f"{directory / FILE} is of other games; move it away to begin with a new readout")
        self.load_state_dict(found)
