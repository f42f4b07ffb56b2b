"""How many tokens an image takes: the settings of processors that split images into tiles or keep their size.

A frame is small: tiles of it are enlargements, and cost 1,000 to 3,300 tokens. So one tile is the default.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from common.errors import UserError
from vlm.letterbox import share_seen

FRAME_SIZE = (210, 160)  # rows and columns that tokens are counted for
Choice = dict[str, Any]  # settings of an image processor


def limit_image_tokens(vlm: Any, most: int | None) -> None:
    """Set a `PretrainedVLM`'s processor to as many image tokens a frame as `most` allows; None: to a single tile.

    `UserError` if its class cannot take so few; the message tells what it takes.
    """
    pictures = vlm.processor.image_processor
    if most is None:
        if choice := next(_tilings(pictures), None):
            _apply(vlm, choice)
        return
    counts = []
    for choice in (*_tilings(pictures), *_sizes(pictures, most)) or ({},):
        _apply(vlm, choice)
        counts.append((image_tokens(vlm) // vlm.history, choice))
    allowed = [(count, number) for number, (count, _) in enumerate(counts) if count <= most]
    if not allowed:
        fewest = min(count for count, _ in counts)
        raise UserError(f"--image-tokens: {type(vlm.model).__name__} takes at least {fewest} a frame, got {most}")
    _apply(vlm, counts[max(allowed)[1]][1])


def image_tokens(vlm: Any) -> int:
    """Return the number of image tokens of a frame, those of all earlier ones in the input included."""
    inputs = vlm.preprocess(np.zeros((1, vlm.history, *FRAME_SIZE, 3), np.uint8))
    return vlm.image_ids(inputs).count(vlm.model.config.image_token_id)


def frame_share_seen(vlm: Any) -> float:
    """Return the share of a frame's pixels on which the model's input depends."""

    def pixels(frame: np.ndarray) -> np.ndarray:
        return vlm.preprocess(frame[None, None].repeat(vlm.history, 1))["pixel_values"].cpu().numpy()

    return share_seen(pixels, *FRAME_SIZE)


def describe_image_input(vlm: Any) -> str:
    """Return how many tokens a frame takes, and what part of it is seen."""
    height, width = FRAME_SIZE
    seen = f"{frame_share_seen(vlm):.0%} of a frame of {height} x {width} is seen"
    return f"{type(vlm.model).__name__}: {image_tokens(vlm)} image tokens a decision, {seen}"


def _tilings(pictures: Any) -> Iterator[Choice]:
    """Yield the settings of a processor of tiles, from one tile to all."""
    if hasattr(pictures, "do_image_splitting"):
        yield from ({"do_image_splitting": splits} for splits in (False, True))
    elif hasattr(pictures, "crop_to_patches"):
        yield from ({"min_patches": 1, "max_patches": count} for count in range(1, pictures.max_patches + 1))
    elif grids := getattr(pictures, "image_grid_pinpoints", None):
        grids = sorted(map(list, grids), key=lambda grid: grid[0] * grid[1])
        yield from ({"image_grid_pinpoints": grids[: count + 1]} for count in range(len(grids)))


def _sizes(pictures: Any, most: int) -> Iterator[Choice]:
    """Yield the settings of a processor that keeps an image's size within limits."""
    size = dict(getattr(pictures, "size", None) or {})
    patch = getattr(pictures, "patch_size", None)
    if patch is None or hasattr(pictures, "do_image_splitting"):
        return
    if hasattr(pictures, "merge_size") and "shortest_edge" in size:  # of Qwen: numbers of pixels
        pixels = most * (patch * pictures.merge_size) ** 2
        yield {"size": {"shortest_edge": min(size["shortest_edge"], pixels), "longest_edge": pixels}}
    elif set(size) == {"longest_edge"}:
        side = patch if isinstance(patch, int) else dict(patch)["height"]
        yield from ({"size": {"longest_edge": side * count}} for count in range(1, size["longest_edge"] // side + 1))


def _apply(vlm: Any, choice: Choice) -> None:
    pictures, config = vlm.processor.image_processor, vlm.model.config
    for name, value in choice.items():
        current = getattr(pictures, name, None)
        setattr(pictures, name, type(current)(**value) if isinstance(value, dict) and current is not None else value)
        if hasattr(config, name):  # LLaVA-NeXT counts the tiles again in the model
            setattr(config, name, value)
