"""Referring expressions made from recorded games: a frame, words that single one object out, and its mask.

    train, val, test        by whole games: the last `hold` of a dataset are for testing, the `hold` before for choosing
    all                     of games that are held out whole

Item i is drawn from the seed and i alone. Some expressions mean nothing in the frame, so that their mask is empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from envs.episodes import EpisodeDataset
from envs.expressions import draw_expression, list_expressions
from envs.objects import find_objects
from pretrain.referring.samples import ReferringSample

SPLITS = ("train", "val", "test", "all")
TRIES = 50  # frames looked at for one that holds something to single out


@dataclass(frozen=True)
class GameReferringExample:
    """An expression about a frame.

    words, kind: of `envs.expressions.Expression`; game: whose frame it is; stack: uint8[history, H, W, 3], the frame
    and what came before it; mask: bool[H, W], empty where the words mean nothing in it.
    """

    words: str
    kind: str
    game: str
    stack: np.ndarray
    mask: np.ndarray


def split_rows_by_game(data: EpisodeDataset, split: str, hold: int) -> np.ndarray:
    """Return the rows of a split, int[N]; `UserError` for an unknown split or too few games."""
    if split not in SPLITS:
        raise UserError(f"expected a split ({', '.join(SPLITS)}), got {split!r}")
    rows, firsts = np.arange(len(data)), np.unique(data.starts)
    if split == "all":
        return rows
    if len(firsts) <= 2 * hold:
        raise UserError(
            f"expected more than {2 * hold} games in {data.path} to hold {hold} out twice, got {len(firsts)}"
        )
    val, test = firsts[-2 * hold], firsts[-hold]
    bounds = {"train": (0, val), "val": (val, test), "test": (test, len(data))}
    first, end = bounds[split]
    return rows[first:end]


class GameReferringDataset:
    """`count` expressions about frames of recorded games, equally many of each dataset.

    Args:
        places: directories of `agents.record`, one or more a game.
        split: one of `SPLITS`.
        count: how many.
        history: frames that a model sees.
        hold: games held out of each dataset for choosing, and as many for testing.
        absent: the share of expressions that mean nothing in their frame.
        seed: of all drawing; each split draws its own.
    """

    def __init__(
        self,
        places: Sequence[Path],
        split: str,
        count: int,
        history: int = 1,
        hold: int = 1,
        absent: float = 0.1,
        seed: int = 0,
    ):
        if not places:
            raise UserError("expected directories of recorded games, got none")
        self.sets = [EpisodeDataset(place) for place in places]
        self.rows = [split_rows_by_game(data, split, hold) for data in self.sets]
        self.count, self.history, self.absent = count, history, absent
        self._seed = (seed, SPLITS.index(split))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> GameReferringExample:
        rng = np.random.default_rng([*self._seed, index])
        data = self.sets[index % len(self.sets)]
        drawn = self.draw(rng, 1, index % len(self.sets))
        return GameReferringExample(drawn.words[0], drawn.kinds[0], data.info.game, drawn.stack, drawn.masks[0])

    def draw(self, rng: np.random.Generator, count: int, which: int | None = None) -> ReferringSample:
        """Return `count` expressions about one frame, of dataset number `which` or of one that is drawn."""
        which = int(rng.integers(len(self.sets))) if which is None else which
        data, game = self.sets[which], self.sets[which].info.game
        for _ in range(TRIES):
            row = int(rng.choice(self.rows[which]))
            frame = data.frame(row)
            objects = find_objects(frame, game)
            listed = list_expressions(objects)
            found = [draw_expression(objects, rng, self.absent, listed) for _ in range(count)]
            expressions = [expression for expression in found if expression is not None]
            if len(expressions) < count:
                continue
            nothing = np.zeros(frame.shape[:2], dtype=bool)
            masks = [nothing if e.target is None else objects[e.target].mask for e in expressions]
            words, kinds = (tuple(getattr(e, name) for e in expressions) for name in ("words", "kind"))
            return ReferringSample(data.frames(row, self.history), words, np.stack(masks), kinds)
        raise UserError(f"{data.path}: no object can be singled out in {TRIES} of its frames")
