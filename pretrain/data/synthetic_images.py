"""Random images that no model can memorize: mosaics, checkerboards, gradients, noise, shapes and sprites.

A mosaic of k x k random colors has a known difficulty: k = 1 needs a color alone, a larger k needs the right position
as well. `level`, from 0 to 1, bounds how fine the images are, so that training can begin with coarse ones.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

MAX_CELLS = 32  # along a side, at level 1


def enlarge(cells: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return cells [h, w, 3] resized to [height, width, 3] by nearest neighbor."""
    rows, columns = np.arange(height) * len(cells) // height, np.arange(width) * cells.shape[1] // width
    return cells[rows][:, columns]


def mosaic(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Return uint8[height, width, 3] of about cells x cells blocks of random colors."""
    colors = rng.integers(0, 256, (min(cells, height), min(cells, width), 3), dtype=np.uint8)
    return enlarge(colors, height, width)


def palette(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Return a mosaic of two to eight colors."""
    colors = rng.integers(0, 256, (rng.integers(2, 9), 3), dtype=np.uint8)
    indices = rng.integers(len(colors), size=(min(cells, height), min(cells, width)))
    return enlarge(colors[indices], height, width)


def checkerboard(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Return a checkerboard of two colors."""
    colors = rng.integers(0, 256, (2, 3), dtype=np.uint8)
    rows, columns = np.arange(min(cells, height)), np.arange(min(cells, width))
    return enlarge(colors[(rows[:, None] + columns) % 2], height, width)


def smooth(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Return a bilinear gradient between random colors at the corners of cells x cells squares."""
    corners = rng.integers(0, 256, (min(cells, height) + 1, min(cells, width) + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR))


def noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Return a mosaic with Gaussian noise of random strength."""
    image = mosaic(rng, height, width, max(1, cells // 2)).astype(np.float32)
    image += rng.normal(0, rng.uniform(4, 48), (height, width, 1 if rng.random() < 0.5 else 3))
    return image.clip(0, 255).astype(np.uint8)


def shapes(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Return rectangles, ellipses and lines on a plain background; more cells give more and smaller shapes."""
    picture = Image.new("RGB", (width, height), _color(rng))
    draw = ImageDraw.Draw(picture)
    max_size = max(2, 2 * max(height, width) // max(2, cells))
    for _ in range(int(rng.integers(1, 2 + 2 * cells))):
        top, left = int(rng.integers(height)), int(rng.integers(width))
        box = (left, top, left + int(rng.integers(max_size)), top + int(rng.integers(max_size)))
        kind = rng.integers(3)
        if kind == 0:
            draw.rectangle(box, fill=_color(rng))
        elif kind == 1:
            draw.ellipse(box, fill=_color(rng))
        else:
            draw.line(box, fill=_color(rng), width=int(rng.integers(1, 5)))
    return np.asarray(picture)


def sprites(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Return copies of a few small single-color sprites on a plain background."""
    image = np.broadcast_to(np.array(_color(rng), np.uint8), (height, width, 3)).copy()
    for _ in range(int(rng.integers(1, 2 + cells // 4))):
        sprite = rng.random((int(rng.integers(2, 13)), int(rng.integers(2, 9)))) < 0.6
        color = _color(rng)
        for _ in range(int(rng.integers(1, 9))):
            top, left = int(rng.integers(height)), int(rng.integers(width))
            part = image[top : top + sprite.shape[0], left : left + sprite.shape[1]]
            part[sprite[: part.shape[0], : part.shape[1]]] = color
    return image


def _color(rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(rng.integers(0, 256, 3).tolist())


KINDS: dict[str, Callable[[np.random.Generator, int, int, int], np.ndarray]] = {
    kind.__name__: kind for kind in (mosaic, palette, checkerboard, smooth, noise, shapes, sprites)
}


def synthetic_image(
    rng: np.random.Generator, height: int, width: int, level: float = 1.0
) -> UInt8[np.ndarray, "height width 3"]:
    """Return an image of random kind and a log-uniform number of cells along a side; a plain color at level 0."""
    max_cells = 1 + level * (MAX_CELLS - 1)
    cells = int(np.exp(rng.uniform(0, np.log(max_cells))) + 0.5)
    if cells <= 1:
        return mosaic(rng, height, width, 1)
    return list(KINDS.values())[rng.integers(len(KINDS))](rng, height, width, cells)
