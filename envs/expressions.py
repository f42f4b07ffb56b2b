"""Words that single one object of a frame out: by name, colour, size, place, order and relation.

    the red ghost          the left-most rabbit        the second duck from the left
    the largest duck       the owl at the top right    the red ghost above the pac-man

An expression fits exactly one object, by a clear margin (`CLEAR` pixels), or none at all where it says so. What an
object is called is its name where `envs.objects` knows it, with its colour where that tells it from its like, and else
its colour and size. The same objects give the same expressions, in the same order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from envs.objects import COLOURS, KINDS, GameObject

CLEAR = 3  # pixels by which the one that is meant has to differ from the next
MOST = 12  # objects of one noun: among more, nobody counts or compares
LARGE, SMALL = 150, 16  # pixels: objects from and up to these sizes are called large and small
KIND_NAMES = ("name", "extreme", "order", "size", "place", "relation", "absent")
ORDERS = ("second", "third")
PLACES = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the middle", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
EXTREMES = (("left-most", 1, 1), ("right-most", 1, -1), ("top-most", 0, 1), ("bottom-most", 0, -1))  # word, axis, sign


@dataclass(frozen=True)
class Expression:
    """Words for one object. kind: of `KIND_NAMES`; target: its index among the objects, None for none of them."""

    words: str
    kind: str
    target: int | None


def nouns_of(thing: GameObject) -> tuple[str, ...]:
    """Return what an object may be called, the plainest first."""
    if thing.name:
        first, _, rest = thing.name.partition(" ")
        if first in COLOURS:
            return (thing.name, rest)
        return (thing.name, f"{thing.colour} {thing.name}")
    size = "large " if thing.size >= LARGE else "small " if thing.size <= SMALL else ""
    plain = f"{thing.colour} object"
    return (plain, f"{size}{plain}") if size else (plain,)


def list_expressions(objects: Sequence[GameObject]) -> list[Expression]:
    """Return every expression that fits exactly one of a frame's objects, each wording once."""
    called: dict[str, list[int]] = {}
    for index, thing in enumerate(objects):
        for noun in nouns_of(thing):
            called.setdefault(noun, []).append(index)
    found: dict[str, Expression] = {}
    for noun, members in called.items():
        for expression in _of_noun(noun, members, objects, called):
            found.setdefault(expression.words, expression)
    return list(found.values())


def draw_expression(
    objects: Sequence[GameObject],
    rng: np.random.Generator,
    absent: float = 0.0,
    listed: Sequence[Expression] | None = None,
) -> Expression | None:
    """Return one expression, each kind as likely as another, or None where no object can be singled out.

    Args:
        objects: of one frame.
        rng: where the choice comes from.
        absent: the probability of an expression that fits none of the objects.
        listed: of `list_expressions`, for who draws several of one frame.
    """
    if rng.random() < absent:
        return _absent(objects, rng)
    listed = list_expressions(objects) if listed is None else listed
    kinds = sorted({expression.kind for expression in listed})
    if not kinds:
        return None
    kind = kinds[rng.integers(len(kinds))]
    alike = [expression for expression in listed if expression.kind == kind]
    return alike[rng.integers(len(alike))]


def _of_noun(
    noun: str, members: list[int], objects: Sequence[GameObject], called: dict[str, list[int]]
) -> Iterator[Expression]:
    if len(members) == 1:
        yield Expression(f"the {noun}", "name", members[0])
    if len(members) > MOST:
        return
    things = [objects[index] for index in members]
    if len(members) > 1:
        yield from _by_position(noun, members, things)
        yield from _by_size(noun, members, things)
        yield from _by_place(noun, members, things)
    for anchor, owners in called.items():
        if len(owners) == 1 and owners[0] not in members and len(members) > 1:
            yield from _by_relation(noun, members, things, anchor, objects[owners[0]])


