"""Draws a mask on an image: its border in a colour that no game uses, the background dimmed."""

import numpy as np
from jaxtyping import Bool, UInt8

MASK_COLOR = (255, 0, 255)
BACKGROUND_DIM = 0.45  # brightness factor outside the mask


def draw_mask(
    image: UInt8[np.ndarray, "H W 3"], mask: Bool[np.ndarray, "H W"], scale: int = 3, dim: bool = True
) -> UInt8[np.ndarray, "h w 3"]:
    """Return an image enlarged `scale` times, with the inner border of a mask and, with `dim`, a darker background."""
    image, mask = (array.repeat(scale, 0).repeat(scale, 1) for array in (image, mask))
    interior = mask.copy()
    for axis in (0, 1):
        for step in (1, -1):
            interior &= np.roll(mask, step, axis)
    drawn = np.where(mask[..., None], image, (image * BACKGROUND_DIM).astype(np.uint8)) if dim else image
    drawn[mask & ~interior] = MASK_COLOR
    return drawn
