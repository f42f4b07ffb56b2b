"""The objects of a frame: what stands out from the scenery, with box, mask, colour word and, if known, name.

    find_objects(frame, "Carnival")  ->  [GameObject(name="pipe", colour="purple", box=(15, 72, 27, 98), ...), ...]

Nothing is learnt and nothing is read from the console's memory; the same frame gives the same list. The steps:

1. The status display (score, lives, bullets) is cut off where a game's `HUD` tells its rows; where it does not, scores
   count as objects.
2. The most common colour is the floor. Connected regions of one other colour that are large, or span the frame, are
   scenery, and so are middling regions of a colour that covers much of the frame as scenery (walls); small ones of it
   are not (Ms. Pac-Man's pellets have the colour of her walls).
3. Regions that touch are one object where one of them is small (sprites of several colours) or where both have one
   colour, once seen over the floor and once not: a frame is the brighter of the console's last two, so that a sprite
   drawn in every other one of them shows as the maximum of itself and the floor. What lies inside another's box, pairs
   of one shape side by side (eyes) and the pieces that the frame's edge cuts a sprite into join as well.
4. Carnival's and Ms. Pac-Man's objects get their names by colour, size and place (`KINDS`).
"""

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from scipy import ndimage

from common.errors import UserError
from envs.games import find_game

Box = tuple[int, int, int, int]  # top, left, bottom, right, the last two exclusive

HUD = {"Carnival": ((0, 14), (200, 214)), "MsPacman": ((172, 210),)}  # rows [from, to) of the status display

SCENERY_SHARE = 1 / 64  # of the frame: a region as large as this is scenery
SPAN_SHARE = 0.9  # of the frame's width or height: so is one as long as this
COMMON_SHARE = 0.04  # of the frame: a scenery's colour that covers this much is a wall's or the ground's
DOT = 40  # pixels: a region of such a colour is an object up to this size
SMALL = 24  # pixels: a region up to this size is part of what it touches
SPRITE = 34  # rows or columns: nothing grows beyond this by joining
SPECK = 2  # pixels: what is smaller is no object
CROWD = 2000  # regions: a frame of more is noise or a photograph, and has no objects (games have up to 400)
EDGES, GAP = (0, 8), 4  # columns where the picture begins (the console may blank 8); rows between pieces cut there
AROUND = np.ones((3, 3), dtype=bool)  # neighbours at corners count

