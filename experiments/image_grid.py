"""Several images on one sheet."""

from collections.abc import Sequence

from PIL import Image


def image_grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image | None:
    """Return rows of images side by side on white, or None if there is none."""
    rows = [row for row in rows if row]
    if not rows:
        return None
    heights = [max(image.height for image in row) for row in rows]
    sheet = Image.new("RGB", (max(sum(image.width for image in row) for row in rows), sum(heights)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for image in row:
            sheet.paste(image, (left, top))
            left += image.width
        top += height
    return sheet
