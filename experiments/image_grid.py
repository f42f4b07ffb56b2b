"""Several images on one sheet."""

from collections.abc import Sequence

from PIL import Image


def image_grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image | None:
    """Return rows of images side by side on white, or None if there is none."""
    heights = [max((image.height for image in row), default=0) for row in rows]
    if not any(heights):
        return None
    sheet = Image.new("RGB", (max(sum(image.width for image in row) for row in rows), sum(heights)), "white")
    for number, row in enumerate(rows):
        for column, image in enumerate(row):
            sheet.paste(image, (sum(left.width for left in row[:column]), sum(heights[:number])))
    return sheet
