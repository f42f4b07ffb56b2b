"""Referring expressions for the objects of a frame: by name, color, size, position, order and relation.

    the red ghost          the left-most rabbit        the second duck from the left
    the largest duck       the owl at the top right    the red ghost above the pac-man

An expression matches exactly one object, by a margin of at least `MARGIN` pixels, or none if its kind is "no_target".
Objects have the names of `envs.objects`, with a color where it distinguishes them, or else their color and size. The
same objects give the same expressions, in the same order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from envs.colors import COLORS
from envs.object_classes import OBJECT_CLASSES
from envs.objects import GameObject

MARGIN = 3  # pixels between the target and the next candidate
MAX_COMPARED = 12  # objects of one noun that are ordered or compared
SIZE_RATIO = 1.25  # of the largest to the second largest, and of the second smallest to the smallest
MIN_LARGE, MAX_SMALL = 150, 16  # pixels
KIND_NAMES = ("name", "extreme", "order", "size", "place", "relation", "no_target")
ORDINALS = ("second", "third")
POSITIONS = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the middle", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
EXTREMES = (("left-most", 1, 1), ("right-most", 1, -1), ("top-most", 0, 1), ("bottom-most", 0, -1))  # word, axis, sign


@dataclass(frozen=True)
class Expression:
    """An expression, its kind (of `KIND_NAMES`), and the index of the object it refers to, None for none."""

    words: str
    kind: str
    target: int | None


def nouns_of(obj: GameObject) -> tuple[str, ...]:
    """Return the nouns of an object, the simplest first."""
    if obj.name:
        first, _, rest = obj.name.partition(" ")
        colored = (rest if first in COLORS else f"{obj.color} {obj.name}",) if obj.color else ()
        return (obj.name, *colored, *obj.categories)
    size = "large " if obj.size >= MIN_LARGE else "small " if obj.size <= MAX_SMALL else ""
    noun = f"{obj.color} object"
    return (noun, f"{size}{noun}") if size else (noun,)


def list_expressions(objects: Sequence[GameObject]) -> list[Expression]:
    """Return every expression that matches exactly one of a frame's objects, each wording once."""
    indices_of: dict[str, list[int]] = {}
    for index, obj in enumerate(objects):
        for noun in nouns_of(obj):
            indices_of.setdefault(noun, []).append(index)
    found: dict[str, Expression] = {}
    for noun, members in indices_of.items():
        for expression in _of_noun(noun, members, objects, indices_of):
            found.setdefault(expression.words, expression)
    return list(found.values())


def draw_expression(
    objects: Sequence[GameObject],
    rng: np.random.Generator,
    no_target: float = 0.0,
    candidates: Sequence[Expression] | None = None,
    absent_nouns: Sequence[str] | None = None,
) -> Expression | None:
    """Return a random expression, each kind equally likely, or None where no object can be singled out.

    Args:
        objects: of one frame.
        rng: random generator.
        no_target: the probability of an expression that matches none of the objects.
        candidates: of `list_expressions`, to draw several expressions of one frame.
        absent_nouns: what to ask for in vain; by default the classes of all games.
    """
    if rng.random() < no_target:
        return _without_target(objects, rng, absent_nouns)
    candidates = list_expressions(objects) if candidates is None else candidates
    kinds = sorted({expression.kind for expression in candidates})
    if not kinds:
        return None
    kind = kinds[rng.integers(len(kinds))]
    of_kind = [expression for expression in candidates if expression.kind == kind]
    return of_kind[rng.integers(len(of_kind))]


def _of_noun(
    noun: str, members: list[int], objects: Sequence[GameObject], indices_of: dict[str, list[int]]
) -> Iterator[Expression]:
    if len(members) == 1:
        yield Expression(f"the {noun}", "name", members[0])
    if not 1 < len(members) <= MAX_COMPARED:
        return
    referents = [objects[index] for index in members]
    yield from _by_order(noun, members, referents)
    yield from _by_size(noun, members, referents)
    yield from _by_position(noun, members, referents)
    for anchor, owners in indices_of.items():
        if len(owners) == 1 and owners[0] not in members:
            yield from _by_relation(noun, members, referents, anchor, objects[owners[0]])


