"""Referring expressions about scenes, with the mask of the one object that each refers to.

Scenes are frames of recorded games, split by whole games (`pretrain.data.splits`), or objects pasted on photographs
(`pretrain.referring.pasted_scenes`). The seed and i alone decide item i. Some expressions have no target in their
scene, so that their mask is empty (generalized referring segmentation, Liu et al. 2023, GRES).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from common.errors import UserError
from envs.expressions import draw_expression, list_expressions
from pretrain.data.splits import SPLITS
from pretrain.referring.pasted_scenes import PastedScenes, is_cutout_folder
from pretrain.referring.samples import ReferringSample
from pretrain.referring.scenes import GameScenes, SceneSource

MAX_ATTEMPTS = 50  # scenes tried for one with an object that can be singled out


class SceneDataset:
    """`count` expressions about scenes, equally many of each place.

    Args:
        paths: directories of games recorded by `agents.record`, one or more a game, and of `pretrain.data.cutouts`.
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
        self.sources: list[SceneSource] = [
            PastedScenes(path, split) if is_cutout_folder(Path(path)) else GameScenes(path, split, val_episodes)
            for path in paths
        ]
        self.count, self.history, self.no_target_fraction = count, history, no_target_fraction
        self._seed = (seed, SPLITS.index(split))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> ReferringSample:
        rng = np.random.default_rng([*self._seed, index])
        sample = self.draw(rng, 1, index % len(self.sources))
        return replace(sample, sent_ids=(index,), ref_ids=(index,))

    def draw(self, rng: np.random.Generator, count: int, number: int | None = None) -> ReferringSample:
        """Return `count` expressions about one scene, of source number `number` or of a random one."""
        source = self.sources[int(rng.integers(len(self.sources))) if number is None else number]
        for _ in range(MAX_ATTEMPTS):
            scene = source.draw(rng, self.history)
            objects, candidates = scene.objects, list_expressions(scene.objects)
            drawn = [
                draw_expression(objects, rng, self.no_target_fraction, candidates, source.absent_nouns)
                for _ in range(count)
            ]
            expressions = [expression for expression in drawn if expression is not None]
            if len(expressions) < count:
                continue
            empty = np.zeros(scene.frames.shape[1:3], dtype=bool)
            masks = np.stack([empty if e.target is None else objects[e.target].mask for e in expressions])
            words = tuple(expression.words for expression in expressions)
            return ReferringSample(scene.frames, words, masks, source.name)
        raise UserError(f"{source.place}: no object can be singled out in {MAX_ATTEMPTS} of its scenes")
