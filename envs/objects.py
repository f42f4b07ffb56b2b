"""Object detection in a frame by connected components of one color.

    find_objects(frame, "Carnival")  ->  [GameObject(name="pipe", color="purple", box=(15, 72, 27, 98), ...), ...]

Nothing is learned and nothing is read from the console's memory; the same frame gives the same list. The steps:

1. Rows of the status display (score, lives, bullets) are removed in the games of `HUD`.
2. The most common color is the background. Regions of another color that are large, or span the frame, are background
   too, and so are medium-sized regions of a color that covers much of the frame (walls); small ones are pellets.
3. Regions that touch are one object where one of them is small, or where both have one color, once as drawn and once
   blended: a sprite that is drawn in every other frame shows as the maximum of itself and the background. Regions
   inside another's box, pairs of one shape side by side (eyes) and pieces cut by the frame's edge are merged as well.
4. Objects of Carnival and Ms. Pac-Man are classified by `envs.object_classes`.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

from common.errors import UserError
from envs.colors import color_word
from envs.games import find_game
from envs.object_classes import OBJECT_CLASSES, Box, ObjectClass

HUD = {"Carnival": ((0, 14), (200, 214)), "MsPacman": ((172, 210),)}  # rows [from, to) of the status display

BACKGROUND_SHARE = 1 / 64  # of the frame: a region of at least this size is background
SPAN_SHARE = 0.9  # of the frame's height or width: so is one of at least this extent
WALL_SHARE = 0.04  # of the frame: least total area of the color of walls
MAX_PELLET = 40  # pixels: largest object of such a color
SMALL = 24  # pixels: a region up to this size is merged with its neighbors
MAX_EXTENT = 34  # rows or columns of a merged object
MIN_SIZE = 2  # pixels of an object
MAX_REGIONS = 2000  # a frame with more is noise or a photograph, and has no objects (games have up to 400)
LEFT_EDGES = (0, 8)  # columns where the picture begins: the console may blank 8
EDGE_GAP = 4  # rows between the pieces of a sprite that an edge cuts
NEIGHBORHOOD = np.ones((3, 3), dtype=bool)  # 8-connected
Pair = tuple[int, int]  # the indices of two regions


@dataclass(frozen=True, eq=False)
class GameObject:
    """One object of a frame."""

    name: str | None  # of its class ("rabbit"), None where it is unknown
    color: str  # the word of `envs.colors.COLORS` for most of its pixels, empty where no color has most
    box: Box
    patch: Bool[np.ndarray, "box_height box_width"] = field(repr=False)  # its pixels within the box
    frame_size: tuple[int, int]  # height, width
    categories: tuple[str, ...] = ()  # more general nouns than its name

    @property
    def size(self) -> int:
        """Its number of pixels."""
        return int(self.patch.sum())

    @property
    def center(self) -> tuple[float, float]:
        """Row and column of the middle of its box."""
        top, left, bottom, right = self.box
        return (top + bottom - 1) / 2, (left + right - 1) / 2

    @property
    def mask(self) -> Bool[np.ndarray, "height width"]:
        """Its pixels in the frame."""
        mask = np.zeros(self.frame_size, dtype=bool)
        top, left, bottom, right = self.box
        mask[top:bottom, left:right] = self.patch
        return mask


def find_objects(frame: UInt8[np.ndarray, "height width 3"], game_name: str) -> list[GameObject]:
    """Return the objects of a frame of native size, from top to bottom, then from left to right."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
        raise UserError(f"expected a frame uint8[H, W, 3], got {frame.dtype}{list(frame.shape)}")
    game = find_game(game_name).name
    classes = OBJECT_CLASSES.get(game, ())
    regions = _Regions(frame, HUD.get(game, ()))
    if len(regions.colors) > MAX_REGIONS:
        return []
    class_colors = _class_colors(regions, classes)
    merged = _merge(regions, class_colors, classes)
    found = [_make_object(regions, members, class_colors, classes) for members in merged]
    found = [thing for thing in found if thing.size >= MIN_SIZE]
    return sorted(found, key=lambda thing: (*thing.box, thing.color, thing.size))


