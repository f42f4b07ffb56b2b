"""Referring segmentation at nano size: what do an unfrozen encoder and pixel value prediction add (Gou et al. 2024)?

    python -m experiments.run refer-nano

{frozen, adapted} encoder x {no PVP, PVP}, and adapted after PVP with the colours shuffled among images, a control that
teaches the interface of coordinates and no detail; three seeds; both ways to a mask. A sixth arm, for the head alone,
carries on what pixels have made of encoder and connector, and begins with a new decoder as arms without PVP do. All
start from the semantic encoder that the repository ships, and see the same frames, the same expressions in the same
order and the same number of steps. A frozen encoder stays frozen in both trainings, an adapted one learns in both.

Pixels are taught as in `pvp-nano`, whose models are taken where they are there: on a grid of 32, on frames of games
without names for their objects. Masks are taught on some of those and on Carnival and Ms. Pac-Man, whose objects have
names. Head and points are taught apart, each from what pixels have left; points are asked on a grid of 64, since
through one of 32 small objects cannot be seen, and are told where to look (`vlm.training.attention_supervision`). Rows: cIoU, gIoU and precision
on games of the test split and on games held out whole; beside them floors that look at no words or at one, and the most
that points on a grid can reach.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from envs.objects import COLOURS, find_objects
from experiments.image_grid import image_grid
from experiments.studies import pvp_nano
from experiments.studies.conditions import CONDITIONS, ENCODER_ONLY, pretrain_condition, run_dir, seconds_to_start
from experiments.studies.jobs import Job
from experiments.studies.pvp_nano import frame_dataset
from pretrain.reconstruct import comparison_grid
from pretrain.referring import train
from pretrain.referring.point_objective import grid_mask
from pretrain.referring.recorded_games import GameReferringDataset, GameReferringExample
from pretrain.referring.segmentation_metrics import Confusion, confusion, segmentation_metrics
from vlm import checkpoint
from vlm.segmentation.mask_drawing import draw_mask
from vlm.segmentation.referring_segmenter import load_segmenter

SEEDS = (0, 1, 2)
TEST_SEED = 10_000


@dataclass(frozen=True)
class MaskMethod:
    """How masks are taught and asked for in one way.

    name: head or points; steps, warmup_steps: of a training; expressions: about each frame of a step; learning_rate,
    encoder_learning_rate: at their peak; count: expressions of a test; seconds_a_step, seconds_asked: of a core; arms:
    that are taught so.
    """

    name: Literal["head", "points"]
    steps: int
    warmup_steps: int
    expressions: int
    learning_rate: float
    encoder_learning_rate: float
    count: int
    seconds_a_step: float
    seconds_asked: float
    arms: tuple[tuple[str, str], ...] = CONDITIONS


HEAD = MaskMethod("head", 1500, 50, 12, 3e-4, 1e-3, 400, 0.5, 60, (*CONDITIONS, ("adapted", ENCODER_ONLY)))
POINTS = MaskMethod("points", 300, 40, 4, 1e-3, 3e-4, 200, 2.4, 360)


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that the experiment fixes.

    frames: how games are recorded, and the encoder and the training of pixels (`experiments.studies.pvp_nano`); taught: where
    that training lies; games: masks are taught on; strangers: held out whole; ways: to a mask; images: of a step;
    head_learning_rate: of the mask head; grid, points: of points, places asked about for each expression; gaze: weight
    of the loss for where they look; pictures: overlays kept of each test.
    """

    frames: pvp_nano.ExperimentConfig = pvp_nano.NANO
    taught: Path = Path("runs/pvp-nano")
    games: tuple[str, ...] = (
        "Carnival", "MsPacman", "Alien", "Assault", "Atlantis", "Breakout", "DemonAttack", "Phoenix", "Pong",
        "SpaceInvaders",
    )  # fmt: skip
    strangers: tuple[str, ...] = ("Seaquest", "Frostbite", "Asteroids", "Qbert")
    ways: tuple[MaskMethod, ...] = (HEAD, POINTS)
    images: int = 6
    head_learning_rate: float = 1e-3
    grid: int = 64
    points: int = 12
    gaze: float = 1.0
    pictures: int = 4
    workers: int = 1


