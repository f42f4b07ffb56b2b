"""Many pictures on one: rows of pictures on white, each beside the one before it."""

from collections.abc import Sequence

from PIL import Image


def image_grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image | None:
    """Return pictures laid in rows, or None if there is none."""
    rows = [row for row in rows if row]
    if not rows:
        return None
    heights = [max(picture.height for picture in row) for row in rows]
    laid = Image.new("RGB", (max(sum(picture.width for picture in row) for row in rows), sum(heights)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for picture in row:
            laid.paste(picture, (left, top))
            left += picture.width
        top += height
    return laid