class _Regions:
    """The connected regions of one color that may be objects, numbered from 0.

    labels: int[H, W], 1 + a pixel's region, 0 for background and HUD; colors: 0xRRGGBB, sizes and boxes of the N
    regions; background: the most common color; wall: the most common color of background regions, -1 for none.
    """

    def __init__(self, frame: np.ndarray, hud: tuple[tuple[int, int], ...]):
        pixels = frame.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)  # [H, W]
        for first, last in hud:
            pixels[first:last] = -1
        palette, counts = np.unique(pixels, return_counts=True)
        counts = np.where(palette < 0, 0, counts)
        total = int(counts.sum())
        self.background = int(palette[counts.argmax()])
        self.wall, most = -1, 0
        self.labels: np.ndarray = np.zeros(pixels.shape, dtype=np.int32)
        self.colors: list[int] = []
        self.sizes: list[int] = []
        self.boxes: list[Box] = []
        extents = ndimage.find_objects(np.searchsorted(palette, pixels) + 1)
        for color, count, extent in zip(palette.tolist(), counts.tolist(), extents, strict=True):
            if color in (-1, self.background):
                continue
            if self._add_color(color, extent, pixels[extent] == color, total, count) and count > most:
                self.wall, most = color, count

    def _add_color(self, color: int, extent: tuple[slice, slice], mask: np.ndarray, total: int, count: int) -> bool:
        """Add the regions of one color that may be objects; return whether it is the color of a wall."""
        height, width = self.labels.shape
        parts = np.asarray(ndimage.label(mask, NEIGHBORHOOD)[0])
        sizes = np.bincount(parts.ravel())[1:]
        boxes = ndimage.find_objects(parts)
        heights = np.array([rows.stop - rows.start for rows, _ in boxes])
        widths = np.array([columns.stop - columns.start for _, columns in boxes])
        large = sizes >= BACKGROUND_SHARE * total
        kept = ~(large | (heights >= SPAN_SHARE * height) | (widths >= SPAN_SHARE * width))
        if is_wall := bool(large.any()) and count >= WALL_SHARE * total:
            kept &= sizes <= MAX_PELLET
        for part in np.flatnonzero(kept):
            rows, columns = boxes[part]
            labels = self.labels[extent][rows, columns]
            labels[parts[rows, columns] == part + 1] = len(self.colors) + 1
            top, left = extent[0].start + rows.start, extent[1].start + columns.start
            self.colors.append(color)
            self.sizes.append(int(sizes[part]))
            self.boxes.append((top, left, top + int(heights[part]), left + int(widths[part])))
        return is_wall

    def classify(self, classes: tuple[ObjectClass, ...], color: int, size: int, box: Box) -> ObjectClass | None:
        """Return the first class that an object matches."""
        return next((cls for cls in classes if cls.matches(color, self.wall, size, box)), None)

    def blend(self, color: int) -> int:
        """Return the maximum of a color and the background, per channel."""
        return sum(max(color & channel, self.background & channel) for channel in (0xFF0000, 0xFF00, 0xFF))


def _class_colors(regions: _Regions, classes: tuple[ObjectClass, ...]) -> list[int | None]:
    """Return each region's color as `classes` give it, undoing a blend; None for a color of no class."""
    known = {color for cls in classes for color in cls.colors}
    unblended = {regions.blend(color): color for color in sorted(known)} | {color: color for color in known}
    if any(cls.wall for cls in classes):
        unblended[regions.wall] = regions.wall
    return [unblended.get(color) for color in regions.colors]


def _touching(labels: np.ndarray) -> set[Pair]:
    """Return the pairs of 8-connected regions."""
    pairs = set()
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        height, width = labels.shape
        here = labels[: height - down, max(0, -right) : width - max(0, right)]
        there = labels[down:, max(0, right) : width + min(0, right)]
        differ = (here != there) & (here > 0) & (there > 0)
        both = np.sort(np.stack([here[differ], there[differ]]), axis=0) - 1
        pairs |= set(zip(*both.tolist(), strict=True))
    return pairs


