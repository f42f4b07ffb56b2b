"""What the released reader sees: its answers for every cell of images that it was not trained on.

    python -m experiments.run reader

Frames of games that no training has seen, photographs that were held out (`python -m pretrain.data.photographs --out
data/photographs` fetches them), synthetic images, and frames of training games in other episodes. The picture shows
photographs of scikit-image and held-out games beside the truth and the answers. Intervals are a bootstrap over images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agents import record
from common.intervals import bootstrap_interval
from experiments.image_grid import image_grid
from experiments.studies.demonstrators import record_missing
from experiments.studies.jobs import Job
from pretrain.data.augmentation import crop_or_resize
from pretrain.data.images import EpisodeFrames, ImageFolder, ImageSource, SyntheticImages
from pretrain.pixel_training import PixelTraining
from pretrain.pvp_prediction import predict_grid
from pretrain.pvp_questions import PixelPromptFormat, downsample_grid
from pretrain.pvp_validation import evaluate_image, sample_images, summarize
from pretrain.reconstruct import EvalImage, comparison_grid
from pretrain.reconstruction_metrics import rare_color_mask
from vlm import checkpoint
from vlm.released_checkpoints import RELEASED_PVP

BOOTSTRAP_SAMPLES = 2000
IMAGES_DRAWN = 3  # of photographs and of held-out games
SHOWN = ("astronaut", "chelsea", "coffee")  # rather than others


@dataclass(frozen=True)
class ReaderConfig:
    """All settings of the evaluation."""

    checkpoint: Path = RELEASED_PVP
    held_out_games: tuple[str, ...] = ("Carnival", "MsPacman", "Seaquest", "Qbert", "Frostbite", "Asteroids")
    training_games: tuple[str, ...] = ("Breakout", "Pong", "SpaceInvaders", "Alien")
    photographs: Path = Path("data/photographs/test")
    data_dir: Path = Path("data")
    images: int = 8  # of each game; of the other sets four times as many
    seed: int = 500  # of the training games' other episodes; trainings record seed 0


READER = ReaderConfig()


def frames(config: ReaderConfig, game: str, seed: int = 0) -> EpisodeFrames:
    """Return the frames of a game; record what is missing."""
    name = f"random-{game}" if seed == 0 else f"random-{game}-seed{seed}"
    args = record.Args(
        game=game,
        out=config.data_dir / name,
        agent="random",
        episodes=12 if seed == 0 else 3,
        max_frames=1600,
        seed=seed,
    )
    return EpisodeFrames(record_missing(args))


def prepare(config: ReaderConfig = READER) -> None:
    """Record the frames of every game that are missing."""
    for game in config.held_out_games:
        frames(config, game)
    for game in config.training_games:
        frames(config, game, config.seed)


def sources(config: ReaderConfig) -> dict[str, list[ImageSource]]:
    """Return the sources of each set."""
    size = _pixels(config).size or (210, 160)
    return {
        "held-out games": [frames(config, game) for game in config.held_out_games],
        "photographs": [ImageFolder(config.photographs)],
        "synthetic": [SyntheticImages(20_000, *size)],
        "training games, other episodes": [frames(config, game, config.seed) for game in config.training_games],
    }


def jobs(seeds: Sequence[int] | None, work: Path, config: ReaderConfig = READER) -> list[Job]:
    """Return a job for each set."""
    names = ("held-out games", "photographs", "synthetic", "training games, other episodes")
    key = {"checkpoint": checkpoint.content_hash(config.checkpoint)}
    return [Job({**key, "set": name}, 60, partial(measure_set, config, name)) for name in names]


def images_of(config: ReaderConfig, name: str) -> list[EvalImage]:
    """Return the images of a set, the same ones each time."""
    found, vlm = sources(config)[name], checkpoint.load(config.checkpoint)
    count = config.images if len(found) > 1 else 4 * config.images
    size = _pixels(config).size or (210, 160)
    return [image for source in found for image in sample_images(source, count, size, vlm.history)]


def measure_set(config: ReaderConfig, name: str) -> list[dict[str, Any]]:
    """Return the row of a set: mean metrics, and the interval of the error over images."""
    vlm, pixels = checkpoint.load(config.checkpoint), _pixels(config)
    prompts, images = PixelPromptFormat.from_model(vlm, pixels.order), images_of(config, name)
    rows = [evaluate_image(vlm, image, pixels.grid, prompts)[0] for image in images]
    errors = np.array([[row["mae"]] for row in rows])
    _, low, high = bootstrap_interval(errors, lambda sample: float(sample.mean()), BOOTSTRAP_SAMPLES)
    metrics = summarize(vlm, images, rows, pixels.grid)
    return [{"grid": pixels.grid, "images": len(images), **metrics, "mae_interval": [low, high]}]


def draw(seeds: Sequence[int] | None, work: Path, config: ReaderConfig = READER) -> Image.Image | None:
    """Return photographs and frames of games beside their cells and the answers, on one sheet."""
    return image_grid(comparisons(config))


def comparisons(config: ReaderConfig) -> list[list[Image.Image]]:
    """Return a row of photographs, of scikit-image where there are any, and one of games: cells and answers beside.

    The photographs of scikit-image may be shown by anyone; those of other packages have licences of their own.
    """
    vlm, pixels = checkpoint.load(config.checkpoint), _pixels(config)
    prompts, size = PixelPromptFormat.from_model(vlm, pixels.order), pixels.size or (210, 160)
    free = config.photographs / "scikit-image"
    folder = ImageFolder(free if free.is_dir() else config.photographs)
    shown = sorted(range(len(folder)), key=lambda number: (folder.files[number].stem not in SHOWN, number))
    pictures = [_picture(folder, number, size, vlm.history) for number in shown[:IMAGES_DRAWN]]
    games = images_of(config, "held-out games")
    rows = []
    for images in (pictures, games[:: max(1, len(games) // IMAGES_DRAWN)][:IMAGES_DRAWN]):
        panels = []
        for image in images:
            true = downsample_grid(image.frames[-1], pixels.grid)
            rows_shown, columns, _ = true.shape
            found = predict_grid(vlm, image.frames, rows_shown, columns, prompts)
            answers = found.colors.reshape(true.shape).astype(np.uint8)
            panels.append(comparison_grid({"original": image.frames[-1], "cells": true, "answers": answers}))
        rows.append(panels)
    return rows


def _picture(folder: ImageFolder, number: int, size: tuple[int, int], history: int) -> EvalImage:
    frames = crop_or_resize(folder.frame_stack(number, history), *size)
    return EvalImage(folder.files[number].stem, frames, rare_color_mask(frames[-1]))


def _pixels(config: ReaderConfig) -> PixelTraining:
    return PixelTraining.of_checkpoint(config.checkpoint)
