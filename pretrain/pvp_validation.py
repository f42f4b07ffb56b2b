"""Validation of pixel value prediction while it trains: reconstructions of images that it does not train on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerCallback

from common.processes import is_main_process
from pretrain.data.augmentation import crop_or_resize
from pretrain.data.images import EpisodeFrames, ImageSource, open_image_source
from pretrain.pvp_config import PvpValidation
from pretrain.pvp_gates import (
    channel_ratio,
    mean_of_known,
    patch_metrics,
    patch_of_cells,
    summary,
    token_probe_mae,
)
from pretrain.pvp_prediction import grid_coordinates, predict_pixels
from pretrain.pvp_questions import PixelPromptFormat, downsample_grid
from pretrain.reconstruct import EvalImage, comparison_grid, prediction_metrics
from pretrain.reconstruction_metrics import Metrics, cells_containing, mean_absolute_error, rare_color_mask
from vlm.model import PixelVLM
from vlm.precision import autocast, required_autocast

SAMPLE_SEED = 20_000
SHOWN = 4  # reconstructions of each set in TensorBoard


def sample_images(source: ImageSource, count: int, size: tuple[int, int], history: int) -> list[EvalImage]:
    """Return images of a source at a size, always the same ones; small objects are what moved, or rare colors."""
    rng, images = np.random.default_rng(SAMPLE_SEED), []
    for index in rng.choice(len(source), min(count, len(source)), replace=False).tolist():
        frames = crop_or_resize(source.frame_stack(index, history), *size)
        if isinstance(source, EpisodeFrames):
            moved = source.motion_mask(index)[..., None].repeat(3, axis=2).astype(np.uint8) * 255
            objects = crop_or_resize(moved, *size)[..., 0] > 0
        else:
            objects = rare_color_mask(frames[-1])
        images.append(EvalImage(f"{source.name}-{index}", frames, objects))
    return images


def evaluate_image(
    vlm: PixelVLM, image: EvalImage, grid: str, prompts: PixelPromptFormat
) -> tuple[Metrics, UInt8[np.ndarray, "rows columns 3"]]:
    """Return the metrics of greedy answers for all cells of an image, with those of the gates, and the answers."""
    _, height, width, _ = image.frames.shape
    true = downsample_grid(image.frames[-1], grid)
    prediction = predict_pixels(vlm, image.frames, grid_coordinates(*true.shape[:2]), prompts, 512)
    predicted = prediction.colors.reshape(true.shape)
    row = prediction_metrics(prediction, true, cells_containing(image.small_objects, grid))
    row |= patch_metrics(predicted, true, patch_of_cells(vlm, height, width, grid))
    row["mae_patch_mean"] = row.pop("mae_of_true_patch_means")
    row["mae_image_mean"] = float(mean_absolute_error(true.reshape(-1, 3).mean(0), true).mean())
    return row, predicted.astype(np.uint8)


def summarize(vlm: PixelVLM, images: Sequence[EvalImage], rows: Sequence[Metrics], grid: str) -> Metrics:
    """Return the means of the rows of images, the channels' ratio and the probe of the tokens."""
    metrics = {name: mean_of_known([row[name] for row in rows]) for name in rows[0]}
    metrics["channel_ratio"] = channel_ratio(metrics)
    metrics["token_probe_mae"] = token_probe_mae(vlm, [image.frames[-1] for image in images], grid)
    return metrics


def evaluate_images(
    vlm: PixelVLM, images: Sequence[EvalImage], grid: str, prompts: PixelPromptFormat
) -> tuple[Metrics, list[np.ndarray]]:
    """Return the mean metrics of images, with those of the gates, and the answers for each."""
    rows, predictions = zip(*(evaluate_image(vlm, image, grid, prompts) for image in images), strict=True)
    return summarize(vlm, images, rows, grid), list(predictions)


class ValidationCallback(TrainerCallback):
    """Evaluates every `eval_every` steps and at the end; prints the gates and writes TensorBoard files."""

    def __init__(self, vlm: PixelVLM, config: PvpValidation, grid: str, size: tuple[int, int], out: Path):
        self.vlm, self.every, self.grid, self.out = vlm, config.eval_every, grid, out
        self.sets: dict[str, list[EvalImage]] = {}
        for place in config.val_data:
            source = open_image_source(place)
            self.sets[source.name] = sample_images(source, config.val_images, size, vlm.history)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Evaluate where the step asks for it."""
        is_due = state.global_step == state.max_steps or (self.every and state.global_step % self.every == 0)
        if self.sets and is_due and is_main_process():
            self.evaluate(state.global_step)

    def evaluate(self, step: int) -> dict[str, Metrics]:
        """Return the metrics of each set; print and write them."""
        self.vlm.model.eval()
        prompts, found = PixelPromptFormat.from_model(self.vlm), {}
        with SummaryWriter(str(self.out / "validation")) as writer:
            for name, images in self.sets.items():
                with autocast(self.vlm.device, required_autocast(self.vlm.model) or False):
                    found[name], predictions = evaluate_images(self.vlm, images, self.grid, prompts)
                print(f"\nstep {step}, {summary(name, found[name])}", flush=True)
                for metric, value in found[name].items():
                    if value is not None:
                        writer.add_scalar(f"{name}/{metric}", value, step)
                for image, predicted in list(zip(images, predictions, strict=True))[:SHOWN]:
                    true = downsample_grid(image.frames[-1], self.grid)
                    panels = comparison_grid({"truth": true, f"step {step}": predicted})
                    writer.add_image(f"{name}/{image.name}", np.asarray(panels), step, dataformats="HWC")
        self.vlm.model.train()
        return found
