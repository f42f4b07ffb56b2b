"""Images as data URLs, for pages and chat requests."""

import base64
import io

import numpy as np
from PIL import Image


def png_url(image: np.ndarray) -> str:
    """Return an image uint8[H, W, 3 or 4] as a PNG in a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
