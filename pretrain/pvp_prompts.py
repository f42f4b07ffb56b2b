"""What is asked about an image: the colour at places of a grid laid over it.

The colour at row r and column c of a grid is that of the image shrunk to res x res by area, as in the paper's lab; the
encoder sees the whole image all the same. The native grid asks for the pixels themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.errors import UserError
from pretrain.data.images import ImageError
from vlm.model import PixelVLM
from vlm.prompts import IMAGE, ORDERS, PIXEL_PREFIX, pixel_answer, pixel_prompt

NATIVE = "native"
IGNORE_INDEX = -100  # the label of a token that is not to be learnt
LONGEST_ANSWER = 16


def parse_grid(grid: str) -> int | None:
    """Return the resolution that a grid's name means, None for the native one."""
    if grid == NATIVE:
        return None
    if not grid.isdecimal() or int(grid) < 1:
        raise ImageError(f"expected a grid of 32, 64 or {NATIVE}, got {grid!r}")
    return int(grid)


def downsample_grid(image: np.ndarray, grid: str) -> np.ndarray:
    """Return uint8[rows, columns, 3]: the colour at every place of a grid over an image uint8[H, W, 3].

    Raises:
        ImageError: the grid is finer than the image, so that there is nothing to see at some of its places.
    """
    res, (height, width, _) = parse_grid(grid), image.shape
    if res is None:
        return image
    if res > min(height, width):
        raise ImageError(f"expected an image of at least {res} x {res} pixels for grid {res}, got {height} x {width}")
    return np.asarray(Image.fromarray(image).resize((res, res), Image.Resampling.BOX))


def sample_coordinates(downsample_grid: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return int[count, 2], rows and columns of colours uint8[H, W, 3]: half anywhere, half by colour.

    Those by colour draw a colour evenly among those that occur, then one of its places: even drawing alone would ask
    about the background and hardly ever about a bullet.
    """
    height, width, _ = downsample_grid.shape
    anywhere = rng.integers(height * width, size=count - count // 2)
    codes = downsample_grid.reshape(-1, 3).astype(np.int32) @ np.array([65536, 256, 1])
    order = np.argsort(codes, kind="stable")
    _, first, sizes = np.unique(codes[order], return_index=True, return_counts=True)
    drawn = rng.integers(len(first), size=count // 2)
    by_colour = order[first[drawn] + (rng.random(count // 2) * sizes[drawn]).astype(int)]
    return np.stack(np.divmod(np.concatenate([anywhere, by_colour]), width), axis=1)


@dataclass(frozen=True)
class PixelPromptFormat:
    """How a model's tokenizer writes questions about pixels and their answers.

    shared: int[S], the tokens between the image and every question; numbers: int[256], the tokens of 0 to 255, or
    None where a number takes several; end: the token that closes an answer; order: of the two coordinates.
    """

    tokenizer: object
    shared: Tensor
    numbers: Tensor | None
    end: int
    pad: int
    order: str = ORDERS[0]

    @classmethod
    def of(cls, vlm: PixelVLM, order: str = ORDERS[0]) -> "PixelPromptFormat":
        """Return the language of a model."""
        if order not in ORDERS:
            raise UserError(f"expected an order of {' or '.join(ORDERS)}, got {order!r}")
        tokenizer = vlm.tokenizer
        shared = torch.tensor(tokenizer(PIXEL_PREFIX, add_special_tokens=False)["input_ids"])
        numbers = tokenizer([str(n) for n in range(256)], add_special_tokens=False)["input_ids"]
        single = all(len(tokens) == 1 for tokens in numbers)
        table = torch.tensor(numbers).flatten() if single else None
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        return cls(tokenizer, shared, table, tokenizer.eos_token_id, pad, order)

    def questions(self, places: np.ndarray) -> list[list[int]]:
        """Return the tokens of each question behind the shared ones, for places int[K, 2]."""
        texts = [
            pixel_prompt(row, column, self.order).removeprefix(f"{IMAGE} {PIXEL_PREFIX}") for row, column in places
        ]
        return self._tokens(texts)

    def answers(self, values: np.ndarray) -> list[list[int]]:
        """Return the tokens of each answer, its end included, for colours uint8[K, 3]."""
        return [[*tokens, self.end] for tokens in self._tokens([pixel_answer(rgb) for rgb in values])]

    def lesson(self, places: np.ndarray, values: np.ndarray) -> tuple[list[list[int]], list[list[int]]]:
        """Return what the model reads and what it shall say next, token by token, for K questions."""
        asked = list(zip(self.questions(places), self.answers(values), strict=True))
        read = [question + answer[:-1] for question, answer in asked]
        said = [[IGNORE_INDEX] * (len(question) - 1) + answer for question, answer in asked]
        return read, said

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]  # type: ignore[operator]


def pad_rows(rows: list[list[list[int]]], value: int) -> Tensor:
    """Return token lists, K for each of B images, as int[B, K, L], padded on the right."""
    longest = max(len(tokens) for asked in rows for tokens in asked)
    return torch.tensor([[tokens + [value] * (longest - len(tokens)) for tokens in asked] for asked in rows])