COLOURS = {  # a word's examples, as the console shows them
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


@dataclass(frozen=True, eq=False)
class GameObject:
    """One object of a frame.

    name: what it is ("rabbit"), None where that is not known; colour: the word of `COLOURS` for most of its pixels;
    box: top, left, bottom, right in pixels of the frame, the last two exclusive; patch: bool[bottom - top,
    right - left], its pixels; frame_size: rows and columns of the frame.
    """

    name: str | None
    colour: str
    box: Box
    patch: np.ndarray = field(repr=False)
    frame_size: tuple[int, int]

    @property
    def size(self) -> int:
        """How many pixels it has."""
        return int(self.patch.sum())

    @property
    def centre(self) -> tuple[float, float]:
        """Row and column of the middle of its box."""
        top, left, bottom, right = self.box
        return (top + bottom - 1) / 2, (left + right - 1) / 2

    @property
    def mask(self) -> np.ndarray:
        """Its pixels in the frame, bool[H, W]."""
        whole = np.zeros(self.frame_size, dtype=bool)
        top, left, bottom, right = self.box
        whole[top:bottom, left:right] = self.patch
        return whole


@dataclass(frozen=True)
class Kind:
    """What an object is called by: every bound that is given must hold.

    colours: as 0xRRGGBB, empty for any; wall: has the colour of the largest scenery beside the floor; rows: its box
    lies within these rows; size, height, width: least and greatest; whole: all regions of this kind are one object.
    """

    name: str
    colours: tuple[int, ...] = ()
    wall: bool = False
    rows: tuple[int, int] = (0, 999)
    size: tuple[int, int] = (0, 9999)
    height: tuple[int, int] = (0, 999)
    width: tuple[int, int] = (0, 999)
    whole: bool = False


GHOST: dict[str, Any] = {"height": (5, 10), "width": (4, 9), "size": (24, 80)}
EYES: dict[str, Any] = {"height": (3, 5), "width": (6, 9), "size": (8, 23)}
GHOSTS = {"red": 0xC84848, "pink": 0xC659B3, "cyan": 0x54B899, "orange": 0xB47A30, "blue": 0x4272C2, "white": 0xD6D6D6}
KINDS = {  # the first that fits
    "Carnival": (
        Kind("bullet", (0xB7C25F,), width=(1, 2), height=(2, 20)),
        Kind("stand", (0xB7C25F,), rows=(28, 38)),
        Kind("shelf", (0xAAAAAA,), rows=(38, 42)),
        Kind("bonus sign", (0xD65C5C, 0xD5824A, 0x548AD2), rows=(27, 42), whole=True),
        Kind("pipe", rows=(14, 28), whole=True),
        Kind("rabbit", (0xC0C0C0,), height=(10, 16)),
        Kind("bullet box", (0xC0C0C0,), height=(9, 9)),
        Kind("flying duck", (0xBBBB35,), rows=(104, 200)),
        Kind("flying duck", (0xBBBB35,), width=(11, 20)),
        Kind("duck", (0xBBBB35,), height=(10, 16)),
        Kind("owl", (0xD65C5C,), height=(10, 16)),
        Kind("gun", (0x429E82,)),
    ),
    "MsPacman": (
        Kind("pellet", wall=True, height=(1, 2), width=(1, 4)),
        Kind("energizer", wall=True, height=(5, 8), width=(2, 4)),
        *(Kind(f"{word} ghost", (code,), **GHOST) for word, code in GHOSTS.items()),
        *(Kind("pair of eyes", (code,), **EYES) for code in GHOSTS.values()),
        Kind("pac-man", (0xD2A44A,), height=(5, 12), width=(3, 9)),
        Kind("fruit", (0xB83232,), height=(7, 11), width=(6, 9)),
        Kind("ghost", height=(9, 10), width=(8, 9), size=(50, 80)),  # two of them mixed
    ),
}


def find_objects(frame: np.ndarray, game_name: str) -> list[GameObject]:
    """Return the objects of a frame from top to bottom, then from left to right.

    Args:
        frame: uint8[H, W, 3], native size.
        game_name: the game, in any spelling that `envs.games.find_game` reads.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
        raise UserError(f"expected a frame uint8[H, W, 3], got {frame.dtype}{list(frame.shape)}")
    game = find_game(game_name).name
    kinds = KINDS.get(game, ())
    regions = _Regions(frame, HUD.get(game, ()))
    if len(regions.codes) > CROWD:
        return []
    families = _families(regions, kinds)
    wholes = [
        _kind_of(regions.wall, regions.codes[i] if code is None else code, regions.sizes[i], regions.boxes[i], kinds)
        for i, code in enumerate(families)
    ]
    wholes = [kind if kind and kind.whole else None for kind in wholes]
    groups = _join(regions, families, wholes)
    found = [_make(regions, members, families, kinds, frame.shape[:2]) for members in groups]
    found = [thing for thing in found if thing.size >= SPECK]
    return sorted(found, key=lambda thing: (*thing.box, thing.colour, thing.size))


@cache
def colour_word(code: int) -> str:
    """Return the word of `COLOURS` whose nearest example is nearest to 0xRRGGBB in OKLab (Ottosson 2020)."""
    asked = _oklab(np.array([code >> 16, code >> 8 & 255, code & 255]))
    nearest = {word: np.linalg.norm(_oklab(np.array(known)) - asked, axis=1).min() for word, known in COLOURS.items()}
    return min(nearest, key=nearest.__getitem__)


def _oklab(rgb: np.ndarray) -> np.ndarray:
    """Return [..., 3] of sRGB [..., 3] from 0 to 255."""
    part = rgb / 255
    light = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    cones = np.cbrt(light @ np.array([[0.4122, 0.2119, 0.0883], [0.5363, 0.6807, 0.2817], [0.0515, 0.1074, 0.6300]]))
    return cones @ np.array([[0.2105, 1.9780, 0.0259], [0.7936, -2.4286, 0.7828], [-0.0041, 0.4506, -0.8087]])


class _Regions:
    """The connected regions of one colour that may be objects, numbered from 0.

    labels: int[H, W], 1 + a pixel's region, 0 for floor, scenery and HUD; codes, sizes: int[N]; boxes: int[N, 4];
    floor, wall: the commonest colour, and the commonest other one among the scenery's (-1: none), as 0xRRGGBB.
    """

    def __init__(self, frame: np.ndarray, hud: tuple[tuple[int, int], ...]):
        codes = frame.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)  # [H, W]
        for first, last in hud:
            codes[first:last] = -1
        colours, counts = np.unique(codes, return_counts=True)
        counts = np.where(colours < 0, 0, counts)
        total = int(counts.sum())
        self.floor = int(colours[counts.argmax()])
        self.wall, most = -1, 0
        self.labels: np.ndarray = np.zeros(codes.shape, dtype=np.int32)
        self.codes: list[int] = []
        self.sizes: list[int] = []
        self.boxes: list[Box] = []
        for index, place in enumerate(ndimage.find_objects(np.searchsorted(colours, codes) + 1)):
            code, share = int(colours[index]), int(counts[index])
            if code in (-1, self.floor):
                continue
            if self._number(code, place, codes[place] == code, total, share) and share > most:
                self.wall, most = code, share

    def _number(self, code: int, place: tuple[slice, slice], mask: np.ndarray, total: int, share: int) -> bool:
        """Number the regions of one colour that may be objects; return whether it has a scenery's region."""
        height, width = self.labels.shape
        parts = np.asarray(ndimage.label(mask, AROUND)[0])
        sizes = np.bincount(parts.ravel())[1:]
        boxes = ndimage.find_objects(parts)
        tall = np.array([rows.stop - rows.start for rows, _ in boxes])
        wide = np.array([columns.stop - columns.start for _, columns in boxes])
        large = sizes >= SCENERY_SHARE * total
        kept = ~(large | (tall >= SPAN_SHARE * height) | (wide >= SPAN_SHARE * width))
        if wall := bool(large.any()) and share >= COMMON_SHARE * total:
            kept &= sizes <= DOT
        for part in np.flatnonzero(kept):
            rows, columns = boxes[part]
            here = self.labels[place][rows, columns]
            here[parts[rows, columns] == part + 1] = len(self.codes) + 1
            top, left = place[0].start + rows.start, place[1].start + columns.start
            self.codes.append(code)
            self.sizes.append(int(sizes[part]))
            self.boxes.append((top, left, top + int(tall[part]), left + int(wide[part])))
        return wall

    def over_floor(self, code: int) -> int:
        """Return a colour as it shows where every other frame lets the floor be seen."""
        return (
            max(code & 0xFF0000, self.floor & 0xFF0000)
            | max(code & 0xFF00, self.floor & 0xFF00)
            | max(code & 0xFF, self.floor & 0xFF)
        )


def _families(regions: _Regions, kinds: tuple[Kind, ...]) -> list[int | None]:
    """Return each region's colour as `kinds` gives it, seen over the floor or not; None for a colour of none."""
    known = {code for kind in kinds for code in kind.colours}
    plain = {regions.over_floor(code): code for code in sorted(known)} | {code: code for code in known}
    if any(kind.wall for kind in kinds):
        plain[regions.wall] = regions.wall
    return [plain.get(code) for code in regions.codes]


def _kind_of(wall: int, code: int, size: int, box: Box, kinds: tuple[Kind, ...]) -> Kind | None:
    """Return the first kind that a thing of this colour, size and box may be of."""
    top, left, bottom, right = box
    for kind in kinds:
        if (kind.wall and code != wall) or (kind.colours and code not in kind.colours):
            continue
        measures = ((kind.size, size), (kind.height, bottom - top), (kind.width, right - left))
        fits = all(least <= value <= greatest for (least, greatest), value in measures)
        if fits and kind.rows[0] <= top and bottom <= kind.rows[1]:
            return kind
    return None


def _touching(labels: np.ndarray) -> set[tuple[int, int]]:
    """Return the pairs of regions that touch, at corners as well."""
    pairs = set()
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        height, width = labels.shape
        here = labels[: height - down, max(0, -right) : width - max(0, right)]
        there = labels[down:, max(0, right) : width + min(0, right)]
        differ = (here != there) & (here > 0) & (there > 0)
        both = np.sort(np.stack([here[differ], there[differ]]), axis=0) - 1
        pairs |= set(zip(*both.tolist(), strict=True))
    return pairs


def _near(regions: _Regions) -> set[tuple[int, int]]:
    """Return the pairs that belong together without touching: inside, twins, cut by the frame's edge."""
    if not regions.boxes:
        return set()
    top, left, bottom, right = (side[:, None] for side in np.array(regions.boxes).T)  # [N, 1] each
    size, code = np.array(regions.sizes)[:, None], np.array(regions.codes)[:, None]
    same, width = code == code.T, regions.labels.shape[-1]
    inside = (top >= top.T) & (left >= left.T) & (bottom <= bottom.T) & (right <= right.T) & (size <= SMALL)
    twins = same & (top == top.T) & (bottom == bottom.T) & (size == size.T) & (size <= SMALL)
    twins &= (left.T - right >= 0) & (left.T - right <= 2)
    edge = same & (np.isin(left, EDGES) & (left == left.T) | (right == width) & (width == right.T))
    edge &= np.maximum(top, top.T) - np.minimum(bottom, bottom.T) <= GAP
    np.fill_diagonal(inside, False)
    return {(int(min(pair)), int(max(pair))) for pair in np.argwhere(inside | twins | edge) if pair[0] != pair[1]}


def _join(regions: _Regions, families: list[int | None], wholes: list[Kind | None]) -> list[list[int]]:
    """Return the objects, each as the numbers of its regions.

    What has a known colour never joins what has another: a mixture of two sprites goes to the larger, and bridges none.
    """
    near = _near(regions)
    groups = {index: [index] for index in range(len(regions.sizes))}
    owner, colour = list(groups), dict(enumerate(families))

    def join(one: int, other: int) -> None:
        one, other = sorted((owner[one], owner[other]))
        colour[one] = colour[other] if colour[one] is None else colour[one]
        for member in groups.pop(other):
            groups[one].append(member)
            owner[member] = one

    for number, kind in enumerate(wholes):
        if kind and (first := wholes.index(kind)) != number:
            join(first, number)
    for one, other in _ordered(_touching(regions.labels) | near, regions.sizes, families):
        if owner[one] == owner[other] or not _belong(regions, families, one, other, (one, other) in near):
            continue
        if None not in (colours := {colour[owner[one]], colour[owner[other]]}) and len(colours) == 2:
            continue
        boxes = np.array([regions.boxes[i] for i in (*groups[owner[one]], *groups[owner[other]])])
        if (boxes[:, 2:].max(0) - boxes[:, :2].min(0)).max() <= SPRITE:
            join(one, other)
    return list(groups.values())


def _ordered(pairs: set[tuple[int, int]], sizes: list[int], families: list[int | None]) -> list[tuple[int, int]]:
    """Return pairs in the order of joining: one colour first, then from the smallest, each to its largest neighbour."""

    def key(pair: tuple[int, int]) -> tuple:
        if None not in (families[pair[0]], families[pair[1]]):
            return (0, 0, pair)
        joiner, host = sorted(pair, key=lambda index: (families[index] is not None, sizes[index], index))
        return (sizes[joiner], -sizes[host], pair)

    return sorted(pairs, key=key)


def _belong(regions: _Regions, families: list[int | None], one: int, other: int, near: bool) -> bool:
    """Return whether two regions that touch, or are near, are parts of one object."""
    a, b = regions.codes[one], regions.codes[other]
    if a == b or regions.over_floor(a) == b or regions.over_floor(b) == a:
        return True
    if families[one] is not None and families[other] is not None:
        return families[one] == families[other]
    joiner = min((one, other), key=lambda index: (families[index] is not None, regions.sizes[index]))
    return near or regions.sizes[joiner] <= SMALL


def _make(
    regions: _Regions,
    members: list[int],
    families: list[int | None],
    kinds: tuple[Kind, ...],
    frame_size: tuple[int, int],
) -> GameObject:
    """Put an object together; its colour is the known one in it, or else that of its largest region."""
    boxes = np.array([regions.boxes[index] for index in members])
    top, left, bottom, right = *(int(v) for v in boxes[:, :2].min(0)), *(int(v) for v in boxes[:, 2:].max(0))
    inside = regions.labels[top:bottom, left:right]
    patch = inside == members[0] + 1 if len(members) == 1 else np.isin(inside, np.array(members) + 1)
    largest = max(members, key=lambda index: (families[index] is not None, regions.sizes[index]))
    known = families[largest]
    code = regions.codes[largest] if known is None else known
    box, size = (top, left, bottom, right), sum(regions.sizes[index] for index in members)
    kind = _kind_of(regions.wall, code, size, box, kinds)
    return GameObject(kind.name if kind else None, colour_word(code), box, patch, frame_size)
