"""Training data for behavior cloning: expert-labelled steps, some mirrored, as targets; batches of every game.

Where a dataset holds an expert's value of every action, a target is a distribution: similarly valued
actions get similar probability.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from common.errors import UserError
from envs.episodes import EpisodeDataset
from envs.play_conditions import shift_frames
from vlm.training.objective import Batch

MIN_WEIGHT, MAX_WEIGHT = 0.1, 4.0  # of a row's advantage, relative to the dataset's mean


@dataclass(frozen=True)
class LabelledDataset:
    """One dataset's N labelled steps."""

    data: EpisodeDataset
    rows: np.ndarray  # int[N], into `data`
    targets: np.ndarray  # float32[N, A], distributions
    weights: np.ndarray  # float[N], in the loss

    @property
    def mean_score(self) -> float | None:
        """Of the games; None if the data came without rewards."""
        return float(np.mean(self.data.scores)) if self.data.info.is_scored else None


def build_targets(
    data: EpisodeDataset, targets: str, target_temperature: float, argmax_weight: float
) -> LabelledDataset:
    """Turn a dataset into targets; the options are those of `agents.clone_config.CloneData`.

    Unlabelled rows of a labelled dataset are dropped. A row's weight is the value of its best action less that
    of the mean one, relative to the dataset's mean: small differences are mostly the expert's own noise, and a game is
    lost at few steps.
    """
    actions = len(data.info.action_names)
    labelled = ~np.isnan(data.action_values).all(axis=1)
    if not labelled.any():
        one_hot = np.eye(actions, dtype=np.float32)[data.actions]
        return LabelledDataset(data, np.arange(len(data)), one_hot, np.ones(len(data)))
    rows = np.flatnonzero(labelled)
    values = data.action_values[rows].astype(np.float64)
    known = np.isfinite(values)
    require_finite_best(values, rows, data.path)
    best = np.where(known, values, -np.inf).max(axis=1, keepdims=True)
    advantage = (best - np.where(known, values, 0).sum(1, keepdims=True) / known.sum(1, keepdims=True))[:, 0]
    scale = float(advantage.mean()) or 1.0
    hard = np.eye(actions)[np.where(known, values, -np.inf).argmax(axis=1)]
    if targets == "hard":
        return LabelledDataset(data, rows, hard.astype(np.float32), np.ones(len(rows)))
    soft = np.where(known, np.exp(np.where(known, values - best, 0) / (target_temperature * scale)), 0)
    soft /= soft.sum(axis=1, keepdims=True)
    mixed = argmax_weight * hard + (1 - argmax_weight) * soft
    return LabelledDataset(data, rows, mixed.astype(np.float32), np.clip(advantage / scale, MIN_WEIGHT, MAX_WEIGHT))


def require_finite_best(values: np.ndarray, rows: np.ndarray, path: Path) -> None:
    """Refuse rows whose best action has no finite value; an action that is not to be taken may have -inf or NaN."""
    wrong = np.flatnonzero(np.isposinf(values).any(axis=1) | ~np.isfinite(values).any(axis=1))
    if len(wrong):
        found = ", ".join(f"{value:g}" for value in values[wrong[0]])
        raise UserError(f"{path}, row {rows[wrong[0]]}: expected a finite value of the best action, got {found}")


def load_labelled_datasets(
    paths: Sequence[Path], targets: str, target_temperature: float, argmax_weight: float
) -> list[LabelledDataset]:
    """Open every dataset of `paths`; `UserError` if two datasets of one game have different actions."""
    datasets: list[LabelledDataset] = []
    names: dict[str, tuple[str, ...]] = {}
    for path in paths:
        data = EpisodeDataset(path)
        if names.setdefault(data.info.game, data.info.action_names) != data.info.action_names:
            raise UserError(f"{path}: its legal actions differ from those of another dataset of {data.info.game}")
        datasets.append(build_targets(data, targets, target_temperature, argmax_weight))
        score = datasets[-1].mean_score
        told = "no scores" if score is None else f"mean score {score:.0f}"
        summary = f"{len(data.seeds)} games, {len(datasets[-1].rows)} steps, {told}"
        print(f"{path}: {data.info.game}, {summary}")
    return datasets


