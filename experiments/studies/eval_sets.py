"""Image sets that pixel value prediction is evaluated on: the same images for every condition and seed."""

from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.files import atomic_file
from common.images import read_image
from pretrain.data.augmentation import crop_or_resize
from pretrain.data.images import EpisodeFrames
from pretrain.data.scikit_image_photographs import EVALUATION_PHOTOGRAPHS, scikit_image_folder
from pretrain.pvp_gates import channel_ratio, patch_metrics, patch_of_cells, token_probe_mae
from pretrain.pvp_prediction import grid_coordinates, predict_pixels
from pretrain.pvp_questions import PixelPromptFormat, downsample_grid
from pretrain.reconstruct import prediction_metrics
from pretrain.reconstruction_metrics import baselines, cells_containing, image_metrics, rare_color_mask
from vlm.model import PixelVLM

SEED = 10_000
Metrics = dict[str, Any]


@dataclass(frozen=True)
class EvalSet:
    """A set of images. images: uint8[H, W, 3] each; objects: bool[H, W] each, the pixels of small objects."""

    name: str
    images: list[np.ndarray]
    objects: list[np.ndarray]


def frame_set(name: str, sources: list[EpisodeFrames], count: int, size: tuple[int, int]) -> EvalSet:
    """Return `count` frames of recorded games, whose small objects are what moved since the frame before."""
    rng = np.random.default_rng(SEED)
    images, objects = [], []
    for source in islice(cycle(sources), count):
        index = int(rng.integers(len(source)))
        images.append(crop_or_resize(source.image(index), *size))
        moved = source.motion_mask(index)[..., None].repeat(3, axis=2).astype(np.uint8) * 255
        objects.append(crop_or_resize(moved, *size)[..., 0] > 0)
    return EvalSet(name, images, objects)


def still_set(name: str, images: list[np.ndarray]) -> EvalSet:
    """Return a set of still images, whose small objects are the pixels of rare colours."""
    return EvalSet(name, images, [rare_color_mask(image) for image in images])


def photographs(count: int, size: tuple[int, int]) -> list[np.ndarray]:
    """Return seeded random windows uint8[H, W, 3] of the photographs that come with scikit-image."""
    folder, rng = scikit_image_folder(), np.random.default_rng(SEED)
    names = islice(cycle(EVALUATION_PHOTOGRAPHS), count)
    return [crop_or_resize(read_image(folder / name), *size, rng) for name in names]


def mean_metrics(rows: list[Metrics]) -> Metrics:
    """Return the mean of each metric over the images that have it, without infinite PSNR; counts (`n...`) add up."""
    out: Metrics = {}
    for name in rows[0]:
        values = [row[name] for row in rows if row[name] is not None and np.isfinite(row[name])]
        out[name] = None if not values else int(sum(values)) if name.startswith("n") else float(np.mean(values))
    return out


def evaluate_baselines(eval_set: EvalSet, grid: str, patch: int, training_mean: np.ndarray) -> dict[str, Metrics]:
    """Return the metrics of each baseline of `pretrain.reconstruction_metrics` on a set."""
    found: dict[str, list[Metrics]] = {}
    for image, objects in zip(eval_set.images, eval_set.objects, strict=True):
        target = downsample_grid(image, grid)
        cells = cells_containing(objects, grid)
        for name, guess in baselines(image, target, patch, grid, training_mean).items():
            found.setdefault(name, []).append(image_metrics(guess, target, cells))
    return {name: mean_metrics(rows) for name, rows in found.items()}


@torch.no_grad()
def evaluate(
    vlm: PixelVLM, eval_set: EvalSet, grid: str, sample: int | None = None, save: Path | None = None
) -> Metrics:
    """Return a model's mean metrics on a set, with those of the gates where all cells are asked about.

    Args:
        vlm: the model.
        eval_set: its images.
        grid: the grid of coordinates.
        sample: grid cells per image, drawn alike for every model; None: all.
        save: to write each predicted grid, uint8[rows, columns, 3], to `SAVE-NUMBER.npy`.
    """
    prompts, rows = PixelPromptFormat.from_model(vlm), []
    for number, (image, objects) in enumerate(zip(eval_set.images, eval_set.objects, strict=True)):
        target = downsample_grid(image, grid)
        shape = target.shape
        cells, is_object = grid_coordinates(*shape[:2]), cells_containing(objects, grid)
        if sample is not None:
            cells = cells[np.random.default_rng(number).choice(len(cells), min(sample, len(cells)), replace=False)]
            shape = (1, len(cells), 3)
        predicted = predict_pixels(vlm, np.stack([image] * vlm.history), cells, prompts, chunk=512)
        at_cells = target[cells[:, 0], cells[:, 1]].reshape(shape)
        rows.append(prediction_metrics(predicted, at_cells, is_object[cells[:, 0], cells[:, 1]].reshape(shape[:2])))
        if sample is None:
            height, width, _ = image.shape
            patches = patch_of_cells(vlm, height, width, grid)
            rows[-1] |= patch_metrics(predicted.colors.reshape(target.shape), target, patches)
        if save:
            with atomic_file(save.with_name(f"{save.name}-{number}.npy")) as file:
                np.save(file, predicted.colors.reshape(shape).astype(np.uint8))
    metrics = mean_metrics(rows)
    if sample is None:
        metrics["channel_ratio"] = channel_ratio(metrics)
        metrics["token_probe_mae"] = token_probe_mae(vlm, eval_set.images, grid)
    return metrics
