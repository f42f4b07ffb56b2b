"""Masks made visible: their border in a colour that no game uses, and what lies outside dimmed."""

import numpy as np

SHOWN = (255, 0, 255)  # the colour of a mask's border
DIMMED = 0.45  # of its brightness keeps what lies outside
ENLARGED = 3


def draw_mask(image: np.ndarray, mask: np.ndarray, scale: int = ENLARGED, dim: bool = True) -> np.ndarray:
    """Return an image uint8[H, W, 3] `scale` times as large, with the border of a mask bool[H, W] drawn inside it.

    Without `dim` what lies outside the mask is left as it is.
    """
    large, shown = (part.repeat(scale, 0).repeat(scale, 1) for part in (image, mask))
    inner = shown.copy()
    for axis in (0, 1):
        for step in (1, -1):
            inner &= np.roll(shown, step, axis)
    picture = np.where(shown[..., None], large, (large * DIMMED).astype(np.uint8)) if dim else large
    picture[shown & ~inner] = SHOWN
    return picture