NANO = ExperimentConfig()


def prepare(setting: ExperimentConfig = NANO) -> None:
    """Record the frames of every game, where they are not there yet."""
    pvp_nano.prepare(setting.frames)


def jobs(seeds: Sequence[int] | None, work: Path, setting: ExperimentConfig = NANO) -> list[Job]:
    """Return the jobs: floors, then every arm with every seed and both ways to a mask."""
    found = [Job({"arm": "floors"}, 60, partial(measure_floors, setting))]
    begun = set()  # what an earlier job starts from is there for a later one
    for way in setting.ways:
        arms = [(seed, *arm) for seed in seeds or SEEDS for arm in way.arms]
        taught = {arm: seconds_to_start(setting.frames, *arm[1:], arm[0], setting.taught) for arm in arms}
        for seed, encoder, pvp in sorted(arms, key=taught.__getitem__):  # those that have pixels to learn come last
            key = {"encoder": encoder, "pvp": pvp, "mask": way.name, "seed": seed}
            place = run_dir(setting.frames, encoder, pvp, seed, setting.taught)
            start = 0 if place in begun else taught[seed, encoder, pvp]
            begun.add(place)
            seconds = start + way.steps * way.seconds_a_step + way.seconds_asked
            found.append(Job(key, seconds, partial(measure_arm, setting, encoder, pvp, way, seed, work)))
    return found


