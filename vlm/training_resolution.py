"""The image size that a checkpoint was trained on; other images are resized to it."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vlm import checkpoint


def training_resolution(directory: Path) -> tuple[int, int] | None:
    """Return the rows and columns of a checkpoint's training images, if its `training.json` has them."""
    size = checkpoint.read_training(directory).get("arguments", {}).get("size")
    return (int(size[0]), int(size[1])) if size else None


def resize_image(image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int] | None) -> UInt8[np.ndarray, "h w 3"]:
    """Return an image resized by box filter if a side shrinks, else by nearest pixel; unchanged if `size` is None."""
    if size is None or image.shape[:2] == size:
        return image
    shrinks = image.shape[0] > size[0] or image.shape[1] > size[1]
    resampling = Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), resampling))
