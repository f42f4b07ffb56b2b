"""What a cloned policy learns from: teachers' decisions as soft targets, and batches of every game.

Where a dataset holds a teacher's value of every action, a target is soft: near-equal actions share it. Batches are
drawn from a seed and the step's number alone.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from common.errors import UserError
from envs.episodes import EpisodeDataset


@dataclass(frozen=True)
class LabelledDataset:
    """One game's decisions with their targets.

    rows: int[N] into `data`; targets: float32[N, A], each a distribution; weights: float32[N], what a row matters.
    """

    data: EpisodeDataset
    rows: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def build_targets(data: EpisodeDataset, targets: str, softness: float, hard_share: float) -> LabelledDataset:
    """Turn a dataset into targets.

    Rows of a taught dataset at which the teacher was not asked are left out. A row weighs what its choice is worth, its
    spread: the value of the best action less that of the mean one, over the dataset's mean spread. Small spreads are
    mostly the teacher's own noise, and a game is lost at few decisions: weights run from 0.1 to 4.
    """
    width = len(data.info.action_names)
    taught = ~np.isnan(data.action_values).all(axis=1)
    if not taught.any():
        return LabelledDataset(
            data, np.arange(len(data)), np.eye(width, dtype=np.float32)[data.actions], np.ones(len(data))
        )
    rows = np.flatnonzero(taught)
    values = data.action_values[rows].astype(np.float64)
    looked = np.isfinite(values)
    best = np.where(looked, values, -np.inf).max(axis=1, keepdims=True)
    spread = (best - np.where(looked, values, 0).sum(1, keepdims=True) / looked.sum(1, keepdims=True))[:, 0]
    scale = float(spread.mean()) or 1.0
    hard = np.eye(width)[np.where(looked, values, -np.inf).argmax(axis=1)]
    if targets == "hard":
        return LabelledDataset(data, rows, hard.astype(np.float32), np.ones(len(rows)))
    soft = np.where(looked, np.exp(np.where(looked, values - best, 0) / (softness * scale)), 0)
    soft /= soft.sum(axis=1, keepdims=True)
    mixed = hard_share * hard + (1 - hard_share) * soft
    return LabelledDataset(data, rows, mixed.astype(np.float32), np.clip(spread / scale, 0.1, 4))


def flipped_actions(names: Sequence[str]) -> list[int]:
    """Return for each action the one that does the same in a mirror, left to right."""
    turned = {"left": "right", "right": "left"}
    return [names.index(" ".join(turned.get(word, word) for word in name.split())) for name in names]


class BCBatchDataset(Dataset):
    """Step i's batch, drawn from the seed and i alone, so that a resumed run sees what an unbroken one would.

    A batch has one part for each game, since a prompt is of one game, all of a size: with one game a batch, every step
    would pull the model towards the habits of another game. Games have equal parts, or by `shares`; within a game,
    datasets have a share by their size.
    """

    def __init__(
        self,
        lessons: list[LabelledDataset],
        history: int,
        batch_size: int,
        steps: int,
        seed: int,
        mirror: Collection[str] = (),
        alone: int = 0,
        shares: Mapping[str, float] | None = None,
    ):
        self.lessons, self.history, self.steps, self.seed, self.mirror = lessons, history, steps, seed, mirror
        self.alone = alone  # the first steps, which are for the readout (`agents.clone`)
        self.games = sorted({lesson.data.info.game for lesson in lessons})
        if idle := set(shares or {}) - set(self.games):
            raise UserError(f"expected shares of {', '.join(self.games)}, got one of {', '.join(sorted(idle))}")
        given = [(shares or {}).get(game, 1.0) for game in self.games]
        self.sizes = {
            game: max(1, int(batch_size * share / sum(given))) for game, share in zip(self.games, given, strict=True)
        }

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, step])
        return {"parts": [self._part(game, rng) for game in self.games], "alone": step < self.alone}

    def _part(self, game: str, rng: np.random.Generator) -> dict[str, Any]:
        lessons = [lesson for lesson in self.lessons if lesson.data.info.game == game]
        sizes, count = np.array([len(lesson.rows) for lesson in lessons]), self.sizes[game]
        drawn = np.searchsorted(np.cumsum(sizes), rng.integers(sizes.sum(), size=count), side="right")
        rows = [(lessons[i], int(rng.integers(sizes[i]))) for i in drawn]
        frames = np.stack([lesson.data.frames(int(lesson.rows[row]), self.history) for lesson, row in rows])
        targets = np.stack([lesson.targets[row] for lesson, row in rows])
        turned = rng.random(count) < 0.5
        if game in self.mirror:
            frames[turned] = frames[turned][:, :, :, ::-1]
            targets[turned] = targets[turned][:, flipped_actions(lessons[0].data.info.action_names)]
        weights = np.array([lesson.weights[row] for lesson, row in rows], dtype=np.float32)
        return {
            "frames": torch.from_numpy(frames),
            "targets": torch.from_numpy(targets),
            "weights": torch.from_numpy(weights),
            "game": game,
        }


def load_labelled_datasets(
    paths: Sequence[Path], targets: str, softness: float, hard_share: float
) -> list[LabelledDataset]:
    """Open every dataset of `paths`, and refuse two that call the same game's actions by other names."""
    lessons: list[LabelledDataset] = []
    names: dict[str, tuple[str, ...]] = {}
    for path in paths:
        data = EpisodeDataset(path)
        if names.setdefault(data.info.game, data.info.action_names) != data.info.action_names:
            raise UserError(f"{path}: its legal actions differ from those of another dataset of {data.info.game}")
        lessons.append(build_targets(data, targets, softness, hard_share))
        worth = f"mean score {np.mean(data.scores):.0f}"
        print(f"{path}: {data.info.game}, {len(data.seeds)} games, {len(lessons[-1].rows)} decisions, {worth}")
    return lessons
