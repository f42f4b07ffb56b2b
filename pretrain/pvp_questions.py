"""Questions of pixel value prediction: the color at cells of a grid over an image, as token ids.

The color of a cell is that of the image resized to res x res by area averaging, as in Gou et al.'s code; the encoder
still sees the whole image. The native grid has the pixels themselves as cells.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from common.errors import UserError
from common.images import ImageError
from vlm.model import PixelVLM
from vlm.prompts import IMAGE, ORDERS, PIXEL_PREFIX, pixel_answer, pixel_prompt

NATIVE = "native"
MAX_ANSWER_TOKENS = 16


@dataclass(frozen=True)
class PixelGrid:
    """A grid over an image: so many rows and columns, or cells of so many pixels a side from the upper left."""

    shape: tuple[int, int] | None = None
    cell: int | None = None

    def shape_of(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of cells over an image; cells of pixels at its edges may be cut."""
        return self.shape or (-(-height // (self.cell or 1)), -(-width // (self.cell or 1)))

    def cell_size(self, height: int, width: int) -> tuple[float, float]:
        """Return the height and width of a cell in pixels."""
        return (height / self.shape[0], width / self.shape[1]) if self.shape else (self.cell or 1, self.cell or 1)


def parse_grid(grid: str) -> PixelGrid:
    """Return the grid that `32`, `28x20` (rows x columns), `8px` (cells of 8 x 8 pixels) or `native` stands for."""
    if grid == NATIVE:
        return PixelGrid(cell=1)
    if not (found := re.fullmatch(r"([1-9]\d*)(px|x([1-9]\d*))?", grid)):
        raise ImageError(f"expected a grid of 32, 64, ROWSxCOLUMNS, as in 28x20, 8px or {NATIVE}, got {grid!r}")
    rows, kind, columns = found.groups()
    return PixelGrid(cell=int(rows)) if kind == "px" else PixelGrid((int(rows), int(columns or rows)))


def downsample_grid(image: UInt8[np.ndarray, "H W 3"], grid: str) -> UInt8[np.ndarray, "rows columns 3"]:
    """Return the color of every cell of a grid over an image; `ImageError` if the image is smaller than the grid."""
    parsed, (height, width, _) = parse_grid(grid), image.shape
    if parsed.cell == 1:
        return image
    if parsed.shape is None:
        return block_means(image, parsed.cell or 1).round().astype(np.uint8)
    rows, columns = parsed.shape
    if rows > height or columns > width:
        size = f"{rows} x {columns}"
        raise ImageError(f"expected an image of at least {size} pixels for grid {grid}, got {height} x {width}")
    return np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BOX))


def block_means(image: UInt8[np.ndarray, "H W 3"], size: int) -> Float[np.ndarray, "rows columns 3"]:
    """Return the mean color of each square of `size` pixels from the upper left; those at the edges may be cut."""
    starts = [np.arange(0, side, size) for side in image.shape[:2]]
    sums = np.add.reduceat(np.add.reduceat(image.astype(float), starts[0], axis=0), starts[1], axis=1)
    heights, widths = (np.diff([*start, side]) for start, side in zip(starts, image.shape[:2], strict=True))
    return sums / (heights[:, None] * widths)[..., None]


def cell_centers(coordinates: Int[np.ndarray, "K 2"], grid: str, height: int, width: int) -> Float[np.ndarray, "K 2"]:
    """Return the centers of cells as fractions of an image's height and width; of a cell that is cut, as if whole."""
    return ((coordinates + 0.5) * parse_grid(grid).cell_size(height, width) / (height, width)).astype(np.float32)


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
