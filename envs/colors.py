"""Color words of what the console shows."""

from functools import cache

import numpy as np
from jaxtyping import Float

COLORS = {  # word: examples
    "red": ((200, 72, 72), (184, 50, 50), (167, 26, 26), (214, 92, 92), (255, 0, 0)),
    "orange": ((180, 122, 48), (198, 108, 58), (213, 130, 74), (236, 140, 40)),
    "yellow": ((187, 187, 53), (210, 210, 64), (252, 252, 84), (210, 164, 74), (232, 204, 99)),
    "green": ((26, 102, 26), (72, 160, 72), (110, 156, 66), (135, 183, 84), (0, 100, 20), (0, 255, 0)),
    "cyan": ((66, 158, 130), (84, 184, 153), (92, 186, 192), (0, 255, 255)),
    "blue": ((24, 59, 157), (0, 28, 136), (66, 114, 194), (84, 138, 210), (104, 116, 208), (0, 0, 255)),
    "purple": ((125, 48, 173), (78, 50, 181), (146, 70, 192), (110, 20, 130)),
    "pink": ((198, 89, 179), (200, 72, 136), (228, 111, 111), (255, 160, 180), (204, 110, 210)),
    "brown": ((105, 77, 20), (122, 60, 20), (144, 72, 17), (72, 44, 0)),
    "white": ((236, 236, 236), (214, 214, 214), (192, 192, 192)),
    "grey": ((170, 170, 170), (142, 142, 142), (111, 111, 111), (74, 74, 74)),
    "black": ((0, 0, 0), (30, 30, 30)),
}


@cache
def color_word(rgb: int) -> str:
    """Return the word of `COLORS` with the example nearest to 0xRRGGBB in OKLab (Ottosson 2020)."""
    query = _oklab(np.array([rgb >> 16, rgb >> 8 & 255, rgb & 255]))
    distance = {
        word: np.linalg.norm(_oklab(np.array(examples)) - query, axis=1).min() for word, examples in COLORS.items()
    }
    return min(distance, key=distance.__getitem__)


def _oklab(rgb: np.ndarray) -> Float[np.ndarray, "*shape 3"]:
    """Return sRGB [..., 3] from 0 to 255 in OKLab."""
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    lms = np.cbrt(linear @ np.array([[0.4122, 0.2119, 0.0883], [0.5363, 0.6807, 0.2817], [0.0515, 0.1074, 0.6300]]))
    return lms @ np.array([[0.2105, 1.9780, 0.0259], [0.7936, -2.4286, 0.7828], [-0.0041, 0.4506, -0.8087]])
