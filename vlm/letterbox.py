"""Frames padded so that a processor sees all of them, and what it sees of them.

Some processors cut out the center of an image (LLaVA 1.5: 48 of 210 rows are lost, the player's own among them), others
stretch it into a square. Black borders that bring the frame to the shape of the model's input avoid both.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import UInt8


def input_aspect_ratio(image_processor: Any) -> float | None:
    """Return the width by the height of the one shape that a processor cuts or stretches images to, if it does."""
    if getattr(image_processor, "image_grid_pinpoints", None):  # tiles, which are padded
        return None
    cuts = getattr(image_processor, "do_center_crop", False)
    size = (getattr(image_processor, "crop_size", None) if cuts else None) or getattr(image_processor, "size", None)
    shape = dict(size) if size else {}
    return shape["width"] / shape["height"] if {"width", "height"} <= shape.keys() else None


def pad_to_aspect_ratio(frame: UInt8[np.ndarray, "H W 3"], aspect_ratio: float) -> UInt8[np.ndarray, "h w 3"]:
    """Return a frame in the middle of a black one whose width by height is the ratio, to rounding."""
    height, width = frame.shape[:2]
    rows, columns = max(height, round(width / aspect_ratio)), max(width, round(height * aspect_ratio))
    padded = np.zeros((rows, columns, 3), np.uint8)
    top, left = (rows - height) // 2, (columns - width) // 2
    padded[top : top + height, left : left + width] = frame
    return padded


def share_seen(preprocess: Callable[[np.ndarray], Any], height: int, width: int) -> float:
    """Return the share of a frame's pixels on which the inputs of `preprocess(uint8[H, W, 3])` depend.

    What is not seen is taken to be at the edges: each edge is found by bisection.
    """
    black = np.zeros((height, width, 3), np.uint8)
    unchanged = preprocess(black)

    def is_hidden(axis: int, from_end: bool, count: int) -> bool:
        frame = black.copy()
        frame.swapaxes(0, axis)[slice(-count, None) if from_end else slice(count)] = 255
        return np.array_equal(preprocess(frame), unchanged)

    seen = 1.0
    for axis, side in enumerate((height, width)):
        lost = sum(_largest(partial(is_hidden, axis, end), side - 1) for end in (False, True))
        seen *= 1 - lost / side
    return seen


def _largest(holds: Callable[[int], bool], most: int) -> int:
    """Return the largest count from 0 to `most` for which a condition holds that holds for all smaller ones."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
