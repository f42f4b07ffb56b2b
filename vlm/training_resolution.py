"""The size of the pictures that a model was taught on: others are brought to it before they are asked about."""

from pathlib import Path

import numpy as np
from PIL import Image

from vlm import checkpoint


def training_resolution(directory: Path) -> tuple[int, int] | None:
    """Return the rows and columns of the images that a checkpoint was taught on, if it tells."""
    size = checkpoint.read_training(directory).get("arguments", {}).get("size")
    return (int(size[0]), int(size[1])) if size else None


def resize_image(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Return a whole image uint8[H, W, 3] at a size, by area where it shrinks and by nearest pixel where it grows."""
    if size is None or image.shape[:2] == size:
        return image
    shrinks = image.shape[0] > size[0] or image.shape[1] > size[1]
    how = Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), how))
