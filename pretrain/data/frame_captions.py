"""Captions that say what a frame shows: the game, its objects, how many and where. Nothing of pixel values.

    a frame of carnival with three red owls , two ducks and a gun , a bullet in the centre
    many pink pellets and a red ghost at the top left in ms. pac-man

Colours are words (`envs.objects.COLOURS`) and numbers are words up to ten, so that no caption holds a digit. Which
objects are named, and in which phrases, is drawn from the generator passed in; what is said is always true of the
objects that `envs.objects.find_objects` sees. Kinds of which there are few are told more often than kinds of which
there are many: those are what moves, where these are scenery, and a caption of scenery fits every frame of its game.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from envs.games import list_games
from envs.objects import COLOURS, KINDS, find_objects
from vlm.tokenizer import build_tokenizer

NUMBERS = ("no", "a", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PLACES = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the centre", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
OPENINGS = ("a frame of {}", "a picture of {}", "the game {}", "{}")
NAMELESS = "a game"
LISTS = ("{opening} with {things}", "{opening} : {things}", "{things} in {opening}", "{opening} shows {things}")
PLURALS = {"pair of eyes": "pairs of eyes", "bullet box": "bullet boxes"}
SMALL, LARGE = 16, 150  # pixels: up to, and from
NAMED, PLACED = 3, (2, 5)  # at most so many kinds are counted, and from so many to so many told the place of
RARITY = 2  # a thing is told the place of with a probability of this power of one over the number of its kind
LONGEST = 64  # tokens of a caption


@dataclass(frozen=True)
class DetectedObject:
    """What a caption may say of an object: its name if it has one, colour, size in a word or "", and place."""

    name: str | None
    colour: str
    size: str
    place: str

    def noun(self, closely: bool) -> str:
        """Return what it is called; `closely` tells the colour of the named and the size of the nameless as well."""
        if self.name:
            return f"{self.colour} {self.name}" if closely and self.colour not in self.name else self.name
        return " ".join(word for word in (self.size if closely else "", self.colour, "thing") if word)


def describe_frame(frame: np.ndarray, game_name: str) -> tuple[DetectedObject, ...]:
    """Return what there is to say of a frame, uint8[H, W, 3]."""
    height, width, _ = frame.shape
    things = []
    for thing in find_objects(frame, game_name):
        row, column = thing.centre
        size = "small" if thing.size <= SMALL else "large" if thing.size >= LARGE else ""
        place = PLACES[min(int(3 * row / height), 2)][min(int(3 * column / width), 2)]
        things.append(DetectedObject(thing.name, thing.colour, size, place))
    return tuple(things)


def write_caption(things: tuple[DetectedObject, ...], title: str | None, rng: np.random.Generator) -> str:
    """Return one caption; `title` is the game's, None for a caption that does not tell the game."""
    opening = str(rng.choice(OPENINGS)).format(title) if title else NAMELESS
    closely = bool(rng.integers(2))
    counts = Counter(thing.noun(closely) for thing in things)
    if not counts:
        return f"{opening} with nothing in it".lower()
    nouns, often = list(counts), np.array([counts[thing.noun(closely)] for thing in things], dtype=float)
    rare = 1 / np.array(list(counts.values()), dtype=float)
    size = min(len(nouns), int(rng.integers(1, NAMED + 1)))
    named = [nouns[i] for i in rng.choice(len(nouns), size, replace=False, p=rare / rare.sum())]
    listed = _list([_count(counts[noun], noun) for noun in named])
    parts = [str(rng.choice(LISTS)).format(opening=opening, things=listed)]
    chance = often**-RARITY / (often**-RARITY).sum()
    for _ in range(rng.integers(PLACED[0], PLACED[1] + 1)):
        chosen = things[rng.choice(len(things), p=chance)]
        noun = chosen.noun(closely)
        there = sum(thing.place == chosen.place and thing.noun(closely) == noun for thing in things)
        parts.append(f"{_count(there, noun)} {chosen.place}")
    return " , ".join(dict.fromkeys(parts)).lower()


def _count(number: int, noun: str) -> str:
    many = PLURALS.get(noun, next((noun.replace(k, v) for k, v in PLURALS.items() if noun.endswith(k)), f"{noun}s"))
    if number == 1:
        return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
    return f"{NUMBERS[number] if number < len(NUMBERS) else 'many'} {many}"


def _list(phrases: list[str]) -> str:
    return " , ".join(phrases[:-1]) + " and " + phrases[-1] if len(phrases) > 1 else phrases[0]


def caption_tokenizer() -> PreTrainedTokenizerFast:
    """Return the house's tokenizer with the words of the captions and of all games' titles added as single tokens."""
    phrases = [*NUMBERS, *sum(PLACES, ()), *OPENINGS, *LISTS, NAMELESS, "nothing in it", "many", "an", "things"]
    nouns = [kind.name for kinds in KINDS.values() for kind in kinds]
    phrases += [*COLOURS, *nouns, *(f"{noun}s" for noun in nouns), *PLURALS.values(), "small", "large"]
    phrases += [game.title for game in list_games()]
    words = {word for phrase in phrases for word in _words(phrase)}
    return build_tokenizer(sorted(words))


def _words(phrase: str) -> list[str]:
    plain = phrase.lower().replace("{opening}", "").replace("{things}", "")
    return "".join(letter if letter.isalpha() else " " for letter in plain).split()
