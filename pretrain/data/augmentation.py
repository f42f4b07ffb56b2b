"""Image augmentation that keeps pixels crisp: random colors and random geometry.

A model cannot answer questions about augmented images from memory. All functions take [..., H, W, 3] and apply the same
change to every frame of a stack. Enlarging is by whole factors, so that no pixel is a blend of two.
"""

import numpy as np
from jaxtyping import UInt8

MAX_PALETTE = 256  # distinct colors; game frames have fewer, photographs more


def crop_or_resize(
    image: UInt8[np.ndarray, "*batch _ _ 3"], height: int, width: int, rng: np.random.Generator | None = None
) -> UInt8[np.ndarray, "*batch height width 3"]:
    """Return a window of an image, which is first resized by the whole factor that makes it just cover the window.

    `rng` draws the window's place; the window is centered without it.
    """
    rows, columns = image.shape[-3:-1]
    up, down = max(-(-height // rows), -(-width // columns)), min(rows // height, columns // width)
    if up > 1:
        image = image.repeat(up, axis=-3).repeat(up, axis=-2)
    elif down > 1:
        image = box_downsample(image, down)
    top, left = image.shape[-3] - height, image.shape[-2] - width
    row, column = (top // 2, left // 2) if rng is None else (rng.integers(top + 1), rng.integers(left + 1))
    return image[..., row : row + height, column : column + width, :]


def box_downsample(image: np.ndarray, factor: int) -> np.ndarray:
    """Return the rounded means of factor x factor blocks, uint8; incomplete blocks at the edges are dropped."""
    rows, columns = image.shape[-3] // factor, image.shape[-2] // factor
    cropped = image[..., : rows * factor, : columns * factor, :]
    blocks = cropped.reshape(*image.shape[:-3], rows, factor, columns, factor, 3)
    return blocks.mean(axis=(-4, -2)).round().astype(np.uint8)


def randomize_palette(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Replace every distinct color by a random one; images of more than `MAX_PALETTE` colors are unchanged."""
    codes = image.reshape(-1, 3).astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    palette, indices = np.unique(codes, return_inverse=True)
    if len(palette) > MAX_PALETTE:
        return image
    return rng.integers(0, 256, (len(palette), 3), dtype=np.uint8)[indices].reshape(image.shape)


def jitter_colors(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Permute the channels; invert each at random, then scale and shift it."""
    image = image[..., rng.permutation(3)]
    image = image ^ np.where(rng.random(3) < 0.5, 255, 0).astype(np.uint8)
    gain, offset = rng.uniform(0.3, 1.3, 3), rng.uniform(-60, 120, 3)
    return (image * gain + offset).clip(0, 255).round().astype(np.uint8)


def augment_geometry(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Flip and roll an image; a third of the time enlarge a part of it two or three times."""
    height, width = image.shape[-3:-1]
    image = image[..., :: rng.choice([1, -1]), :: rng.choice([1, -1]), :]
    image = np.roll(image, (rng.integers(height), rng.integers(width)), axis=(-3, -2))
    if rng.random() < 1 / 3 and min(height, width) >= 6:
        factor = int(rng.integers(2, 4))
        part = image[..., : -(-height // factor), : -(-width // factor), :]
        image = part.repeat(factor, axis=-3).repeat(factor, axis=-2)[..., :height, :width, :]
    return image


def augment(
    image: UInt8[np.ndarray, "*batch H W 3"], rng: np.random.Generator, probability: float = 1.0
) -> UInt8[np.ndarray, "*batch H W 3"]:
    """Return an image whose geometry and whose colors are each augmented with a probability."""
    if rng.random() < probability:
        image = augment_geometry(image, rng)
    if rng.random() < probability:
        image = randomize_palette(image, rng) if rng.random() < 0.5 else jitter_colors(image, rng)
    return np.ascontiguousarray(image)
