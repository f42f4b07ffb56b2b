"""Image reconstruction metrics, and baselines that predict pixels without reading them."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from pretrain.pvp_questions import block_means, parse_grid

BLUR_SIZE = 8  # cells along a side of the blurred image
RARE_FRACTION = 0.02  # a rarer color covers less of the image

Metrics = dict[str, Any]


def mean_absolute_error(predicted: np.ndarray, true: np.ndarray) -> Float[np.ndarray, " 3"]:
    """Return the mean absolute error of each channel, from 0 to 255, of images [..., 3]."""
    return np.abs(predicted.astype(float) - true).reshape(-1, 3).mean(0)


def psnr(predicted: np.ndarray, true: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in decibels; infinite for equal images."""
    mse = np.mean((predicted.astype(float) - true) ** 2)
    return float("inf") if mse == 0 else float(10 * np.log10(255**2 / mse))


def ssim(predicted: np.ndarray, true: np.ndarray) -> float:
    """Return the structural similarity of images [H, W, 3], the mean over channels and windows.

    Wang et al. 2004, sec. III: Gaussian windows of 11 x 11 pixels and deviation 1.5 that lie inside the image (smaller
    windows in an image of fewer than 11 rows or columns), constants 0.01 and 0.03.
    """
    a, b = predicted.astype(float), true.astype(float)
    radius = min(5, (min(a.shape[:2]) - 1) // 2)
    window = np.exp(-0.5 * (np.arange(-radius, radius + 1) / 1.5) ** 2)
    window /= window.sum()
    mean_a, mean_b = _filter(a, window), _filter(b, window)
    var_a, var_b = _filter(a * a, window) - mean_a**2, _filter(b * b, window) - mean_b**2
    covariance = _filter(a * b, window) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((numerator / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def _filter(image: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Return a separable convolution of an image [H, W, 3], valid positions only."""
    for axis in (0, 1):
        image = np.lib.stride_tricks.sliding_window_view(image, len(window), axis=axis) @ window
    return image


def image_metrics(
    predicted: np.ndarray, true: UInt8[np.ndarray, "rows cols 3"], small_objects: Bool[np.ndarray, "rows cols"]
) -> Metrics:
    """Return the metrics of any reconstruction [rows, columns, 3]; None for the error of no cell."""

    def mae(mask: np.ndarray) -> float | None:
        return float(mean_absolute_error(predicted[mask], true[mask]).mean()) if mask.any() else None

    channels = mean_absolute_error(predicted, true)
    return {
        "mae": float(channels.mean()),
        **{f"mae_{name}": float(value) for name, value in zip(("red", "green", "blue"), channels, strict=True)},
        "mae_small_objects": mae(small_objects),
        "mae_background": mae(~small_objects),
        "psnr": psnr(predicted, true),
        "ssim": ssim(predicted, true),
        "n": int(true.shape[0] * true.shape[1]),
        "n_small_objects": int(small_objects.sum()),
    }


def mean_color(images: Iterable[UInt8[np.ndarray, "_ _ 3"]]) -> Float[np.ndarray, " 3"]:
    """Return the mean color of images; each image has the same weight."""
    return np.mean([image.reshape(-1, 3).mean(0) for image in images], axis=0)


def blurred(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Return an image resized to at most `BLUR_SIZE` x `BLUR_SIZE` pixels and back, which leaves its layout."""
    height, width, _ = image.shape
    size = (min(BLUR_SIZE, max(1, width // 2)), min(BLUR_SIZE, max(1, height // 2)))
    small = Image.fromarray(image).resize(size, Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))


def patch_mean_image(
    image: UInt8[np.ndarray, "H W 3"], patch_size: int, grid: str
) -> Float[np.ndarray, "rows columns 3"]:
    """Return for each grid cell the mean of the patch, a square from the upper left, that holds the cell's center."""
    means, (height, width, _), parsed = block_means(image, patch_size), image.shape, parse_grid(grid)
    row, column = (
        ((np.arange(count) + 0.5) * size).astype(int).clip(0, side - 1) // patch_size
        for count, size, side in zip(
            parsed.shape_of(height, width), parsed.cell_size(height, width), (height, width), strict=True
        )
    )
    return means[row][:, column]


def baselines(
    image: UInt8[np.ndarray, "H W 3"],
    true: UInt8[np.ndarray, "rows cols 3"],
    patch_size: int,
    grid: str,
    training_mean: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return what one would predict for the cells `true` of a grid on an image without reading pixels, by name.

    `training_mean` is the mean color of the training images, float[3], if known.
    """
    found = {} if training_mean is None else {"training mean": np.broadcast_to(training_mean, true.shape)}
    found["image mean"] = np.broadcast_to(true.reshape(-1, 3).mean(0), true.shape)
    return found | {"blurred": blurred(true), "patch mean": patch_mean_image(image, patch_size, grid)}


def rare_color_mask(image: UInt8[np.ndarray, "H W 3"]) -> Bool[np.ndarray, "H W"]:
    """Return the pixels whose exact color covers less than `RARE_FRACTION` of the image."""
    codes = image.reshape(-1, 3).astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    _, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    return (counts[inverse] < RARE_FRACTION * len(codes)).reshape(image.shape[:2])


def cells_containing(mask: Bool[np.ndarray, "H W"], grid: str) -> Bool[np.ndarray, "rows columns"]:
    """Return the grid cells that contain a pixel of a mask."""
    parsed = parse_grid(grid)
    cells = np.zeros(parsed.shape_of(*mask.shape), dtype=bool)
    row, column = (
        (pixels / size + 1e-9).astype(int)
        for pixels, size in zip(np.nonzero(mask), parsed.cell_size(*mask.shape), strict=True)
    )
    cells[row, column] = True
    return cells
