"""Classes of the objects of Carnival and Ms. Pac-Man, by color, size and position."""

from dataclasses import dataclass
from typing import Any

Box = tuple[int, int, int, int]  # top, left, bottom, right, the last two exclusive


@dataclass(frozen=True)
class ObjectClass:
    """The bounds of a class, all of which must hold; ranges are (least, greatest), in pixels."""

    name: str
    colors: tuple[int, ...] = ()  # 0xRRGGBB; empty for any
    wall: bool = False  # has the color of the walls
    rows: tuple[int, int] = (0, 999)  # that contain its box
    size: tuple[int, int] = (0, 9999)
    height: tuple[int, int] = (0, 999)
    width: tuple[int, int] = (0, 999)
    single: bool = False  # all regions of the class form one object

    def matches(self, color: int, wall_color: int, size: int, box: Box) -> bool:
        """Return whether an object may belong to the class."""
        top, left, bottom, right = box
        if (self.wall and color != wall_color) or (self.colors and color not in self.colors):
            return False
        measures = ((self.size, size), (self.height, bottom - top), (self.width, right - left))
        in_range = all(least <= value <= greatest for (least, greatest), value in measures)
        return in_range and self.rows[0] <= top and bottom <= self.rows[1]


GHOST: dict[str, Any] = {"height": (5, 10), "width": (4, 9), "size": (24, 80)}
EYES: dict[str, Any] = {"height": (3, 5), "width": (6, 9), "size": (8, 23)}
GHOSTS = {"red": 0xC84848, "pink": 0xC659B3, "cyan": 0x54B899, "orange": 0xB47A30, "blue": 0x4272C2, "white": 0xD6D6D6}
OBJECT_CLASSES = {  # the first match counts
    "Carnival": (
        ObjectClass("bullet", (0xB7C25F,), width=(1, 2), height=(2, 20)),
        ObjectClass("stand", (0xB7C25F,), rows=(28, 38)),
        ObjectClass("shelf", (0xAAAAAA,), rows=(38, 42)),
        ObjectClass("bonus sign", (0xD65C5C, 0xD5824A, 0x548AD2), rows=(27, 42), single=True),
        ObjectClass("pipe", rows=(14, 28), single=True),
        ObjectClass("rabbit", (0xC0C0C0,), height=(10, 16)),
        ObjectClass("bullet box", (0xC0C0C0,), height=(9, 9)),
        ObjectClass("flying duck", (0xBBBB35,), rows=(104, 200)),
        ObjectClass("flying duck", (0xBBBB35,), width=(11, 20)),
        ObjectClass("duck", (0xBBBB35,), height=(10, 16)),
        ObjectClass("owl", (0xD65C5C,), height=(10, 16)),
        ObjectClass("gun", (0x429E82,)),
    ),
    "MsPacman": (
        ObjectClass("pellet", wall=True, height=(1, 2), width=(1, 4)),
        ObjectClass("energizer", wall=True, height=(5, 8), width=(2, 4)),
        *(ObjectClass(f"{word} ghost", (color,), **GHOST) for word, color in GHOSTS.items()),
        *(ObjectClass("pair of eyes", (color,), **EYES) for color in GHOSTS.values()),
        ObjectClass("pac-man", (0xD2A44A,), height=(5, 12), width=(3, 9)),
        ObjectClass("fruit", (0xB83232,), height=(7, 11), width=(6, 9)),
        ObjectClass("ghost", height=(9, 10), width=(8, 9), size=(50, 80)),  # two that overlap
    ),
}
