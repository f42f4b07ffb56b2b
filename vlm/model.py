"""`PixelVLM`: a transformers vision-language model, its tokenizer and the one way of showing it frames.

Encoder, connector and decoder are reached by role through the library's accessors, so that the rest of the house
does not depend on how a model class names its parts.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerFast

from vlm.errors import VlmError

GRID = 24  # the stride of the encoder's middle stage
EDGE = 2  # its first kernels end this much short of the last line of a whole grid


class PixelModel:
    """A model and what it takes to ask it: `model` (transformers' own class), `tokenizer`, `history` in frames.

    `canvas`: rows and columns of the square that frames are laid on, for an encoder that asks for one size;
    `kind`: the word for it in checkpoints; `library`: the class of transformers that reads it.
    """

    kind: str
    library: Any

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, history: int, canvas: int | None = None
    ):
        self.model, self.tokenizer, self.history, self.canvas = model, tokenizer, history, canvas

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def pixels(self, frames: np.ndarray | Tensor) -> Tensor:
        """Turn frames into what the encoder reads; training and play both come through here.

        The present frame comes first, then what has changed since each earlier one: an object that moves stands out
        from a scene that does not. Black, and what stands still, are 0. Nothing is resized, and nothing is rounded:
        n / 256 for a whole n from -255 to 255 is exact in bfloat16 as well.

        Args:
            frames: uint8[B, history, H, W, 3], oldest first, at native size.

        Returns:
            [B, 3 * history, rows, columns] in (-1, 1), in the autocast type where autocast is on; multiples of 24,
            with 2 lines or more of black below and to the right, so that kernels reach the last pixel; games of 210
            and of 214 lines share one shape, 216 x 168. With a canvas, a square of that size, black below and to the
            right.
        """
        frames = torch.as_tensor(frames, device=self.device)
        if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[1] != self.history:
            raise VlmError(f"expected frames uint8[B, {self.history}, H, W, 3], got {frames.dtype}{list(frames.shape)}")
        kind = self.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else self.dtype
        batch, _, height, width, _ = frames.shape
        if self.canvas is None:
            rows, columns = (-(-(size + EDGE) // GRID) * GRID for size in (height, width))
        elif max(height, width) <= self.canvas:
            rows = columns = self.canvas
        else:
            raise VlmError(f"expected frames of at most {self.canvas} rows and columns, got {height} x {width}")
        pixels = torch.zeros(batch, rows, columns, 3 * self.history, dtype=dtype, device=self.device)
        now = frames[:, -1].to(dtype)  # [B, H, W, 3]
        pixels[:, :height, :width, :3] = now
        for past in range(self.history - 1):
            pixels[:, :height, :width, 3 * past + 3 : 3 * past + 6] = now - frames[:, past].to(dtype)
        return pixels.mul_(1 / 256).permute(0, 3, 1, 2)


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
            raise VlmError(f"expected one connector in {type(self.model).__name__}, found {len(found)}")
        return found[0]

    def image_embeddings(self, pixels: Tensor) -> Tensor:
        """Return the connector's output for `pixels`, [B, N, text width]: the image tokens the decoder reads."""
        features = self.model.get_image_features(pixel_values=pixels).pooler_output
        return torch.stack(list(features))

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the decoder's embeddings of token ids."""
        return self.model.get_input_embeddings()(tokens)
