"""Masks as COCO writes them: polygons, run lengths packed or as numbers, and bool[H, W].

COCO's polygons of one object may overlap. Merged, as `COCO.annToMask` does, a pixel is in the object or not. REFER's
own API and LISA add the parts up instead, and a pixel in two polygons becomes 2; `compat="lisa"` does the same.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from common.errors import UserError

COMPATS = ("plain", "lisa")
FAR = 10  # lengths of the image's longer side, beyond which no corner lies


class MaskError(UserError):
    """A mask or a segmentation that is of no use; the message says what was expected."""


def check_compat(compat: str) -> None:
    """Refuse a convention that is not one of `COMPATS`."""
    if compat not in COMPATS:
        raise MaskError(f"expected compat to be one of {', '.join(COMPATS)}, got {compat!r}")


def decode_segmentation(segmentation: Any, height: int, width: int, compat: str = "plain") -> np.ndarray:
    """Return the mask of an annotation's `segmentation`, bool[height, width].

    Args:
        segmentation: a list of polygons, each [x0, y0, x1, y1, ...] in pixels; a run-length dict, packed (`counts` is
            text) or not (`counts` is a list); or a list of such dicts. An empty list is an empty mask.
        height: of the image, in pixels.
        width: of the image, in pixels.
        compat: "plain" merges parts that overlap; "lisa" gives uint8[height, width], the number of parts that hold
            each pixel.
    """
    check_compat(compat)
    runs = _runs(segmentation, height, width)
    if compat == "lisa":
        parts = coco.decode(runs) if runs else np.zeros((height, width, 0), np.uint8)  # [H, W, N]
        return parts.sum(axis=2).astype(np.uint8)
    return coco.decode(coco.merge(runs)).astype(bool) if runs else np.zeros((height, width), dtype=bool)


def _runs(segmentation: Any, height: int, width: int) -> list[dict]:
    parts = [segmentation] if isinstance(segmentation, dict) else segmentation
    if not isinstance(parts, Sequence) or isinstance(parts, str):
        raise MaskError(f"expected polygons or run lengths, got {type(segmentation).__name__}")
    return [
        _run_lengths(part, height, width) if isinstance(part, dict) else _polygon(part, height, width)
        for part in parts
        if isinstance(part, dict) or not _is_flat(part)
    ]


def _is_flat(polygon: Any) -> bool:
    """Whether a polygon has fewer than three corners and so no area; pycocotools would take four numbers for a box."""
    return isinstance(polygon, Sequence) and len(polygon) in (0, 2, 4)


def _polygon(polygon: Any, height: int, width: int) -> dict:
    if not isinstance(polygon, Sequence) or isinstance(polygon, str) or len(polygon) % 2:
        raise MaskError(f"expected a polygon [x0, y0, x1, y1, ...], got {str(polygon)[:60]}")
    most = FAR * max(height, width)  # pycocotools' memory grows with the length of an edge
    if not all(isinstance(value, int | float) and abs(value) <= most for value in polygon):
        raise MaskError(f"expected a polygon on an image of {height} x {width}, got {str(polygon)[:60]}")
    return coco.frPyObjects([list(polygon)], height, width)[0]


def _run_lengths(part: dict, height: int, width: int) -> dict:
    counts, size = part.get("counts"), part.get("size")
    if not isinstance(size, Sequence) or list(size) != [height, width]:
        raise MaskError(f"expected run lengths of size [{height}, {width}], got size {size}")
    if isinstance(counts, list):
        if not all(isinstance(run, int) and run >= 0 for run in counts) or sum(counts) != height * width:
            raise MaskError(f"expected run lengths that add up to {height} x {width}, got {str(counts)[:60]}")
        return coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    if not isinstance(counts, str | bytes):
        raise MaskError(f"expected counts as text or a list of numbers, got {type(counts).__name__}")
    counts = counts.encode() if isinstance(counts, str) else counts
    runs = _unpack(counts) if all(48 <= character < 112 for character in counts) else []
    if min(runs, default=0) < 0 or sum(runs) != height * width:  # pycocotools would show what lay in memory before
        raise MaskError(f"expected run lengths that add up to {height} x {width}, got {str(counts)[:60]}")
    return {"size": [height, width], "counts": counts}


def _unpack(counts: bytes) -> list[int]:
    """Return the numbers of packed run lengths: five bits a character, each run less the one two before it."""
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = character - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            value -= (bits & 0x10) << (shift - 4)  # the sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def encode_mask(mask: np.ndarray) -> dict:
    """Return a mask bool[H, W] as packed run lengths fit for JSON: `size` [H, W] and `counts`, text."""
    if mask.ndim != 2 or mask.dtype != bool:
        raise MaskError(f"expected a mask bool[H, W], got {mask.dtype}{list(mask.shape)}")
    runs = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in runs["size"]], "counts": runs["counts"].decode("ascii")}


def decode_mask(runs: dict) -> np.ndarray:
    """Return the mask of `encode_mask`, bool[H, W]; `MaskError` where the runs are damaged."""
    try:
        height, width = runs["size"]
        return decode_segmentation(runs, int(height), int(width))
    except (KeyError, TypeError, ValueError) as error:
        raise MaskError(f"expected run lengths with size and counts, got {str(runs)[:60]}") from error
