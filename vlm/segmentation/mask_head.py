"""Masks for words: a light head on the encoder's own maps and the decoder's states over the expression.

    <image> [segmentation] the red ghost :          the words' states ask, the encoder's maps answer

There is no other segmentation model. The encoder's maps, from the coarsest to the finest, are added up on the finest
one's places (Lin et al. 2017, "FPN"), and each place is unfolded into features of every pixel that it covers (Shi et
al. 2016); the expression becomes one vector, whose products with the pixels' features are the mask's logits (dynamic
kernels, Tian et al. 2020, "CondInst"). What the encoder does not see, the mask cannot show: the head reads no pixels
of its own. A tower of one coarse map is looked at closer: its own patch embedding is laid over the image in smaller
strides. How a place is unfolded is the same for all expressions, so that what objects look like is learnt from all of
them, and an expression has to say only which: how they look, and where. Where is a sum of waves over rows and of waves
over columns, whose sizes the expression gives: without them a head has to learn from masks what a place is, and takes
several times as long (`docs/log/`).
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

from common.errors import UserError
from vlm.checkpoint import CheckpointError
from vlm.decoding.packing import forward_packed, pad_token_lists
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM
from vlm.prompts import MASK_PREFIX, mask_question

WEIGHTS, SHAPE = "mask_head.safetensors", "mask_head.json"
WIDTH = 96
CLOSE = 8  # pixels: an encoder whose finest map has a larger stride is looked at closer
LOOKS = 2  # how often a head looks at what lies around each place of the finest map
RARE = -3.0  # the logit that a new head gives to everything: most pixels belong to nothing that is meant


@dataclass(frozen=True)
class MaskHeadConfig:
    """What a head is made for. widths, strides: of the encoder's maps, the finest first; state: the decoder's
    width; width: of the head's own maps; fine: the number of features of a pixel; waves: that tell a row, and as many a
    column, of 1 to so many half turns over the image, a sine and a cosine of each.
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...]
    state: int
    width: int = WIDTH
    fine: int = 32
    waves: int = 6