def mask_args(
    setting: ExperimentConfig, encoder: str, way: MaskMethod, seed: int, start: Path, out: Path
) -> train.Args:
    """Return the training of masks of one arm."""
    return train.Args(
        out=out,
        data=tuple(frame_dataset(setting.frames, game) for game in setting.games),
        hold=setting.frames.hold,
        init=start,
        mask=way.name,
        grid=setting.grid,
        points=setting.points,
        gaze=setting.gaze if way.name == POINTS.name else 0.0,
        steps=way.steps,
        warmup_steps=min(way.warmup_steps, way.steps),
        images=setting.images,
        expressions=way.expressions,
        learning_rate=way.learning_rate,
        encoder_learning_rate=0.0 if encoder == "frozen" else way.encoder_learning_rate,
        head_learning_rate=setting.head_learning_rate,
        save_every=max(1, way.steps // 4),
        seed=seed,
        workers=setting.workers,
    )


def open_tests(setting: ExperimentConfig, way: MaskMethod, history: int = 1) -> dict[str, GameReferringDataset]:
    """Return the expressions that every arm is asked, by the name of their set."""
    trained, strange = (
        [frame_dataset(setting.frames, game) for game in games] for games in (setting.games, setting.strangers)
    )
    fixed = {"count": way.count, "history": history, "seed": TEST_SEED}
    return {
        "test": GameReferringDataset(trained, "test", hold=setting.frames.hold, **fixed),
        "held-out games": GameReferringDataset(strange, "all", **fixed),
    }


def teach_masks(setting: ExperimentConfig, encoder: str, pvp: str, way: MaskMethod, seed: int, work: Path) -> Path:
    """Return the checkpoint of one arm and way, trained now or gone on with if it is not there."""
    start = pretrain_condition(setting.frames, encoder, pvp, seed, setting.taught)
    out = work / f"masks-{encoder}-{pvp}-{way.name}-{seed}"
    return (
        out / "last"
        if (out / "last").exists()
        else train.train_referring(mask_args(setting, encoder, way, seed, start, out))
    )


def measure_arm(
    setting: ExperimentConfig, encoder: str, pvp: str, way: MaskMethod, seed: int, work: Path
) -> list[dict[str, Any]]:
    """Train one arm, or go on with it; return a row for each test."""
    last = teach_masks(setting, encoder, pvp, way, seed, work)
    segmenter, rows = load_segmenter(last), []
    segmenter.shift = 0.0  # the published rows are of the odds as they were taught, for places drawn as in training
    for name, test in open_tests(setting, way, segmenter.vlm.history).items():
        found: list[Confusion] = []
        for index in range(len(test)):
            item = test[index]
            mask = segmenter.find(item.stack, [item.words])[0] > 0.5
            found.append(confusion(mask, item.mask))
            if index < setting.pictures:
                np.save(last.parent / f"{name}-{index}.npy", mask)
        rows.append({"set": name, "checkpoint": checkpoint.content_hash(last), **segmentation_metrics(found)})
    return rows


def draw(seeds: Sequence[int] | None, work: Path, setting: ExperimentConfig = NANO) -> Image.Image | None:
    """Return the first items of every test, each the truth beside the masks of a seed's arms in the first way.

    The first seed is shown whose arms lie in `work`, all of them, or else the one that has most; None if none has any.
    """
    way = setting.ways[0]
    has = {seed: _arms_with_masks(work, seed, way) for seed in seeds or SEEDS}
    seed = max(has, key=lambda seed: (len(has[seed]), -seed))
    if not has[seed]:
        return None
    return image_grid(
        [[_beside(test, name, index, has[seed])] for name, test in open_tests(setting, way).items()
         for index in range(setting.pictures)]
    )  # fmt: skip


def _arms_with_masks(work: Path, seed: int, way: MaskMethod) -> dict[str, Path]:
    places = {f"{arm[0]}, {arm[1]}": work / f"masks-{arm[0]}-{arm[1]}-{way.name}-{seed}" for arm in way.arms}
    return {name: place for name, place in places.items() if any(place.glob("*.npy"))}


def _beside(test: GameReferringDataset, name: str, index: int, arms: dict[str, Path]) -> Image.Image:
    item = test[index]
    masks = {arm: np.load(place / f"{name}-{index}.npy") for arm, place in arms.items()}
    sides = {arm: draw_mask(item.stack[-1], mask, scale=1) for arm, mask in masks.items()}
    return comparison_grid({item.words: draw_mask(item.stack[-1], item.mask, scale=1), **sides})


Floor = Callable[[GameReferringExample], np.ndarray]


def floors(grid: int) -> dict[str, Floor]:
    """Return what answers without understanding, by name, and the most that a grid of points can reach."""
    return {
        "all": lambda item: np.ones(item.mask.shape, bool),
        "nothing": lambda item: np.zeros(item.mask.shape, bool),
        "largest object": _largest_object,
        "every object of the colour": _of_the_colour,
        f"truth on a grid of {grid}": partial(_through_grid, grid),
    }


def _largest_object(item: GameReferringExample) -> np.ndarray:
    objects = find_objects(item.stack[-1], item.game)
    return max(objects, key=lambda thing: thing.size).mask if objects else np.zeros(item.mask.shape, bool)


def _of_the_colour(item: GameReferringExample) -> np.ndarray:
    """Every object whose colour the words tell, or every object where they tell none."""
    told = {word for word in item.words.split() if word in COLOURS}
    mask = np.zeros(item.mask.shape, bool)
    for thing in find_objects(item.stack[-1], item.game):
        if not told or thing.colour in told:
            mask |= thing.mask
    return mask


def _through_grid(grid: int, item: GameReferringExample) -> np.ndarray:
    height, width = item.mask.shape
    coarse = Image.fromarray(grid_mask(item.mask, grid).astype(np.uint8) * 255)
    return np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR)) > 127


def measure_floors(setting: ExperimentConfig) -> list[dict[str, Any]]:
    """Return a row for every floor on every test."""
    rows = []
    for name, test in open_tests(setting, setting.ways[0]).items():
        items = [test[index] for index in range(len(test))]
        for floor, answer in floors(setting.grid).items():
            figures = segmentation_metrics([confusion(answer(item), item.mask) for item in items])
            rows.append({"set": name, "floor": floor, **figures})
    return rows
