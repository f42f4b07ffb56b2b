"""Images that nobody can remember: mosaics, checkerboards, gradients, noise, shapes and sprites, drawn from a seed.

A mosaic of k x k random colours is the task with its difficulty as a number: k = 1 asks to read a colour and nothing
else, a large k asks for the right place as well. `level` from 0 to 1 says how fine the images may be, so that a
training can begin with coarse ones.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

Draw = Callable[[np.random.Generator, int, int, int], np.ndarray]
FINEST = 32  # cells along a side at level 1


def enlarge(cells: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return cells [h, w, 3] as blocks of an image [height, width, 3]."""
    rows, columns = np.arange(height) * len(cells) // height, np.arange(width) * cells.shape[1] // width
    return cells[rows][:, columns]


def mosaic(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Return uint8[height, width, 3] of about cells x cells blocks, each of a colour of its own."""
    colours = rng.integers(0, 256, (min(cells, height), min(cells, width), 3), dtype=np.uint8)
    return enlarge(colours, height, width)


def palette(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Return a mosaic of two to eight colours."""
    colours = rng.integers(0, 256, (rng.integers(2, 9), 3), dtype=np.uint8)
    which = rng.integers(len(colours), size=(min(cells, height), min(cells, width)))
    return enlarge(colours[which], height, width)


def checkerboard(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Return two colours in turn."""
    colours = rng.integers(0, 256, (2, 3), dtype=np.uint8)
    rows, columns = np.arange(min(cells, height)), np.arange(min(cells, width))
    return enlarge(colours[(rows[:, None] + columns) % 2], height, width)


def smooth(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Return random colours at the corners of cells x cells squares, and what lies between them."""
    corners = rng.integers(0, 256, (min(cells, height) + 1, min(cells, width) + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR))


def noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Return a mosaic under noise of its own strength."""
    image = mosaic(rng, height, width, max(1, cells // 2)).astype(np.float32)
    image += rng.normal(0, rng.uniform(4, 48), (height, width, 1 if rng.random() < 0.5 else 3))
    return image.clip(0, 255).astype(np.uint8)


def shapes(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Return rectangles, ellipses and lines on a ground of one colour; the more cells, the more and the smaller."""
    picture = Image.new("RGB", (width, height), _colour(rng))
    draw = ImageDraw.Draw(picture)
    largest = max(2, 2 * max(height, width) // max(2, cells))
    for _ in range(int(rng.integers(1, 2 + 2 * cells))):
        top, left = int(rng.integers(height)), int(rng.integers(width))
        box = (left, top, left + int(rng.integers(largest)), top + int(rng.integers(largest)))
        kind = rng.integers(3)
        if kind == 0:
            draw.rectangle(box, fill=_colour(rng))
        elif kind == 1:
            draw.ellipse(box, fill=_colour(rng))
        else:
            draw.line(box, fill=_colour(rng), width=int(rng.integers(1, 5)))
    return np.asarray(picture)


def sprites(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Return a few small figures of one colour each, stamped again and again, as a console draws them."""
    image = np.broadcast_to(np.array(_colour(rng), np.uint8), (height, width, 3)).copy()
    for _ in range(int(rng.integers(1, 2 + cells // 4))):
        figure = rng.random((int(rng.integers(2, 13)), int(rng.integers(2, 9)))) < 0.6
        colour = _colour(rng)
        for _ in range(int(rng.integers(1, 9))):
            top, left = int(rng.integers(height)), int(rng.integers(width))
            part = image[top : top + figure.shape[0], left : left + figure.shape[1]]
            part[figure[: part.shape[0], : part.shape[1]]] = colour
    return image


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
    return red, green, blue


KINDS: dict[str, Draw] = {
    "mosaic": mosaic,
    "palette": palette,
    "checkerboard": checkerboard,
    "smooth": smooth,
    "noise": noise,
    "shapes": shapes,
    "sprites": sprites,
}


def synthetic_image(rng: np.random.Generator, height: int, width: int, level: float = 1.0) -> np.ndarray:
    """Return uint8[height, width, 3] of a kind and fineness drawn from `rng`; at level 0 it is of one colour."""
    finest = 1 + level * (FINEST - 1)
    cells = int(np.exp(rng.uniform(0, np.log(finest))) + 0.5)
    if cells <= 1:
        return mosaic(rng, height, width, 1)
    return list(KINDS.values())[rng.integers(len(KINDS))](rng, height, width, cells)
