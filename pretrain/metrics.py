"""How near a rebuilt image comes to the true one, and what one gets without looking.

Floors, from the least knowledge to the most: the mean colour of the training images, the image's own mean colour, the
image blurred until only its layout is left, and the mean of each square patch that an encoder cuts the image into.
A model that is no better than one of them knows no more than it says.
"""

from collections.abc import Iterable

import numpy as np
from PIL import Image

BLUR = 8  # places along a side of the blurred image
RARE = 0.02  # a colour that covers less of the image is rare


def mean_absolute_error(rebuilt: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return float[3], the mean over places of the absolute error of each channel, of 255; images [..., 3]."""
    return np.abs(rebuilt.astype(float) - true).reshape(-1, 3).mean(0)


def psnr(rebuilt: np.ndarray, true: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in decibels, infinite for equal images."""
    square = np.mean((rebuilt.astype(float) - true) ** 2)
    return float("inf") if square == 0 else float(10 * np.log10(255**2 / square))


def ssim(rebuilt: np.ndarray, true: np.ndarray) -> float:
    """Return the structural similarity of images [H, W, 3], the mean over channels and windows.

    Wang et al. 2004, sec. III: Gaussian windows of 11 x 11 places and deviation 1.5, wholly inside the image (smaller
    ones in an image of fewer than 11 rows or columns), constants 0.01 and 0.03.
    """
    a, b = rebuilt.astype(float), true.astype(float)
    radius = min(5, (min(a.shape[:2]) - 1) // 2)
    window = np.exp(-0.5 * (np.arange(-radius, radius + 1) / 1.5) ** 2)
    window /= window.sum()
    mean_a, mean_b = _windows(a, window), _windows(b, window)
    var_a, var_b = _windows(a * a, window) - mean_a**2, _windows(b * b, window) - mean_b**2
    both = _windows(a * b, window) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    alike = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return float(alike.mean())


def _windows(image: np.ndarray, window: np.ndarray) -> np.ndarray:
    for axis in (0, 1):
        seen = np.lib.stride_tricks.sliding_window_view(image, len(window), axis=axis)
        image = seen @ window
    return image


def mean_colour(images: Iterable[np.ndarray]) -> np.ndarray:
    """Return float[3], the mean colour of images uint8[H, W, 3], each image counting once."""
    return np.mean([image.reshape(-1, 3).mean(0) for image in images], axis=0)


def blurred(colours: np.ndarray) -> np.ndarray:
    """Return colours uint8[H, W, 3] shrunk to 8 x 8, or half where that is less, and enlarged again: their layout."""
    height, width, _ = colours.shape
    size = (min(BLUR, max(1, width // 2)), min(BLUR, max(1, height // 2)))
    small = Image.fromarray(colours).resize(size, Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))


def patch_mean_image(image: np.ndarray, patch: int, rows: int, columns: int) -> np.ndarray:
    """Return float[rows, columns, 3]: for each place of a grid, the mean of the patch that its middle lies in.

    Patches are squares of `patch` pixels from the upper left of an image uint8[H, W, 3]; those at the edge are cut.
    """
    height, width, _ = image.shape
    starts = [np.arange(0, size, patch) for size in (height, width)]
    sums = np.add.reduceat(np.add.reduceat(image.astype(float), starts[0], axis=0), starts[1], axis=1)
    heights, widths = (np.diff([*start, size]) for start, size in zip(starts, (height, width), strict=True))
    means = sums / (heights[:, None] * widths)[..., None]
    row, column = (
        ((np.arange(count) + 0.5) * size / count).astype(int) // patch
        for count, size in ((rows, height), (columns, width))
    )
    return means[row][:, column]


def rare_pixels(image: np.ndarray) -> np.ndarray:
    """Return bool[H, W]: the pixels whose colour covers little of an image uint8[H, W, 3], where it has few colours."""
    codes = image.reshape(-1, 3).astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    _, which, counts = np.unique(codes, return_inverse=True, return_counts=True)
    return (counts[which] < RARE * len(codes)).reshape(image.shape[:2])


def cells_containing(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return bool[rows, columns]: the places of a grid that hold a pixel of a mask bool[H, W]."""
    height, width = mask.shape
    found = np.zeros((rows, columns), dtype=bool)
    row, column = np.nonzero(mask)
    found[row * rows // height, column * columns // width] = True
    return found
