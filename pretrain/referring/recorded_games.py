"""Referring expressions about frames of recorded games, with the mask of the one object that each refers to.

Splits are of whole games, see `pretrain.data.splits`. The seed and i alone decide item i. Some expressions have no
target in their frame, so that their mask is empty (generalized referring segmentation, Liu et al. 2023, GRES).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.errors import UserError
from envs.expressions import draw_expression, list_expressions
from envs.hub_sets import open_dataset
from envs.objects import find_objects
from pretrain.data.splits import SPLITS, split_rows
from pretrain.referring.samples import ReferringSample

MAX_ATTEMPTS = 50  # frames tried for one with an object that can be singled out


class GameReferringDataset:
    """`count` expressions about frames of games recorded by `agents.record`, equally many of each data set.

    Args:
        paths: directories, one or more a game.
        split: one of `SPLITS`; "all" is for games held out as a whole.
        count: the number of expressions.
        history: frames of a sample.
        val_episodes: games of each data set in its validation split, and as many in its test split.
        no_target_fraction: the probability of an expression without a target.
        seed: of the expressions; each split draws its own.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        split: str,
        count: int,
        history: int = 1,
        val_episodes: int = 1,
        no_target_fraction: float = 0.1,
        seed: int = 0,
    ):
        if not paths:
            raise UserError("expected directories of recorded games, got none")
        self.name = f"games-{split}"
        self.datasets = [open_dataset(path) for path in paths]
        self.rows = [split_rows(data, split, val_episodes, val_episodes) for data in self.datasets]
        self.count, self.history, self.no_target_fraction = count, history, no_target_fraction
        self._seed = (seed, SPLITS.index(split))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> ReferringSample:
        rng = np.random.default_rng([*self._seed, index])
        sample = self.draw(rng, 1, index % len(self.datasets))
        return replace(sample, sent_ids=(index,), ref_ids=(index,))

    def draw(self, rng: np.random.Generator, count: int, dataset: int | None = None) -> ReferringSample:
        """Return `count` expressions about one frame, of data set number `dataset` or of a random one."""
        dataset = int(rng.integers(len(self.datasets))) if dataset is None else dataset
        data, game = self.datasets[dataset], self.datasets[dataset].info.game
        for _ in range(MAX_ATTEMPTS):
            row = int(rng.choice(self.rows[dataset]))
            frame = data.frame(row)
            objects = find_objects(frame, game)
            candidates = list_expressions(objects)
            drawn = [draw_expression(objects, rng, self.no_target_fraction, candidates) for _ in range(count)]
            expressions = [expression for expression in drawn if expression is not None]
            if len(expressions) < count:
                continue
            empty = np.zeros(frame.shape[:2], dtype=bool)
            masks = np.stack([empty if e.target is None else objects[e.target].mask for e in expressions])
            words = tuple(expression.words for expression in expressions)
            return ReferringSample(data.frames(row, self.history), words, masks, game)
        raise UserError(f"{data.path}: no object can be singled out in {MAX_ATTEMPTS} of its frames")