def flipped_actions(names: Sequence[str]) -> list[int]:
    """Return for each action its mirror image, left to right."""
    flipped = {"left": "right", "right": "left"}
    return [names.index(" ".join(flipped.get(word, word) for word in name.split())) for name in names]


@dataclass(frozen=True)
class GameBatch(Batch):
    """Steps of one game; a prompt is of one game."""

    game: str
    frames: UInt8[Tensor, "B history H W 3"]
    targets: Float[Tensor, "B A"]
    weights: Float[Tensor, " B"]


@dataclass(frozen=True)
class BCBatch(Batch):
    """Steps of every game. aux_only: train the auxiliary head and not the decoder."""

    games: tuple[GameBatch, ...]
    aux_only: bool


@dataclass(frozen=True)
class FrameAugmentation:
    """Changes of examples that leave the rules of a game as they are; the frames of an example change alike.

    Args:
        flipped: games that are mirrored left to right half of the time, with their actions.
        shift: pixels by which an example is moved at most, up or down and left or right.
        swapped_colors: the share of examples whose channels are put in a random order.
    """

    flipped: Collection[str] = ()
    shift: int = 0
    swapped_colors: float = 0.0

    def apply(
        self, frames: UInt8[np.ndarray, "B history H W 3"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "B history H W 3"]:
        """Return examples that are moved and recolored."""
        if self.shift:
            moves = rng.integers(-self.shift, self.shift + 1, (len(frames), 2)).tolist()
            frames = np.stack([shift_frames(example, *move) for example, move in zip(frames, moves, strict=True)])
        if self.swapped_colors:
            for index in np.flatnonzero(rng.random(len(frames)) < self.swapped_colors):
                frames[index] = frames[index][..., rng.permutation(3)]
        return frames


class BCSampler:
    """Samples the batch of a step.

    A batch has a part for each game, by `game_weights`: with one game a batch, every step would pull the model towards
    the habits of another game. Within a game, a dataset's share is by its size. The first `aux_steps` batches train the
    auxiliary head alone.
    """

    def __init__(
        self,
        datasets: Sequence[LabelledDataset],
        history: int,
        batch_size: int,
        game_weights: Mapping[str, float] | None = None,
        augmentation: FrameAugmentation = FrameAugmentation(),
        aux_steps: int = 0,
    ):
        self.datasets: dict[str, list[LabelledDataset]] = {}
        for dataset in sorted(datasets, key=lambda one: one.data.info.game):
            self.datasets.setdefault(dataset.data.info.game, []).append(dataset)
        self.history, self.augmentation, self.aux_steps = history, augmentation, aux_steps
        weights = {**dict.fromkeys(self.datasets, 1.0), **(game_weights or {})}
        if unknown := set(weights) - set(self.datasets):
            raise UserError(f"expected weights of {', '.join(self.datasets)}, got one of {', '.join(sorted(unknown))}")
        total = sum(weights.values())
        self.sizes = {game: max(1, int(batch_size * weight / total)) for game, weight in weights.items()}

    def __call__(self, step: int, rng: np.random.Generator) -> BCBatch:
        """Return the batch of a step."""
        return BCBatch(tuple(self._game_batch(game, rng) for game in self.datasets), step < self.aux_steps)

    def _game_batch(self, game: str, rng: np.random.Generator) -> GameBatch:
        datasets, count = self.datasets[game], self.sizes[game]
        sizes = np.array([len(dataset.rows) for dataset in datasets])
        chosen = np.searchsorted(np.cumsum(sizes), rng.integers(sizes.sum(), size=count), side="right")
        rows = [(datasets[i], int(rng.integers(sizes[i]))) for i in chosen]
        frames = np.stack([dataset.data.frames(int(dataset.rows[row]), self.history) for dataset, row in rows])
        targets = np.stack([dataset.targets[row] for dataset, row in rows])
        flip = rng.random(count) < 0.5
        if game in self.augmentation.flipped:
            frames[flip] = frames[flip][:, :, :, ::-1]
            targets[flip] = targets[flip][:, flipped_actions(datasets[0].data.info.action_names)]
        frames = self.augmentation.apply(frames, rng)
        weights = np.array([dataset.weights[row] for dataset, row in rows], dtype=np.float32)
        return GameBatch(game, torch.from_numpy(frames), torch.from_numpy(targets), torch.from_numpy(weights))