def _related(regions: _Regions) -> set[Pair]:
    """Return the pairs that belong together without touching: inside, side by side, cut by the frame's edge."""
    if not regions.boxes:
        return set()
    top, left, bottom, right = np.array(regions.boxes).T[..., None]  # [N, 1] each
    size, color = np.array(regions.sizes)[:, None], np.array(regions.colors)[:, None]
    same, width = color == color.T, regions.labels.shape[-1]
    inside = (top >= top.T) & (left >= left.T) & (bottom <= bottom.T) & (right <= right.T) & (size <= SMALL)
    twins = same & (top == top.T) & (bottom == bottom.T) & (size == size.T) & (size <= SMALL)
    twins &= (left.T - right >= 0) & (left.T - right <= 2)
    cut = same & (np.isin(left, LEFT_EDGES) & (left == left.T) | (right == width) & (width == right.T))
    cut &= np.maximum(top, top.T) - np.minimum(bottom, bottom.T) <= EDGE_GAP
    np.fill_diagonal(inside, False)
    return {(int(min(pair)), int(max(pair))) for pair in np.argwhere(inside | twins | cut) if pair[0] != pair[1]}


def _merge(regions: _Regions, class_colors: list[int | None], classes: tuple[ObjectClass, ...]) -> list[list[int]]:
    """Return the objects, each as the indices of its regions.

    Regions of two class colors never merge: a blend of two sprites goes to the larger and does not connect them.
    """
    related = _related(regions)
    groups = {index: [index] for index in range(len(regions.sizes))}
    group_of, group_color = list(groups), dict(enumerate(class_colors))

    def join(one: int, other: int) -> None:
        one, other = sorted((group_of[one], group_of[other]))
        group_color[one] = group_color[other] if group_color[one] is None else group_color[one]
        for member in groups.pop(other):
            groups[one].append(member)
            group_of[member] = one

    first_of: dict[ObjectClass, int] = {}
    for index, class_color in enumerate(class_colors):
        color = regions.colors[index] if class_color is None else class_color
        cls = regions.classify(classes, color, regions.sizes[index], regions.boxes[index])
        if cls and cls.single and first_of.setdefault(cls, index) != index:
            join(first_of[cls], index)
    for one, other in _merge_order(_touching(regions.labels) | related, regions.sizes, class_colors):
        first, second = group_of[one], group_of[other]
        if first == second or not _mergeable(regions, class_colors, one, other, (one, other) in related):
            continue
        colors = {group_color[first], group_color[second]}
        if None not in colors and len(colors) == 2:
            continue
        boxes = np.array([regions.boxes[i] for i in (*groups[first], *groups[second])])
        if (boxes[:, 2:].max(0) - boxes[:, :2].min(0)).max() <= MAX_EXTENT:
            join(one, other)
    return list(groups.values())


def _merge_order(pairs: set[Pair], sizes: list[int], class_colors: list[int | None]) -> list[Pair]:
    """Return the pairs of two class colors first, then from the smallest region, each to its largest neighbor."""

    def key(pair: Pair) -> tuple:
        if None not in (class_colors[pair[0]], class_colors[pair[1]]):
            return (0, 0, pair)
        smaller, larger = sorted(pair, key=lambda index: (class_colors[index] is not None, sizes[index], index))
        return (sizes[smaller], -sizes[larger], pair)

    return sorted(pairs, key=key)


def _mergeable(regions: _Regions, class_colors: list[int | None], one: int, other: int, related: bool) -> bool:
    """Return whether two regions that touch, or are related, are parts of one object."""
    a, b = regions.colors[one], regions.colors[other]
    if a == b or regions.blend(a) == b or regions.blend(b) == a:
        return True
    if class_colors[one] is not None and class_colors[other] is not None:
        return class_colors[one] == class_colors[other]
    smaller = min((one, other), key=lambda index: (class_colors[index] is not None, regions.sizes[index]))
    return related or regions.sizes[smaller] <= SMALL


def _make_object(
    regions: _Regions, members: list[int], class_colors: list[int | None], classes: tuple[ObjectClass, ...]
) -> GameObject:
    """Return the object of some regions; its color is a class color, or else that of the largest region."""
    boxes = np.array([regions.boxes[index] for index in members])
    (top, left), (bottom, right) = boxes[:, :2].min(0).tolist(), boxes[:, 2:].max(0).tolist()
    labels = regions.labels[top:bottom, left:right]
    patch = labels == members[0] + 1 if len(members) == 1 else np.isin(labels, np.array(members) + 1)
    largest = max(members, key=lambda index: (class_colors[index] is not None, regions.sizes[index]))
    class_color = class_colors[largest]
    color = regions.colors[largest] if class_color is None else class_color
    box, size = (top, left, bottom, right), sum(regions.sizes[index] for index in members)
    cls = regions.classify(classes, color, size, box)
    return GameObject(cls.name if cls else None, color_word(color), box, patch, regions.labels.shape)
