"""Captions of game frames: the game, its objects, their number and position, and no pixel value.

    a frame of carnival with three red owls , two ducks and a gun , a bullet in the centre
    many pink pellets and a red ghost at the top left in ms. pac-man

Numbers are words, so that no caption contains a digit. The random generator chooses objects and phrases. Rare kinds of
object are mentioned more often: they move, while common kinds are scenery, which fits every frame of a game.
"""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from transformers import PreTrainedTokenizerFast

from envs.colors import COLORS
from envs.games import list_games
from envs.object_classes import OBJECT_CLASSES
from envs.objects import find_objects
from vlm.tokenizer import build_tokenizer

NUMBERS = ("no", "a", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
POSITIONS = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the centre", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
TITLE_TEMPLATES = ("a frame of {}", "a picture of {}", "the game {}", "{}")
NO_TITLE = "a game"
LIST_TEMPLATES = ("{title} with {objects}", "{title} : {objects}", "{objects} in {title}", "{title} shows {objects}")
PLURALS = {"pair of eyes": "pairs of eyes", "bullet box": "bullet boxes"}
MAX_SMALL, MIN_LARGE = 16, 150  # pixels
MAX_COUNTED = 3  # kinds of object that a caption counts
NUM_POSITIONED = (2, 5)  # objects whose position a caption gives, at least and at most
RARITY_EXPONENT = 2  # an object's position is given with a weight of 1 / (number of its kind) ** this


@dataclass(frozen=True)
class DetectedObject:
    """What a caption can say of an object."""

    name: str | None  # None where the game's kinds of object are unknown
    color: str
    size: str  # "small", "large" or ""
    position: str

    def noun(self, detailed: bool) -> str:
        """Return a noun phrase; `detailed` adds the color of named objects and the size of others."""
        if self.name:
            return f"{self.color} {self.name}" if detailed and self.color not in self.name else self.name
        return " ".join(word for word in (self.size if detailed else "", self.color, "thing") if word)


def describe_frame(frame: UInt8[np.ndarray, "H W 3"], game_name: str) -> tuple[DetectedObject, ...]:
    """Return the objects of a frame."""
    height, width, _ = frame.shape
    objects = []
    for found in find_objects(frame, game_name):
        row, column = found.center
        size = "small" if found.size <= MAX_SMALL else "large" if found.size >= MIN_LARGE else ""
        position = POSITIONS[min(int(3 * row / height), 2)][min(int(3 * column / width), 2)]
        objects.append(DetectedObject(found.name, found.color, size, position))
    return tuple(objects)


def write_caption(objects: tuple[DetectedObject, ...], title: str | None, rng: np.random.Generator) -> str:
    """Return one caption of the objects; `title` is the game's, or None for a caption that does not name the game."""
    title = str(rng.choice(TITLE_TEMPLATES)).format(title) if title else NO_TITLE
    detailed = bool(rng.integers(2))
    nouns = [found.noun(detailed) for found in objects]
    counts = Counter(nouns)
    if not counts:
        return f"{title} with nothing in it".lower()
    kinds, rarity = list(counts), 1 / np.array(list(counts.values()), dtype=float)
    size = min(len(kinds), int(rng.integers(1, MAX_COUNTED + 1)))
    counted = [kinds[i] for i in rng.choice(len(kinds), size, replace=False, p=rarity / rarity.sum())]
    phrases = [_count(counts[noun], noun) for noun in counted]
    parts = [str(rng.choice(LIST_TEMPLATES)).format(title=title, objects=_join(phrases))]
    weights = np.array([counts[noun] for noun in nouns], dtype=float) ** -RARITY_EXPONENT
    for _ in range(rng.integers(NUM_POSITIONED[0], NUM_POSITIONED[1] + 1)):
        chosen = rng.choice(len(objects), p=weights / weights.sum())
        noun, position = nouns[chosen], objects[chosen].position
        number = sum(found.position == position and other == noun for found, other in zip(objects, nouns, strict=True))
        parts.append(f"{_count(number, noun)} {position}")
    return " , ".join(dict.fromkeys(parts)).lower()


def _count(number: int, noun: str) -> str:
    if number == 1:
        return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    plural = next((noun.replace(one, many) for one, many in PLURALS.items() if noun.endswith(one)), f"{noun}s")
    return f"{NUMBERS[number] if number < len(NUMBERS) else 'many'} {plural}"


def _join(phrases: list[str]) -> str:
    return " , ".join(phrases[:-1]) + " and " + phrases[-1] if len(phrases) > 1 else phrases[0]


def caption_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer in which the words of captions and of all games' titles are single tokens."""
    phrases = [*NUMBERS, *sum(POSITIONS, ()), NO_TITLE, "nothing in it", "many", "an", "things"]
    phrases += [template.format("", title="", objects="") for template in (*TITLE_TEMPLATES, *LIST_TEMPLATES)]
    nouns = [cls.name for classes in OBJECT_CLASSES.values() for cls in classes]
    phrases += [*COLORS, *nouns, *(f"{noun}s" for noun in nouns), *PLURALS.values(), "small", "large"]
    phrases += [game.title for game in list_games()]
    return build_tokenizer(sorted({word for phrase in phrases for word in re.findall(r"[^\W\d_]+", phrase.lower())}))
