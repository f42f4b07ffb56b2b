"""Referring segmentation at nano size: what do an unfrozen encoder and pixel value prediction add (Gou et al. 2024)?

    python -m experiments.run refer-nano

The conditions of `experiments.studies.conditions` x three seeds. All start from the semantic encoder that ships and see
the same frames and expressions in the same order for the same number of steps. PVP is that of `pvp-nano`, whose models
are reused. Masks are trained on some of its games and on Carnival and Ms. Pac-Man, whose objects have names, by the
mask head. (`POINTS` is the way of text. It takes five hours more and learnt next to nothing in as many steps.)
Rows: cIoU, gIoU and precision on the test split and on held-out games; baselines that read no words or one; and the
upper bound of points on a grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from common.files import atomic_file
from envs.colors import COLORS
from envs.objects import find_objects
from experiments.image_grid import image_grid
from experiments.studies import pvp_nano
from experiments.studies.conditions import CONDITIONS, pretrain_condition, pretraining_seconds, run_dir
from experiments.studies.jobs import Job
from experiments.studies.pvp_nano import frame_dataset
from pretrain.reconstruct import comparison_grid
from pretrain.referring.point_objective import grid_mask
from pretrain.referring.referring_config import CONFIGS, ReferringConfig
from pretrain.referring.samples import ReferringSample
from pretrain.referring.scene_dataset import SceneDataset
from pretrain.referring.segmentation_metrics import Confusion, confusion, segmentation_metrics
from pretrain.referring.train import train_referring
from vlm import checkpoint
from vlm.segmentation.mask_drawing import draw_mask
from vlm.segmentation.referring_segmenter import load_segmenter

SEEDS = (0, 1, 2)
TEST_SEED = 10_000


@dataclass(frozen=True)
class MaskMethod:
    """A way to predict masks, and how it is trained."""

    name: Literal["head", "points"]
    training: ReferringConfig
    test_expressions: int
    seconds_per_step: float  # of one core
    eval_seconds: float


HEAD = MaskMethod("head", CONFIGS["refer-nano-head"], 400, 0.5, 60)
POINTS = MaskMethod("points", CONFIGS["refer-nano-points"], 200, 2.4, 360)


@dataclass(frozen=True)
class ExperimentConfig:
    """All settings of the experiment."""

    pretraining: pvp_nano.ExperimentConfig = pvp_nano.NANO
    pretraining_dir: Path = Path("runs/pvp-nano")
    games: tuple[str, ...] = (
        "Carnival", "MsPacman", "Alien", "Assault", "Atlantis", "Breakout", "DemonAttack", "Phoenix", "Pong",
        "SpaceInvaders",
    )  # fmt: skip
    held_out_games: tuple[str, ...] = ("Seaquest", "Frostbite", "Asteroids", "Qbert")
    methods: tuple[MaskMethod, ...] = (HEAD,)
    num_overlays: int = 4  # masks saved of each test set


NANO = ExperimentConfig()


def prepare(config: ExperimentConfig = NANO) -> None:
    """Record the frames of every game that are missing."""
    pvp_nano.prepare(config.pretraining)


def jobs(seeds: Sequence[int] | None, work: Path, config: ExperimentConfig = NANO) -> list[Job]:
    """Return the jobs: baselines, then every condition with every seed and mask method."""
    found = [Job({"condition": "baselines"}, 60, partial(measure_baselines, config))]
    pretrained = set()  # by an earlier job
    for method in config.methods:
        runs = [(*condition, seed) for seed in seeds or SEEDS for condition in CONDITIONS]
        waits = {run: pretraining_seconds(config.pretraining, *run, config.pretraining_dir) for run in runs}
        for run in sorted(runs, key=waits.__getitem__):  # those that need PVP come last
            key = {"encoder": run[0], "pvp": run[1], "mask": method.name, "seed": run[2]}
            start = run_dir(config.pretraining, *run, config.pretraining_dir)
            seconds = method.training.run.steps * method.seconds_per_step + method.eval_seconds
            seconds += 0 if start in pretrained else waits[run]
            pretrained.add(start)
            found.append(Job(key, seconds, partial(measure_condition, config, *run, method, work)))
    return found


def load_test_sets(config: ExperimentConfig, method: MaskMethod, history: int = 1) -> dict[str, SceneDataset]:
    """Return the test expressions of all conditions by the name of their set."""
    seen, unseen = (
        [frame_dataset(config.pretraining, game) for game in games] for games in (config.games, config.held_out_games)
    )
    fixed = {"count": method.test_expressions, "history": history, "seed": TEST_SEED}
    return {
        "test": SceneDataset(seen, "test", val_episodes=config.pretraining.training.data.val_episodes, **fixed),
        "held-out games": SceneDataset(unseen, "all", **fixed),
    }


def masks_dir(work: Path, encoder: str, pvp: str, method: MaskMethod, seed: int) -> Path:
    """Return the directory of one condition and method."""
    return work / f"masks-{encoder}-{pvp}-{method.name}-{seed}"


def train_masks(config: ExperimentConfig, encoder: str, pvp: str, seed: int, method: MaskMethod, work: Path) -> Path:
    """Return the checkpoint of one condition and method; train or resume it if it is missing."""
    start = pretrain_condition(config.pretraining, encoder, pvp, seed, config.pretraining_dir)
    out = masks_dir(work, encoder, pvp, method, seed)
    if (out / "last").exists():
        return out / "last"
    data = tuple(frame_dataset(config.pretraining, game) for game in config.games)
    val_episodes = config.pretraining.training.data.val_episodes
    training = method.training.replace(data=data, val_episodes=val_episodes, out=out, init=start, seed=seed)
    return train_referring(training.replace(encoder_learning_rate=0.0) if encoder == "frozen" else training)


def measure_condition(
    config: ExperimentConfig, encoder: str, pvp: str, seed: int, method: MaskMethod, work: Path
) -> list[dict[str, Any]]:
    """Train one condition, or resume it; return a row for each test set."""
    last = train_masks(config, encoder, pvp, seed, method, work)
    segmenter, rows = replace(load_segmenter(last), logit_bias=0.0), []  # published rows use the logits as trained
    for name, test in load_test_sets(config, method, segmenter.vlm.history).items():
        found: list[Confusion] = []
        for index in range(len(test)):
            item = test[index]
            mask = segmenter.predict(item.frames, item.expressions)[0] > 0.5
            found.append(confusion(mask, item.masks[0]))
            if index < config.num_overlays:
                with atomic_file(last.parent / f"{name}-{index}.npy") as file:
                    np.save(file, mask)
        rows.append({"set": name, "checkpoint": checkpoint.content_hash(last), **segmentation_metrics(found)})
    return rows


def draw(seeds: Sequence[int] | None, work: Path, config: ExperimentConfig = NANO) -> Image.Image | None:
    """Return the first items of every test set: the truth, then the masks of the first method's conditions.

    Shows the seed with the most conditions in `work`, the first of equals. Returns None if there is none.
    """
    method, best = config.methods[0], dict[str, Path]()
    for seed in seeds or SEEDS:
        runs = {f"{encoder}, {pvp}": masks_dir(work, encoder, pvp, method, seed) for encoder, pvp in CONDITIONS}
        runs = {name: run for name, run in runs.items() if any(run.glob("*.npy"))}
        best = runs if len(runs) > len(best) else best
    tests = load_test_sets(config, method).items() if best else ()
    return image_grid(
        [[_compare(test, name, index, best)] for name, test in tests for index in range(config.num_overlays)]
    )


def _compare(test: SceneDataset, name: str, index: int, runs: dict[str, Path]) -> Image.Image:
    item = test[index]
    masks = {item.expressions[0]: item.masks[0]}
    masks |= {condition: np.load(run / f"{name}-{index}.npy") for condition, run in runs.items()}
    return comparison_grid({label: draw_mask(item.frames[-1], mask, scale=1) for label, mask in masks.items()})


Baseline = Callable[[ReferringSample], np.ndarray]


def baselines(grid: int) -> dict[str, Baseline]:
    """Return by name predictors without understanding, and the upper bound of points on a grid."""
    return {
        "all": lambda item: np.ones_like(item.masks[0]),
        "nothing": lambda item: np.zeros_like(item.masks[0]),
        "largest object": _largest_object,
        "every object of the colour": _objects_of_colour,
        f"truth on a grid of {grid}": partial(_truth_on_grid, grid),
    }


def _largest_object(item: ReferringSample) -> np.ndarray:
    objects = find_objects(item.frames[-1], item.source)
    return max(objects, key=lambda thing: thing.size).mask if objects else np.zeros_like(item.masks[0])


def _objects_of_colour(item: ReferringSample) -> np.ndarray:
    """Every object of a colour that the expression names, or every object where it names none."""
    named = {word for word in item.expressions[0].split() if word in COLORS}
    mask = np.zeros_like(item.masks[0])
    for thing in find_objects(item.frames[-1], item.source):
        if not named or thing.color in named:
            mask |= thing.mask
    return mask


def _truth_on_grid(grid: int, item: ReferringSample) -> np.ndarray:
    height, width = item.masks[0].shape
    coarse = Image.fromarray(grid_mask(item.masks[0], grid).astype(np.uint8) * 255)
    return np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR)) > 127


def measure_baselines(config: ExperimentConfig) -> list[dict[str, Any]]:
    """Return a row for every baseline on every test set."""
    rows, grid = [], config.methods[-1].training.data.grid
    for name, test in load_test_sets(config, config.methods[0]).items():
        items = [test[index] for index in range(len(test))]
        for baseline, predict in baselines(grid).items():
            metrics = segmentation_metrics([confusion(predict(item), item.masks[0]) for item in items])
            rows.append({"set": name, "baseline": baseline, **metrics})
    return rows
