"""COCO segmentations (polygons, compressed or uncompressed run-length encoding) to and from masks bool[H, W].

The polygons of one object may overlap. `COCO.annToMask` merges them, so that a pixel is in the object or not. REFER's
own API and LISA add them up instead, and a pixel in two polygons becomes 2; `compat="lisa"` does the same.
"""

import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from pycocotools import mask as coco

from common.errors import UserError

COMPAT_MODES = ("plain", "lisa")
MAX_COORDINATE = 10  # of a polygon, in multiples of the image's longer side
MAX_OUTLINE = 2**20  # pixels along all polygons of an object; pycocotools' memory grows with them
MAX_PIXELS, MAX_DECODED = 2**26, 2**31  # of a mask, and of all parts of an object
MAX_SHIFT = 60  # bits of a run length


class MaskError(UserError):
    """An invalid mask or segmentation."""


def check_compat(compat: str) -> None:
    """Raise `MaskError` unless `compat` is one of `COMPAT_MODES`."""
    if compat not in COMPAT_MODES:
        raise MaskError(f"expected compat to be one of {', '.join(COMPAT_MODES)}, got {compat!r}")


def decode_segmentation(
    segmentation: Any, height: int, width: int, compat: str = "plain"
) -> Bool[np.ndarray, "H W"] | UInt8[np.ndarray, "H W"]:
    """Return the mask of an annotation's `segmentation`: bool, or with "lisa" the number of parts at each pixel.

    It is a list of polygons, each [x0, y0, x1, y1, ...] in pixels; an RLE dict, compressed (`counts` is text) or not
    (`counts` is a list); or a list of such dicts. An empty list is an empty mask.

    Raises:
        MaskError: the segmentation is malformed or does not fit the image.
    """
    check_compat(compat)
    parts = [segmentation] if isinstance(segmentation, dict) else segmentation
    if not isinstance(parts, Sequence) or isinstance(parts, str):
        raise MaskError(f"expected polygons or run lengths, got {type(segmentation).__name__}")
    if min(height, width) < 1 or height * width > MAX_PIXELS or height * width * len(parts) > MAX_DECODED:
        limits = f"at most {MAX_PIXELS:,} pixels, and {MAX_DECODED:,} in all of its parts"
        raise MaskError(f"expected {limits}, got {len(parts)} of {height} x {width}")
    converted = [_checked_rle(one, height, width) for one in parts if isinstance(one, dict)]
    polygons = [_checked_polygon(one, height, width) for one in parts if not isinstance(one, dict)]
    if sum(map(_outline, polygons)) > MAX_OUTLINE:
        raise MaskError(f"expected outlines of at most {MAX_OUTLINE:,} pixels, got more in {len(polygons)} polygons")
    rles = converted + [coco.frPyObjects([polygon], height, width)[0] for polygon in polygons if polygon]
    if compat == "lisa":
        total = np.zeros((height, width), np.uint8)
        for rle in rles:
            total += coco.decode(rle)
        return total
    return coco.decode(coco.merge(rles)).astype(bool) if rles else np.zeros((height, width), dtype=bool)


def _checked_polygon(polygon: Any, height: int, width: int) -> list[float]:
    """Return the corners; none for fewer than three, since pycocotools would read four numbers as a box."""
    if isinstance(polygon, Sequence) and len(polygon) in (0, 2, 4):
        return []
    if not isinstance(polygon, Sequence) or isinstance(polygon, str) or len(polygon) % 2:
        raise MaskError(f"expected a polygon [x0, y0, x1, y1, ...], got {reprlib.repr(polygon)}")
    limit = MAX_COORDINATE * max(height, width)
    if not all(isinstance(value, int | float) and abs(value) <= limit for value in polygon):
        raise MaskError(f"expected a polygon on an image of {height} x {width}, got {reprlib.repr(polygon)}")
    return list(polygon)


def _outline(polygon: list[float]) -> float:
    """Return the length of a polygon's edges, rows and columns added."""
    corners = np.array(polygon, dtype=float).reshape(-1, 2)
    return float(np.abs(np.diff(corners, axis=0, append=corners[:1])).sum())


def _checked_rle(part: dict, height: int, width: int) -> dict:
    counts, size = part.get("counts"), part.get("size")
    if not isinstance(size, Sequence) or list(size) != [height, width]:
        raise MaskError(f"expected run lengths of size [{height}, {width}], got size {reprlib.repr(size)}")
    if isinstance(counts, list):
        if not all(isinstance(run, int) and run >= 0 for run in counts) or sum(counts) != height * width:
            raise MaskError(f"expected run lengths that add up to {height} x {width}, got {reprlib.repr(counts)}")
        return coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    if not isinstance(counts, str | bytes):
        raise MaskError(f"expected counts as text or a list of numbers, got {type(counts).__name__}")
    counts = counts.encode() if isinstance(counts, str) else counts
    runs = _decompress(counts) if all(48 <= character < 112 for character in counts) else []
    if min(runs, default=0) < 0 or sum(runs) != height * width:  # pycocotools would return uninitialized memory
        raise MaskError(f"expected run lengths that add up to {height} x {width}, got {reprlib.repr(counts)}")
    return {"size": [height, width], "counts": counts}


def _decompress(counts: bytes) -> list[int]:
    """Return run lengths from COCO's LEB128-like text: 5 bits a character, each run less the one two before it."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = character - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if shift > MAX_SHIFT:
            return []
        if not bits & 0x20:
            value -= (bits & 0x10) << (shift - 4)  # the sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def encode_mask(mask: Bool[np.ndarray, "H W"]) -> dict[str, Any]:
    """Return a mask as compressed RLE for JSON: `size` [H, W] and `counts` as text."""
    if mask.ndim != 2 or mask.dtype != bool:
        raise MaskError(f"expected a mask bool[H, W], got {mask.dtype}{list(mask.shape)}")
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_mask(rle: dict[str, Any]) -> Bool[np.ndarray, "H W"]:
    """Return the mask of `encode_mask`; raise `MaskError` if the RLE is damaged."""
    try:
        height, width = rle["size"]
        return decode_segmentation(rle, int(height), int(width))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MaskError(f"expected run lengths with size and counts, got {reprlib.repr(rle)}") from error
