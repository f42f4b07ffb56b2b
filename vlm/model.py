"""`PixelVLM`: a vision-language model of transformers, its tokenizer and its image preprocessing.

Encoder, connector and decoder are reached by role through transformers' accessors, so that no other module depends on
how a class names its parts.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerFast

from common.errors import UserError
from vlm.image_features import ImageFeatures, stack_image_tokens
from vlm.image_input import ImageConfig, ImageInputs, preprocess_frames
from vlm.layers import replace_layers

Frames = np.ndarray | Tensor  # uint8[B, T, H, W, 3], which `preprocess` checks


class PixelModel(ABC):
    """A model of transformers (`model`), its `tokenizer` and `image_config`.

    kind: its name in checkpoints; auto_class: the class of transformers that loads it.
    """

    kind: str
    auto_class: Any

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, image_config: ImageConfig):
        self.model, self.tokenizer, self.image_config = model, tokenizer, image_config
        replace_layers(model)

    @property
    @abstractmethod
    def encoder(self) -> nn.Module:
        """The vision encoder."""

    def save_tokenizer(self, directory: Path) -> None:
        """Write the tokenizer as transformers' own files."""
        self.tokenizer.save_pretrained(directory)

    @property
    def history(self) -> int:
        """The number of frames in the input."""
        return self.image_config.history

    @property
    def square_size(self) -> int | None:
        """The side of the square that frames are padded to, if any."""
        return self.image_config.square_size

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.model.parameters()).device

    def set_attn_implementation(self, kind: str) -> None:
        """Compute attention by `kind`, eager or sdpa; parts without sdpa support stay eager."""
        config = self.model.config
        parts = {id(part): name for name in config.sub_configs if (part := getattr(config, name, None)) is not None}
        eager_only = {
            parts[id(module.config)]
            for module in self.model.modules()
            if isinstance(module, PreTrainedModel) and id(module.config) in parts and not module._supports_sdpa
        }
        kinds = {name: "eager" if name in eager_only else kind for name in parts.values()}
        self.model.set_attn_implementation({"": kind, **kinds})

    def preprocess(self, frames: Frames) -> Float[Tensor, "B C rows columns"]:
        """Return the encoder's input for frames, without resizing or rounding.

        The current frame comes first, then its difference to each earlier one, the newest first, so that moving objects
        stand out. Black and unchanged pixels are 0. n / 256 for an integer n from -255 to 255 is exact in bfloat16, and
        so are its products with a power of 2.

        Args:
            frames: `history` of them, oldest first, at native size.

        Returns:
            [B, C, rows, columns] with the channels of `ImageConfig`, in the autocast type where autocast is on: colors
            in [0, 1), differences in (-1, 1) times `frame_diff_scale`, coordinates in (-2, 2). Zeros pad the bottom
            and right (`ImageConfig.padded_size`), so that games of 210 and 214 lines share one shape.

        Raises:
            UserError: the frames have another type or shape.
        """
        frames = torch.as_tensor(frames, device=self.device)
        if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[1] != self.history:
            raise UserError(
                f"expected frames uint8[B, {self.history}, H, W, 3], got {frames.dtype}{list(frames.shape)}"
            )
        device = self.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.dtype
        return preprocess_frames(frames, self.image_config, dtype)


class PixelVLM(PixelModel):
    """A vision-language model with its encoder, connector and decoder by role."""

    kind, auto_class = "pvplay-vlm", AutoModelForImageTextToText

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
        """The module between encoder and decoder: the one child that is neither of them nor the head."""
        known = {id(self.encoder), id(self.decoder), id(self.model.get_output_embeddings())}
        others = [child for child in self.model.model.children() if id(child) not in known]
        if len(others) != 1:
            raise UserError(f"expected one connector in {type(self.model).__name__}, found {len(others)}")
        return others[0]

    @property
    def bos_ids(self) -> list[int]:
        """The token ids that begin every text; presets have none."""
        return []

    def image_ids(self, images: Any) -> list[int]:
        """Return the token ids of one of the images of `preprocess` in a prompt: a placeholder for each image token."""
        return [self.model.config.image_token_id] * self.encode_images(images[:1]).tokens.shape[1]

    def generate_inputs(self, ids: Int[Tensor, "B L"], images: Any) -> dict[str, Tensor]:
        """Return the inputs of transformers' `generate` for a prompt about each image."""
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": images}

    def encode_images(
        self, images: Float[Tensor, "B C H W"] | Mapping[str, Tensor], output_hidden_states: bool = False
    ) -> ImageFeatures:
        """Return the features of images, by one pass through encoder and connector.

        Args:
            images: the output of `preprocess`, or the class's own image inputs by name, of images of one size.
            output_hidden_states: whether to return the encoder's hidden states too.

        Raises:
            UserError: the class has no image tokens, or the images have different numbers of them.
        """
        if not hasattr(self.model, "get_image_features"):
            raise UserError(f"{type(self.model).__name__} does not read images as tokens")
        inputs = {"pixel_values": images} if isinstance(images, Tensor) else dict(images)
        options = {"output_hidden_states": True} if output_hidden_states else {}
        output = self.model.get_image_features(**inputs, **options)
        tokens = list(output.pooler_output)
        hidden_states = tuple(output.hidden_states) if output_hidden_states else ()
        if isinstance(images, ImageInputs):
            stacked = stack_image_tokens(tokens, images.num_images)
            return ImageFeatures(stacked, inputs, hidden_states, images.image_ids)
        return ImageFeatures(stack_image_tokens(tokens, len(tokens)), inputs, hidden_states)

    def embed(self, tokens: Int[Tensor, "..."]) -> Float[Tensor, "... D"]:
        """Return the decoder's embeddings of token ids."""
        return self.model.get_input_embeddings()(tokens)