def _by_order(noun: str, members: list[int], referents: list[GameObject]) -> Iterator[Expression]:
    """Yield the first in each direction, and the second and third from the left."""
    centers = np.array([obj.center for obj in referents])  # [N, 2]
    for word, axis, sign in EXTREMES:
        order = np.argsort(sign * centers[:, axis], kind="stable")
        coordinates = sign * centers[order, axis]
        if coordinates[1] - coordinates[0] >= MARGIN:
            yield Expression(f"the {word} {noun}", "extreme", members[order[0]])
        if word != "left-most":
            continue
        for place, ordinal in enumerate(ORDINALS, 1):
            gaps = np.diff(coordinates[: place + 2])
            if len(members) > place and (gaps >= MARGIN).all():
                yield Expression(f"the {ordinal} {noun} from the left", "order", members[order[place]])


def _by_size(noun: str, members: list[int], referents: list[GameObject]) -> Iterator[Expression]:
    """Yield the largest and the smallest."""
    sizes = np.array([obj.size for obj in referents], dtype=float)
    order = np.argsort(sizes, kind="stable")
    if sizes[order[-1]] >= SIZE_RATIO * sizes[order[-2]]:
        yield Expression(f"the largest {noun}", "size", members[order[-1]])
    if sizes[order[1]] >= SIZE_RATIO * sizes[order[0]]:
        yield Expression(f"the smallest {noun}", "size", members[order[0]])


def _by_position(noun: str, members: list[int], referents: list[GameObject]) -> Iterator[Expression]:
    """Yield the only one in a ninth of the frame, unless a center is near the border of a ninth."""
    third, centers = np.array(referents[0].frame_size) / 3, np.array([obj.center for obj in referents])  # [2], [N, 2]
    if (np.abs(centers[:, None] - np.stack([third, 2 * third])) < MARGIN).any():
        return
    cells = [tuple(cell) for cell in (centers // third).astype(int).tolist()]
    for member, (row, column) in zip(members, cells, strict=True):
        if cells.count((row, column)) == 1:
            yield Expression(f"the {noun} {POSITIONS[row][column]}", "place", member)


def _by_relation(
    noun: str, members: list[int], referents: list[GameObject], anchor: str, other: GameObject
) -> Iterator[Expression]:
    """Yield the only one above, below, left of and right of a unique object, and the nearest to it."""
    top, left, bottom, right = other.box
    gaps = {  # distance beyond the anchor's side
        "above": [top - obj.box[2] for obj in referents],
        "below": [obj.box[0] - bottom for obj in referents],
        "left of": [left - obj.box[3] for obj in referents],
        "right of": [obj.box[1] - right for obj in referents],
    }
    for word, distances in gaps.items():
        beyond = [member for member, gap in zip(members, distances, strict=True) if gap >= 0]
        if len(beyond) == 1 and all(gap <= -MARGIN for gap in distances if gap < 0):
            yield Expression(f"the {noun} {word} the {anchor}", "relation", beyond[0])
    distance = np.hypot(*(np.array([obj.center for obj in referents]) - other.center).T)
    order = np.argsort(distance, kind="stable")
    if distance[order[1]] - distance[order[0]] >= MARGIN:
        yield Expression(f"the {noun} nearest to the {anchor}", "relation", members[order[0]])


def _without_target(
    objects: Sequence[GameObject], rng: np.random.Generator, absent_nouns: Sequence[str] | None = None
) -> Expression:
    """Return an expression of no object: a present name in another color, or a noun that is absent."""
    present = {noun for obj in objects for noun in nouns_of(obj)}
    if absent_nouns is None:
        absent_nouns = sorted({cls.name for classes in OBJECT_CLASSES.values() for cls in classes})
    names = sorted({obj.name for obj in objects if obj.name and obj.color}) or ["object"]
    recolored = [f"{color} {name}" for color in COLORS for name in names if not name.startswith(tuple(COLORS))]
    missing = [noun for noun in (*recolored, *absent_nouns) if noun not in present]
    return Expression(f"the {missing[rng.integers(len(missing))]}", "no_target", None)
