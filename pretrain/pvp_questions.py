"""Questions of pixel value prediction: the color at cells of a grid over an image, as token ids.

The color of a cell is that of the image resized to res x res by area averaging, as in Gou et al.'s code; the encoder
still sees the whole image. The native grid has the pixels themselves as cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from common.errors import UserError
from pretrain.data.images import ImageError
from vlm.model import PixelVLM
from vlm.prompts import IMAGE, ORDERS, PIXEL_PREFIX, pixel_answer, pixel_prompt

NATIVE = "native"
MAX_ANSWER_TOKENS = 16


def parse_grid(grid: str) -> int | None:
    """Return the number of cells along a side of a grid; None for the native grid."""
    if grid == NATIVE:
        return None
    if not grid.isdecimal() or int(grid) < 1:
        raise ImageError(f"expected a grid of 32, 64 or {NATIVE}, got {grid!r}")
    return int(grid)


def downsample_grid(image: UInt8[np.ndarray, "H W 3"], grid: str) -> UInt8[np.ndarray, "rows columns 3"]:
    """Return the color of every cell of a grid over an image; `ImageError` if the image is smaller than the grid."""
    res, (height, width, _) = parse_grid(grid), image.shape
    if res is None:
        return image
    if res > min(height, width):
        raise ImageError(f"expected an image of at least {res} x {res} pixels for grid {res}, got {height} x {width}")
    return np.asarray(Image.fromarray(image).resize((res, res), Image.Resampling.BOX))


def sample_coordinates(
    colors: UInt8[np.ndarray, "rows columns 3"], count: int, rng: np.random.Generator
) -> Int[np.ndarray, "count 2"]:
    """Return rows and columns of random cells: half uniform over cells, half uniform over distinct colors.

    Uniform cells alone would almost never be of small objects.
    """
    height, width, _ = colors.shape
    uniform = rng.integers(height * width, size=count - count // 2)
    codes = colors.reshape(-1, 3).astype(np.int32) @ np.array([65536, 256, 1])
    order = np.argsort(codes, kind="stable")
    _, first, sizes = np.unique(codes[order], return_index=True, return_counts=True)
    drawn = rng.integers(len(first), size=count // 2)
    by_color = order[first[drawn] + (rng.random(count // 2) * sizes[drawn]).astype(int)]
    return np.stack(np.divmod(np.concatenate([uniform, by_color]), width), axis=1)


@dataclass(frozen=True)
class PixelPromptFormat:
    """Token ids of pixel questions and answers."""

    tokenizer: PreTrainedTokenizerFast
    prefix_ids: Int[Tensor, " S"]  # between the image and every question
    number_token_ids: Int[Tensor, "256"] | None  # of 0 to 255; None where the tokenizer splits numbers
    eos_token_id: int
    pad_token_id: int
    order: str = ORDERS[0]  # of the two coordinates

    @classmethod
    def from_model(cls, vlm: PixelVLM, order: str = ORDERS[0]) -> "PixelPromptFormat":
        """Return the format for a model's tokenizer."""
        if order not in ORDERS:
            raise UserError(f"expected an order of {' or '.join(ORDERS)}, got {order!r}")
        tokenizer = vlm.tokenizer
        prefix = torch.tensor(tokenizer(PIXEL_PREFIX, add_special_tokens=False)["input_ids"])
        numbers = tokenizer([str(n) for n in range(256)], add_special_tokens=False)["input_ids"]
        single = all(len(tokens) == 1 for tokens in numbers)
        number_ids = torch.tensor(numbers).flatten() if single else None
        eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        return cls(tokenizer, prefix, number_ids, eos, eos if pad is None else pad, order)

    def question_ids(self, coordinates: Int[np.ndarray, "K 2"]) -> list[list[int]]:
        """Return the token ids of each question, without the prefix."""
        prompts = [pixel_prompt(row, column, self.order) for row, column in coordinates]
        return self._encode([prompt.removeprefix(f"{IMAGE} {PIXEL_PREFIX}") for prompt in prompts])

    def questions_with_answers(
        self, coordinates: Int[np.ndarray, "K 2"], colors: UInt8[np.ndarray, "K 3"]
    ) -> list[tuple[list[int], list[int]]]:
        """Return the token ids of each question, and of its answer with the end token."""
        answers = [[*ids, self.eos_token_id] for ids in self._encode([pixel_answer(rgb) for rgb in colors])]
        return list(zip(self.question_ids(coordinates), answers, strict=True))

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