def encoder_maps(vlm: PixelVLM, features: ImageFeatures, valid_size: tuple[int, int] | None = None) -> list[Tensor]:
    """Return the encoder's maps [B, C, h, w] of images, the finest first, of sizes that never grow.

    Of an encoder of several strides, the last map of each; of a tower of patches of one size, its dense patch embedding
    (`dense_patch_embedding`), the hidden states of the middle layer and those of the last.

    Args:
        vlm: the model.
        features: encoded with `output_hidden_states`.
        valid_size: rows and columns of the image, where it does not fill what the encoder reads. The finest map then
            ends where nothing behind it is seen in the image's mask.
    """
    if not features.hidden_states:
        raise UserError("expected features with the encoder's hidden states: encode_images(..., True)")
    pixels = features.inputs["pixel_values"]
    maps = [state if state.ndim == 4 else _to_map(state) for state in features.hidden_states]
    sizes = [tuple(state.shape[2:]) for state in maps]
    if len(set(sizes)) == 1:
        maps = [maps[len(maps) // 2], maps[-1]]
    else:
        maps = [state for index, state in enumerate(maps) if sizes[index] not in sizes[index + 1 :]]
    embedding = _patch_embedding(vlm.encoder)
    if embedding is not None:
        return [dense_patch_embedding(embedding, pixels, valid_size), *maps]
    if valid_size:
        strides = (whole // places for whole, places in zip(pixels.shape[2:], maps[0].shape[2:], strict=True))
        rows, columns = (seen_places(n, stride) for n, stride in zip(valid_size, strides, strict=True))
        maps[0] = maps[0][:, :, :rows, :columns]
    return maps


def _patch_embedding(encoder: nn.Module) -> nn.Conv2d | None:
    """Return the convolution that cuts images into patches larger than `CLOSE`, if the encoder begins with one."""
    first = next((module for module in encoder.modules() if isinstance(module, nn.Conv2d)), None)
    whole = first is not None and first.kernel_size == first.stride and first.stride[0] > CLOSE
    return first if whole else None


def seen_places(pixels: int, stride: int) -> int:
    """Return how many places of the finest map, along a side, a head sees from so many pixels of a picture."""
    return -(-pixels // stride) + LOOKS


def dense_patch_embedding(embedding: nn.Conv2d, pixels: Tensor, shown: tuple[int, int] | None = None) -> Tensor:
    """Return a patch embedding's map [B, C, h, w] in the largest stride up to `CLOSE` that divides the patches' side.

    Each place is that of a patch around it; what lies outside the image is black. With `shown`, rows and columns of
    a picture, it ends where a head sees nothing more from there.
    """
    side = embedding.stride[0]
    stride = max(n for n in range(1, CLOSE + 1) if side % n == 0)
    left = (side - stride) // 2
    right = side - stride - left
    around = functional.pad(pixels.to(embedding.weight.dtype), (left, right, left, right))
    if shown:
        rows, columns = (side + stride * (seen_places(n, stride) - 1) for n in shown)
        around = around[:, :, :rows, :columns]
    return functional.conv2d(around, embedding.weight, embedding.bias, stride=stride)


def _to_map(tokens: Tensor) -> Tensor:
    """Return the patches' states [B, D, h, w] of a square image's tokens [B, N, D], without a class token."""
    side = int(tokens.shape[1] ** 0.5)
    return tokens[:, tokens.shape[1] - side * side :].transpose(1, 2).unflatten(2, (side, side))


class _Side(nn.Module):
    """One of the encoder's maps in the head's width, whatever its scale."""

    def __init__(self, width: int, own: int):
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), nn.Conv2d(width, own, 1)

    def forward(self, found: Tensor) -> Tensor:
        return self.mix(self.norm(found.movedim(1, -1)).movedim(-1, 1))


class _Near(nn.Module):
    """What lies around each place, added to it."""

    def __init__(self, width: int):
        super().__init__()
        self.look = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, seen: Tensor) -> Tensor:
        return seen + self.look(functional.gelu(seen))


class MaskHead(nn.Module):
    """Logits of a mask for each of K expressions about each of B images."""

    def __init__(self, shape: MaskHeadConfig):
        super().__init__()
        self.shape, self.block = shape, shape.strides[0]
        self.sides = nn.ModuleList(_Side(width, shape.width) for width in shape.widths)
        looks = [LOOKS, *(1 for _ in shape.widths[1:])]  # where objects lie, the finest map, twice as far
        self.near = nn.ModuleList(nn.Sequential(*(_Near(shape.width) for _ in range(n))) for n in looks)
        self.unfold = nn.Conv2d(shape.width, shape.fine * self.block**2, 1)
        self.word = nn.Sequential(nn.LayerNorm(shape.state), nn.Linear(shape.state, 4 * shape.width), nn.GELU())
        self.query = nn.Linear(4 * shape.width, shape.fine + 4 * shape.waves + 1)
        nn.init.constant_(self.query.bias[-1:], RARE)

    @classmethod
    def of(cls, vlm: PixelVLM, width: int = WIDTH) -> "MaskHead":
        """Return a new head for a model."""
        pixels: Any = vlm.preprocess(torch.zeros(1, vlm.history, 210, 160, 3, dtype=torch.uint8))
        if not isinstance(pixels, Tensor):
            raise UserError(
                f"{type(vlm.model).__name__} reads images through its own processor, "
                "whose maps a mask head cannot place; ask for points in text (--mask points)"
            )
        with torch.no_grad():
            found = encoder_maps(vlm, vlm.encode_images(pixels, output_hidden_states=True))
        widths, strides = tuple(m.shape[1] for m in found), tuple(pixels.shape[2] // m.shape[2] for m in found)
        return cls(MaskHeadConfig(widths, strides, vlm.model.get_input_embeddings().embedding_dim, width))

    def forward(self, maps: Sequence[Tensor], states: Tensor, shares: Tensor) -> Tensor:
        """Return logits float32[B, K, rows, columns], of the pixels that the finest map covers.

        Args:
            maps: the encoder's, [B, C, h, w] each, the finest first, which may end earlier (`encoder_maps`).
            states, shares: of `expression_states`.
        """
        seen: Tensor | None = None
        for number in reversed(range(len(maps))):
            own = self.sides[number](maps[number])
            if seen is not None:
                grown = self.shape.strides[number + 1] // self.shape.strides[number]
                size = [
                    max(places, coarse * grown) for places, coarse in zip(own.shape[2:], seen.shape[2:], strict=True)
                ]
                seen = functional.interpolate(seen, size=size, mode="nearest")
                own = own + seen[:, :, : own.shape[2], : own.shape[3]]
            seen = self.near[number](own)
        assert seen is not None
        words = torch.einsum("bkld,bkl->bkd", self.word(states), shares.to(states.dtype))
        looks, rows, columns, common = self.query(words).split(
            [self.shape.fine, 2 * self.shape.waves, 2 * self.shape.waves, 1], dim=-1
        )  # [B, K, ...]
        logits = self._unfold(seen, looks).float()
        down, along = (
            said.float()
            @ sinusoidal_features(max(places * self.shape.strides[-1], n), self.shape.waves, logits.device)[:, :n]
            for said, places, n in zip((rows, columns), maps[-1].shape[2:], logits.shape[2:], strict=True)
        )
        return logits + down[..., :, None] + along[..., None, :] + common.float()[..., None]

    def _unfold(self, seen: Tensor, looks: Tensor) -> Tensor:
        """Return the products [B, K, rows, columns] of looks [B, K, F] with every pixel's features, which are never
        made: a look and the unfolding of a place are one kernel, since both are linear.
        """
        unfold, block = self.unfold, self.block**2
        weight = unfold.weight.view(-1, block, unfold.in_channels)  # [F, j, W]
        assert unfold.bias is not None
        bias = unfold.bias.view(-1, block)  # [F, j]
        looks = looks / self.shape.fine**0.5
        kernels = torch.einsum("bkf,fjw->bkjw", looks, weight.to(looks.dtype)).flatten(1, 2)  # [B, K * j, W]
        offsets = (looks @ bias.to(looks.dtype)).flatten(1)  # [B, K * j]
        found = kernels @ functional.gelu(seen).flatten(2) + offsets[..., None]
        return functional.pixel_shuffle(found.unflatten(-1, seen.shape[2:]), self.block)

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
        try:
            head = cls(
                MaskHeadConfig(**{**plain, "widths": tuple(plain["widths"]), "strides": tuple(plain["strides"])})
            )
            head.load_state_dict(load_file(directory / WEIGHTS))
        except (KeyError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                f"{directory / WEIGHTS} is no mask head of this version: {str(error).splitlines()[0]}"
            ) from error
        return head.eval()


def sinusoidal_features(places: int, count: int, device: torch.device) -> Tensor:
    """Return float32[2 * count, places]: sines and cosines of 1 to `count` half turns over a line of places."""
    turns = torch.arange(places, device=device) * (torch.pi / places)
    angles = torch.arange(1, count + 1, device=device)[:, None] * turns
    return torch.cat([angles.sin(), angles.cos()])


def expression_tokens(vlm: PixelVLM, expressions: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `expression_states` reads: shared int[S], questions int[B, K, L] and their lengths int[B, K]."""
    tokenizer = vlm.tokenizer
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    shared = torch.tensor(tokenizer(MASK_PREFIX, add_special_tokens=False)["input_ids"])
    asked = [
        tokenizer([mask_question(w) for w in words], add_special_tokens=False)["input_ids"] for words in expressions
    ]
    return shared, *pad_token_lists(asked, pad)


def expression_states(
    vlm: PixelVLM, features: ImageFeatures, shared: Tensor, questions: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the decoder's states over each expression, [B, K, L, D], and their shares float[B, K, L], 0 at padding.

    An image is read once for all expressions about it. The words share a half evenly, and the state behind them, which
    has read them all, has the other half.
    """
    device = features.tokens.device
    hidden = forward_packed(vlm, features, shared.to(device), questions.to(device))
    place, lengths = torch.arange(hidden.shape[2], device=hidden.device), lengths.to(hidden.device)[..., None]
    return hidden, ((place < lengths) / lengths + (place == lengths - 1)) / 2
