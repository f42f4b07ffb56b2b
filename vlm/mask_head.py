"""Masks for words: a light head on the encoder's own maps and the decoder's states over the expression.

    <image> [segmentation] the red ghost :          the words' states ask, the encoder's maps answer

There is no other segmentation model. The encoder's maps, from the coarsest to the finest, are added up on the finest
one's places (Lin et al. 2017, "FPN"), and each place is unfolded into features of every pixel that it covers (Shi et
al. 2016); the expression becomes one vector, whose products with the pixels' features are the mask's logits (dynamic
kernels, Tian et al. 2020, "CondInst"). What the encoder does not see, the mask cannot show: the head reads no pixels
of its own. How a place is unfolded is the same for all expressions, so that what objects look like is learnt from all
of them, and an expression has to say only which.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from vlm.checkpoint import CheckpointError
from vlm.errors import VlmError
from vlm.model import PixelVLM
from vlm.packing import pad_questions, read_questions
from vlm.prompts import MASK_PREFIX, mask_question

WEIGHTS, SHAPE = "mask_head.safetensors", "mask_head.json"
RARE = -3.0  # the logit that a new head gives to everything: most pixels belong to nothing that is meant


@dataclass(frozen=True)
class MaskShape:
    """What a head is made for. widths, strides: of the encoder's maps, the finest first; state: the decoder's
    width; width: of the head's own maps; fine: the number of features of a pixel.
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    state: int
    width: int = 64
    fine: int = 16


class EncoderMaps:
    """Catches the maps that a model's encoder makes while the model reads an image, the finest first."""

    def __init__(self, vlm: PixelVLM):
        self._caught: list[Tensor] = []
        vlm.encoder.register_forward_pre_hook(
            lambda _, inputs, words: (inputs, {**words, "output_hidden_states": True}), with_kwargs=True
        )
        vlm.encoder.register_forward_hook(self._catch)

    def _catch(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        states = [state if state.ndim == 4 else _to_map(state) for state in output.hidden_states]
        sizes = [tuple(state.shape[2:]) for state in states]
        self._caught = [state for number, state in enumerate(states) if sizes[number] not in sizes[number + 1 :]]

    def take(self) -> list[Tensor]:
        """Return the maps [B, C, h, w] of the last image read, of different sizes, the last of each size."""
        if not self._caught:
            raise VlmError("expected a model that has read an image")
        caught, self._caught = self._caught, []
        return caught


def _to_map(tokens: Tensor) -> Tensor:
    """Return the patches' states [B, D, h, w] of a square image's tokens [B, N, D], without a class token."""
    side = int(tokens.shape[1] ** 0.5)
    return tokens[:, tokens.shape[1] - side * side :].transpose(1, 2).unflatten(2, (side, side))


class MaskHead(nn.Module):
    """Logits of a mask for each of K expressions about each of B images."""

    def __init__(self, shape: MaskShape):
        super().__init__()
        self.shape, self.block = shape, shape.strides[0]
        self.sides = nn.ModuleList(nn.Conv2d(width, shape.width, 1) for width in shape.widths)
        self.smooth = nn.ModuleList(nn.Conv2d(shape.width, shape.width, 3, padding=1) for _ in shape.widths[1:])
        self.unfold = nn.Sequential(nn.GELU(), nn.Conv2d(shape.width, shape.fine * self.block**2, 1))
        self.word = nn.Sequential(nn.LayerNorm(shape.state), nn.Linear(shape.state, 4 * shape.width), nn.GELU())
        self.query = nn.Linear(4 * shape.width, shape.fine + 1)
        nn.init.constant_(self.query.bias[-1:], RARE)

    @classmethod
    def of(cls, vlm: PixelVLM, width: int = 64) -> "MaskHead":
        """Return a new head for a model."""
        pixels: Any = vlm.pixels(torch.zeros(1, vlm.history, 210, 160, 3, dtype=torch.uint8))
        if not isinstance(pixels, Tensor):
            raise VlmError(
                f"{type(vlm.model).__name__} reads images through its own processor, "
                "whose maps a mask head cannot place; ask for points in text (--mask points)"
            )
        maps = EncoderMaps(vlm)
        with torch.no_grad():
            vlm.image_embeddings(pixels)
        found = maps.take()
        widths, strides = tuple(m.shape[1] for m in found), tuple(pixels.shape[2] // m.shape[2] for m in found)
        return cls(MaskShape(widths, strides, vlm.model.get_input_embeddings().embedding_dim, width))

    def forward(self, maps: Sequence[Tensor], states: Tensor, shares: Tensor) -> Tensor:
        """Return logits float32[B, K, rows, columns], of the pixels that the encoder was shown.

        Args:
            maps: the encoder's, [B, C, h, w] each, the finest first.
            states, shares: of `expression_states`.
        """
        seen: Tensor | None = None
        for number in reversed(range(len(maps))):
            own = self.sides[number](maps[number])
            if seen is not None:
                own = own + functional.interpolate(seen, size=own.shape[2:], mode="nearest")
            seen = own + functional.gelu(self.smooth[number - 1](own)) if number else own
        assert seen is not None
        pixels = functional.pixel_shuffle(self.unfold(seen), self.block)  # [B, F, rows, columns]
        words = torch.einsum("bkld,bkl->bkd", self.word(states), shares.to(states.dtype))
        asked = self.query(words)  # [B, K, F + 1]
        logits = torch.einsum("bkf,bfhw->bkhw", asked[..., :-1], pixels) / self.shape.fine**0.5
        return logits.float() + asked[..., -1].float()[..., None, None]

    def save(self, directory: Path) -> None:
        """Write the head beside its model, which plain transformers loads all the same."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, Path(directory) / WEIGHTS)
        (Path(directory) / SHAPE).write_text(json.dumps(vars(self.shape), indent=1) + "\n")

    @classmethod
    def load(cls, directory: Path) -> "MaskHead":
        """Return the head of a checkpoint."""
        directory = Path(directory)
        if not (directory / WEIGHTS).is_file() or not (directory / SHAPE).is_file():
            raise CheckpointError(f"expected a checkpoint with a mask head, {WEIGHTS} and {SHAPE}, got {directory}")
        plain: dict[str, Any] = json.loads((directory / SHAPE).read_text())
        widths, strides = tuple(plain["widths"]), tuple(plain["strides"])
        head = cls(MaskShape(widths, strides, plain["state"], plain["width"], plain["fine"]))
        head.load_state_dict(load_file(directory / WEIGHTS))
        return head.eval()


def expression_tokens(vlm: PixelVLM, expressions: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `expression_states` reads: shared int[S], questions int[B, K, L] and their lengths int[B, K]."""
    tokenizer = vlm.tokenizer
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    shared = torch.tensor(tokenizer(MASK_PREFIX, add_special_tokens=False)["input_ids"])
    asked = [
        tokenizer([mask_question(w) for w in words], add_special_tokens=False)["input_ids"] for words in expressions
    ]
    return shared, *pad_questions(asked, pad)


def expression_states(
    vlm: PixelVLM, pixels: Tensor, shared: Tensor, questions: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the decoder's states over each expression, [B, K, L, D], and their shares float[B, K, L], 0 at padding.

    An image is read once for all expressions about it. The words share a half evenly, and the state behind them, which
    has read them all, has the other half.
    """
    hidden = read_questions(vlm, pixels, shared.to(pixels.device), questions.to(pixels.device))
    place, lengths = torch.arange(hidden.shape[2], device=hidden.device), lengths.to(hidden.device)[..., None]
    return hidden, ((place < lengths) / lengths + (place == lengths - 1)) / 2