def _by_position(noun: str, members: list[int], things: list[GameObject]) -> Iterator[Expression]:
    """Yield the first of each direction, and the second and third from the left."""
    middles = np.array([thing.centre for thing in things])  # [N, 2]
    for word, axis, sign in EXTREMES:
        order = np.argsort(sign * middles[:, axis], kind="stable")
        ahead = sign * middles[order, axis]
        if ahead[1] - ahead[0] >= CLEAR:
            yield Expression(f"the {word} {noun}", "extreme", members[order[0]])
        if word != "left-most":
            continue
        for place, ordinal in enumerate(ORDERS, 1):
            apart = np.diff(ahead[: place + 2])
            if len(members) > place and (apart >= CLEAR).all():
                yield Expression(f"the {ordinal} {noun} from the left", "order", members[order[place]])


def _by_size(noun: str, members: list[int], things: list[GameObject]) -> Iterator[Expression]:
    """Yield the largest and the smallest, where they are so by a quarter."""
    sizes = np.array([thing.size for thing in things], dtype=float)
    order = np.argsort(sizes, kind="stable")
    if sizes[order[-1]] >= 1.25 * sizes[order[-2]]:
        yield Expression(f"the largest {noun}", "size", members[order[-1]])
    if sizes[order[1]] >= 1.25 * sizes[order[0]]:
        yield Expression(f"the smallest {noun}", "size", members[order[0]])


def _by_place(noun: str, members: list[int], things: list[GameObject]) -> Iterator[Expression]:
    """Yield the only one in a ninth of the frame, where no one's middle is near a border between ninths."""
    third = np.array(things[0].frame_size) / 3
    middles = np.array([thing.centre for thing in things])  # [N, 2]
    borders = np.stack([third, 2 * third])
    if (np.abs(middles[:, None] - borders) < CLEAR).any():
        return
    spots = [tuple(spot) for spot in (middles // third).astype(int).tolist()]
    for number, (row, column) in enumerate(spots):
        if spots.count((row, column)) == 1:
            yield Expression(f"the {noun} {PLACES[row][column]}", "place", members[number])


def _by_relation(
    noun: str, members: list[int], things: list[GameObject], anchor: str, other: GameObject
) -> Iterator[Expression]:
    """Yield the only one above, below, left of and right of the only object of another noun, and the nearest to it."""
    top, left, bottom, right = other.box
    gaps = {  # how far each lies beyond the anchor's side
        "above": [top - thing.box[2] for thing in things],
        "below": [thing.box[0] - bottom for thing in things],
        "left of": [left - thing.box[3] for thing in things],
        "right of": [thing.box[1] - right for thing in things],
    }
    for word, found in gaps.items():
        beyond = [number for number, gap in enumerate(found) if gap >= 0]
        clearly_not = all(gap <= -CLEAR for gap in found if gap < 0)
        if len(beyond) == 1 and clearly_not:
            yield Expression(f"the {noun} {word} the {anchor}", "relation", members[beyond[0]])
    middle = np.array(other.centre)
    away = np.array([np.hypot(*(np.array(thing.centre) - middle)) for thing in things])
    order = np.argsort(away, kind="stable")
    if away[order[1]] - away[order[0]] >= CLEAR:
        yield Expression(f"the {noun} nearest to the {anchor}", "relation", members[order[0]])


def _absent(objects: Sequence[GameObject], rng: np.random.Generator) -> Expression:
    """Return words for what the frame does not hold: another colour of what it does, or a thing of another game."""
    here = {noun for thing in objects for noun in nouns_of(thing)}
    names = sorted({kind.name for kinds in KINDS.values() for kind in kinds})
    heads = sorted({thing.name for thing in objects if thing.name}) or ["object"]
    wanted = [f"{colour} {head}" for colour in COLOURS for head in heads if not head.startswith(tuple(COLOURS))]
    missing = [noun for noun in (*wanted, *names) if noun not in here]
    return Expression(f"the {missing[rng.integers(len(missing))]}", "absent", None)
