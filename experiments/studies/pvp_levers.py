"""What makes pixel value prediction learn? Each lever taken away from a setting that reads, and none of them.

    python -m experiments.run pvp-levers

All settings train on the same synthetic images, in the same order, for the same number of steps, and answer for every
cell of images that no training has seen: frames of games, photographs (of scikit-image) and other synthetic images.
Beside the error stand the gates of `pretrain.pvp_gates`, which tell the link that fails.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from agents import record
from experiments.studies.demonstrators import record_missing
from experiments.studies.eval_sets import photographs
from experiments.studies.jobs import Job
from pretrain.data.images import EpisodeFrames, SyntheticImages
from pretrain.pvp import train_pvp
from pretrain.pvp_config import CONFIGS, PvpConfig
from pretrain.pvp_gates import failing_gate
from pretrain.pvp_model import start_model
from pretrain.pvp_questions import PixelPromptFormat
from pretrain.pvp_validation import evaluate_images, sample_images
from pretrain.reconstruct import EvalImage
from pretrain.reconstruction_metrics import rare_color_mask
from vlm import checkpoint

ALL = "all levers"
LEVERS: dict[str, dict[str, Any]] = {
    ALL: {},
    "AdamW for every parameter": {"optimizer": "adamw"},
    "numbers without an ordered scale": {"number_scale": 0.0},
    "longer waves, 8 to 512": {"wavelengths": (8.0, 512.0)},
    "no patch expansion: four cells a token": {"patch_expansion": 1, "cell_position_amplitude": 0.0},
    "cells cut by patches: grid 32": {"grid": "32", "patch_expansion": 1, "dense_loss_weight": 0.0},
    "no dense color loss": {"dense_loss_weight": 0.0},
    "all heads for every number": {"heads_by_number": False},
    "8 questions an image": {"questions": 8},
    "no attention supervision": {"attention_supervision_weight": 0.0},
    "random patch embedding": {"patch_init_amplitude": 0.0},
    "no lever": {
        "optimizer": "adamw", "number_scale": 0.0, "wavelengths": (8.0, 512.0), "patch_expansion": 1, "grid": "32",
        "dense_loss_weight": 0.0, "questions": 8, "patch_init_amplitude": 0.0, "position_amplitude": 1.0,
        "cell_position_amplitude": 0.0, "label_std": 6.0, "heads_by_number": False,
    },
}  # fmt: skip


@dataclass(frozen=True)
class LeversConfig:
    """All settings of the experiment. training: what the levers are taken away from."""

    training: PvpConfig = CONFIGS["reading"].replace(steps=400, images=4, questions=32)
    levers: tuple[str, ...] = tuple(LEVERS)
    games: tuple[str, ...] = ("Carnival", "MsPacman", "Seaquest", "Qbert", "Breakout")
    images: int = 8  # of each set
    data_dir: Path = Path("data")
    seconds_per_step: float = 0.5


LEVERS_CONFIG = LeversConfig()
SEEDS = (0,)


def prepare(config: LeversConfig = LEVERS_CONFIG) -> None:
    """Record the frames of every game that are missing."""
    for game in config.games:
        frame_dataset(config, game)


def frame_dataset(config: LeversConfig, game: str) -> Path:
    """Return the dataset of a game's frames; record what is missing."""
    out = config.data_dir / f"random-{game}"
    return record_missing(record.Args(game=game, out=out, agent="random", episodes=3, max_frames=1600))


def jobs(seeds: Sequence[int] | None, work: Path, config: LeversConfig = LEVERS_CONFIG) -> list[Job]:
    """Return a job for each lever and seed."""
    seconds = config.training.run.steps * config.seconds_per_step + 60
    return [
        Job({"lever": lever, "seed": seed}, seconds, partial(measure_lever, config, lever, seed, work))
        for seed, lever in product(seeds or SEEDS, config.levers)
    ]


def eval_sets(config: LeversConfig) -> dict[str, list[EvalImage]]:
    """Return the images of each set."""
    size, count = config.training.data.size, config.images
    per_game = -(-count // len(config.games))
    games = [
        image
        for game in config.games
        for image in sample_images(EpisodeFrames(frame_dataset(config, game)), per_game, size, history=1)
    ]
    pictures = [
        EvalImage(f"photograph-{n}", p[None], rare_color_mask(p)) for n, p in enumerate(photographs(count, size))
    ]
    synthetic = sample_images(SyntheticImages(10_000, *size), count, size, history=1)
    return {"held-out games": games, "photographs": pictures, "synthetic": synthetic}


def measure_lever(config: LeversConfig, lever: str, seed: int, work: Path) -> list[dict[str, Any]]:
    """Train one setting, or resume it; return its row for each set."""
    out = work / f"{list(LEVERS).index(lever)}-{seed}"
    training = config.training.replace(seed=seed, out=out, **LEVERS[lever])
    vlm = checkpoint.load(train_pvp(training, vlm=start_model(training)))
    prompts, grid, rows = PixelPromptFormat.from_model(vlm), training.data.grid, []
    for name, images in eval_sets(config).items():
        metrics, _ = evaluate_images(vlm, images, grid, prompts)
        rows.append({"set": name, "step": training.run.steps, "fails_at": failing_gate(metrics), **metrics})
    return rows
