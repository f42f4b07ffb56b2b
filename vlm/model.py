"""`PixelVLM`: a transformers vision-language model, its tokenizer and the one way of showing it frames.

Encoder, connector and decoder are reached by role through the library's accessors, so that the rest of the house
does not depend on how a model class names its parts.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerFast

from common.errors import UserError
from vlm.image_features import ImageFeatures, stack_image_tokens


@dataclass(frozen=True)
class ImageConfig:
    """How a model is shown frames; part of every checkpoint.

    history: frames, the present one included; square_size: the side of the square that frames are laid on, for an encoder
    that asks for one size, or None; stride: without a square_size, rows and columns are filled up to multiples of it;
    motion: what the differences between frames are multiplied by; places: whether two planes tell rows and columns,
    without which a convolution knows its place from the borders alone.
    """

    history: int = 1
    square_size: int | None = None
    stride: int = 32
    frame_diff_scale: float = 1.0
    coordinate_channels: bool = False

    @property
    def channels(self) -> int:
        """The number of planes that the encoder reads."""
        return 3 * self.history + 2 * self.coordinate_channels


class FixedStatsBatchNorm2d(nn.BatchNorm2d):
    """A batch norm whose statistics stay as they are: a scale and a shift of each channel, in training as well.

    A batch here is of one game, and its statistics would be those of no other game.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return [B, C, H, W], scaled and shifted."""
        return functional.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class StridedPointwiseConv2d(nn.Conv2d):
    """A convolution of 1 x 1 in strides, over the places that it reads, taken out first: the same products.

    Left to oneDNN such a one writes past its memory in float32 on AVX-512 processors (torch 2.13): from 8 channels or
    fewer to 32 or fewer, for some batches and numbers of threads, and the process ends sooner or later.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return [B, C, H, W] of every n-th row and column."""
        if self.padding != (0, 0):  # a foreign model's: its places begin in the border
            return super().forward(input)
        down, along = self.stride
        return functional.conv2d(input[:, :, ::down, ::along], self.weight, self.bias, groups=self.groups)


def _replace_layer(module: nn.Module) -> None:
    """Let a module that needs it be of our own class, in place: batch norms, and convolutions of 1 x 1 in strides."""
    if type(module) is nn.BatchNorm2d:
        module.__class__ = FixedStatsBatchNorm2d
    elif type(module) is nn.Conv2d and module.kernel_size == (1, 1) and module.stride != (1, 1):
        module.__class__ = StridedPointwiseConv2d


def _pad_and_concat(planes: list[Tensor], rows: int, columns: int) -> Tensor:
    """Return planes [B, H, W, C] side by side in [B, rows, columns, all channels], black where they do not reach."""
    if torch.jit.is_tracing():  # a traced graph knows no slices that are written to, and joins planes fast
        fill = [(0, 0, 0, columns - plane.shape[2], 0, rows - plane.shape[1]) for plane in planes]
        return torch.cat([functional.pad(plane, by) for plane, by in zip(planes, fill, strict=True)], dim=-1)
    seen = planes[0].new_zeros(len(planes[0]), rows, columns, sum(plane.shape[-1] for plane in planes))
    for plane, part in zip(planes, seen.split([plane.shape[-1] for plane in planes], dim=-1), strict=True):
        part[:, : plane.shape[1], : plane.shape[2]] = plane
    return seen


class PixelModel(ABC):
    """A model and what it takes to ask it: `model` (transformers' own class), `tokenizer` and `view`.

    `kind`: the word for it in checkpoints; `library`: the class of transformers that reads it.
    """

    kind: str
    library: Any

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, image_config: ImageConfig):
        self.model, self.tokenizer, self.image_config = model, tokenizer, image_config
        for module in model.modules():
            _replace_layer(module)

    @property
    @abstractmethod
    def encoder(self) -> nn.Module:
        """The vision encoder."""

    def save_tokenizer(self, directory: Path) -> None:
        """Write what turns text into tokens, as transformers' own files."""
        self.tokenizer.save_pretrained(directory)

    @property
    def history(self) -> int:
        """How many frames it sees."""
        return self.image_config.history

    @property
    def square_size(self) -> int | None:
        """The side of the square that its frames are laid on, if any."""
        return self.image_config.square_size

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def set_attn_implementation(self, kind: str) -> None:
        """Compute attention eagerly or by sdpa; parts that have no sdpa, or no attention at all, stay eager."""
        config = self.model.config
        parts = {id(part): name for name in config.sub_configs if (part := getattr(config, name, None)) is not None}
        plain = {
            parts[id(module.config)]
            for module in self.model.modules()
            if isinstance(module, PreTrainedModel) and id(module.config) in parts and not module._supports_sdpa
        }
        kinds = {name: "eager" if name in plain else kind for name in parts.values()}
        self.model.set_attn_implementation({"": kind, **kinds})

    def preprocess(self, frames: np.ndarray | Tensor) -> Tensor:
        """Turn frames into what the encoder reads; training and play both come through here.

        The present frame comes first, then what has changed since each earlier one: an object that moves stands out
        from a scene that does not. Black, and what stands still, are 0. Nothing is resized, and nothing is rounded:
        n / 256 for a whole n from -255 to 255 is exact in bfloat16 as well, and so are its products with a power of 2.

        Args:
            frames: uint8[B, history, H, W, 3], oldest first, at native size.

        Returns:
            [B, view.channels, rows, columns], in the autocast type where autocast is on: colours in [0, 1),
            differences in (-1, 1) times `view.motion`, and with `view.places` rows and columns from -2 to 2. Black
            fills rows and columns up to multiples of `view.stride` below and to the right, so that games of 210 and of
            214 lines share one shape; with a square_size, up to its square.
        """
        frames = torch.as_tensor(frames, device=self.device)
        if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[1] != self.history:
            raise UserError(
                f"expected frames uint8[B, {self.history}, H, W, 3], got {frames.dtype}{list(frames.shape)}"
            )
        kind = self.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype
        height, width = frames.shape[2:4]
        rows, columns = self._shape(height, width)
        seen = [frames[:, index].to(dtype) * (1 / 256) for index in range(self.history)]  # [B, H, W, 3] each
        now, *earlier = reversed(seen)
        past = [(now - frame) * self.image_config.frame_diff_scale for frame in reversed(earlier)]
        places: list[Tensor] = []
        if self.image_config.coordinate_channels:
            down, along = (torch.arange(n, device=self.device).add(0.5).div(n / 4).sub(2) for n in (rows, columns))
            grid = torch.stack([down[:, None].expand(rows, columns), along.expand(rows, columns)], dim=-1)
            places = [grid.to(dtype).expand(len(now), -1, -1, -1)]
        # channels last in memory, as frames are and as convolutions like it
        return _pad_and_concat([now, *past, *places], rows, columns).permute(0, 3, 1, 2)

    def _shape(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns that the encoder is shown frames of a size in."""
        square_size, stride = self.square_size, self.image_config.stride
        if square_size is None:
            return -(-height // stride) * stride, -(-width // stride) * stride
        if max(height, width) > square_size:
            raise UserError(f"expected frames of at most {square_size} rows and columns, got {height} x {width}")
        return square_size, square_size


class PixelVLM(PixelModel):
    """A vision-language model with its encoder, connector and decoder by role."""

    kind, library = "pvplay-vlm", AutoModelForImageTextToText

    @property
    def encoder(self) -> nn.Module:
        """The vision encoder."""
        return self.model.get_encoder(modality="image")

    @property
    def decoder(self) -> nn.Module:
        """The causal language model, without its head."""
        return self.model.get_decoder()

    @property
    def connector(self) -> nn.Module:
        """The module between encoder and decoder: what is in neither of them, nor in the head."""
        known = {id(self.encoder), id(self.decoder), id(self.model.get_output_embeddings())}
        found = [child for child in self.model.model.children() if id(child) not in known]
        if len(found) != 1:
            raise UserError(f"expected one connector in {type(self.model).__name__}, found {len(found)}")
        return found[0]

    @property
    def bos_ids(self) -> list[int]:
        """The tokens that begin every text; none in models of ours."""
        return []

    def image_ids(self, pixels: Tensor) -> list[int]:
        """Return the tokens that stand for an image in a prompt: as many placeholders as it has image tokens."""
        return [self.model.config.image_token_id] * self.encode_images(pixels[:1]).tokens.shape[1]

    def generate_inputs(self, ids: Tensor, pixels: Tensor) -> dict[str, Tensor]:
        """Return the inputs of the class's own `generate`, for prompts int[B, T] about each image."""
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}

    def encode_images(self, images: Tensor | Mapping[str, Tensor], output_hidden_states: bool = False) -> ImageFeatures:
        """Return the features of images, by one pass through encoder and connector.

        Args:
            images: of `preprocess`, or the class's own image inputs by name.
            output_hidden_states: whether to return the encoder's hidden states too.

        Raises:
            UserError: the class has no image tokens, or as many for each image.
        """
        if not hasattr(self.model, "get_image_features"):
            raise UserError(f"{type(self.model).__name__} does not read images as tokens")
        inputs = {"pixel_values": images} if isinstance(images, Tensor) else dict(images)
        options = {"output_hidden_states": True} if output_hidden_states else {}
        output = self.model.get_image_features(**inputs, **options)
        rows = list(output.pooler_output)
        batch = len(rows) if isinstance(images, Tensor) else getattr(images, "count", len(rows))
        states = tuple(output.hidden_states) if output_hidden_states else ()
        return ImageFeatures(stack_image_tokens(rows, batch), inputs, states, getattr(images, "ids", None))

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the decoder's embeddings of token ids."""
        return self.model.get_input_embeddings()(tokens)
