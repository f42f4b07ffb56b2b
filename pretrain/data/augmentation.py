"""What makes an image strange without making it another: other colours, other places.

A model that is asked about strange images cannot answer from memory. All functions take [..., H, W, 3] and do the same
to all images of a stack, so that a frame keeps its past. Colours: channels exchanged, inverted, scaled and
shifted, or every distinct colour replaced by a random one. Places: mirrored, rolled round, cut out and enlarged by a
whole factor, so that no pixel is a blend of two.
"""

import numpy as np

MOST_COLOURS = 256  # a game frame has fewer; a photograph has more and is not remapped


def crop_or_resize(image: np.ndarray, height: int, width: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Return a window uint8[..., height, width, 3] of an image; an image of that size comes back as it is.

    A smaller image is enlarged and a larger one shrunk by a whole factor first, to the least that covers the window.
    The window's place is drawn from `rng`; without one it is the middle.
    """
    rows, columns = image.shape[-3:-1]
    more, less = max(-(-height // rows), -(-width // columns)), min(rows // height, columns // width)
    if more > 1:
        image = image.repeat(more, axis=-3).repeat(more, axis=-2)
    elif less > 1:
        image = shrink(image, less)
    top, left = image.shape[-3] - height, image.shape[-2] - width
    row, column = (top // 2, left // 2) if rng is None else (rng.integers(top + 1), rng.integers(left + 1))
    return image[..., row : row + height, column : column + width, :]


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Return the means of factor x factor blocks, uint8; lines that fill no block are left out."""
    rows, columns = image.shape[-3] // factor, image.shape[-2] // factor
    whole = image[..., : rows * factor, : columns * factor, :]
    blocks = whole.reshape(*image.shape[:-3], rows, factor, columns, factor, 3)
    return blocks.mean(axis=(-4, -2)).round().astype(np.uint8)


def randomize_palette(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Replace every distinct colour by a random one; an image of too many colours comes back as it is."""
    codes = image.reshape(-1, 3).astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    found, which = np.unique(codes, return_inverse=True)
    if len(found) > MOST_COLOURS:
        return image
    return rng.integers(0, 256, (len(found), 3), dtype=np.uint8)[which].reshape(image.shape)


def jitter_colors(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exchange channels; invert, scale and shift each."""
    image = image[..., rng.permutation(3)]
    image = image ^ np.where(rng.random(3) < 0.5, 255, 0).astype(np.uint8)
    gain, offset = rng.uniform(0.3, 1.3, 3), rng.uniform(-60, 120, 3)
    return (image * gain + offset).clip(0, 255).round().astype(np.uint8)


def augment_geometry(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror, roll, and one time in three cut out a part and enlarge it two or three times."""
    height, width = image.shape[-3:-1]
    image = image[..., :: rng.choice([1, -1]), :: rng.choice([1, -1]), :]
    image = np.roll(image, (rng.integers(height), rng.integers(width)), axis=(-3, -2))
    if rng.random() < 1 / 3 and min(height, width) >= 6:
        factor = int(rng.integers(2, 4))
        part = image[..., : -(-height // factor), : -(-width // factor), :]
        image = part.repeat(factor, axis=-3).repeat(factor, axis=-2)[..., :height, :width, :]
    return image


def augment(image: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """Return a strange uint8[..., H, W, 3] of one.

    Args:
        image: any image.
        rng: where every choice comes from.
        strength: the probability of each of the two kinds of change, from 0 (never) to 1 (always).
    """
    if rng.random() < strength:
        image = augment_geometry(image, rng)
    if rng.random() < strength:
        image = randomize_palette(image, rng) if rng.random() < 0.5 else jitter_colors(image, rng)
    return np.ascontiguousarray(image)
