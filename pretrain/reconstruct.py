"""Reconstruct images from a model's pixel value predictions, which shows what the model sees.

    python -m pretrain.reconstruct --image photo.png
    python -m pretrain.reconstruct --image photo.png --checkpoint runs/frozen/last runs/adapted/last
    python -m pretrain.reconstruct --data data/random-Seaquest --count 20 --checkpoint runs/adapted/last

For every image it writes a picture (the original, its grid, the checkpoints' reconstructions), and the metrics of
every checkpoint and baseline to `reconstruct.json` and TensorBoard. `mae` is the error of greedy answers, black where
an answer cannot be parsed (`parse_failure_rate`); `mae_expected` is that of the model's expected values.
`mae_small_objects` is for the cells that moved since the previous frame of a game, or hold a rare color in other
images; `mae_background` is for the others. Images are resized to the resolution of the model's training.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from common.command import command, require_at_least, run
from common.errors import UserError
from common.files import atomic_file
from common.images import read_image
from common.outputs import require_output_files
from common.results import new_result, write_result
from common.run_arguments import FILE as ARGUMENTS
from common.run_arguments import require_same_arguments, to_json
from pretrain.data.images import EpisodeFrames, open_image_source
from pretrain.pixel_training import PixelTraining
from pretrain.pvp_prediction import PixelPrediction, grid_coordinates, predict_pixels
from pretrain.pvp_questions import PixelPromptFormat, downsample_grid, parse_grid
from pretrain.reconstruction_metrics import (
    Metrics,
    baselines,
    cells_containing,
    image_metrics,
    mean_absolute_error,
    rare_color_mask,
)
from vlm import checkpoint
from vlm.checkpoint import training_resolution
from vlm.decoding.prefix import require_prefix_sharing
from vlm.image_input import resize_image
from vlm.model import PixelVLM
from vlm.prompts import ORDERS
from vlm.released_checkpoints import RELEASED_PVP

DEFAULT_PATCH_SIZE = 16  # of the patch mean baseline, where the encoder has no patch size
PANEL_HEIGHT = 320  # pixels
COLUMNS = (  # metric, heading, width
    ("mae", "mae", 7),
    ("mae_expected", "expected", 9),
    ("mae_small_objects", "objects", 8),
    ("psnr", "psnr", 6),
    ("ssim", "ssim", 6),
    ("exact_match", "exact", 6),
    ("parse_failure_rate", "unparsed", 8),
)


@dataclass
class Args:
    """Reconstruct images from predicted pixel values."""

    checkpoint: tuple[Path, ...] = (RELEASED_PVP,)
    """Models to compare; by default the released policy that was trained on pixel values as well."""
    out: Path = Path("runs/reconstruct")
    """Output directory for pictures, metrics and TensorBoard files."""
    image: tuple[Path, ...] = ()
    """PNG or JPEG files."""
    data: Path | None = None
    """A directory of recorded games or a folder of pictures, to sample `count` images from."""
    count: int = 8
    """Images to sample from `data`."""
    seed: int = 0
    """Seed of the sample."""
    grid: str | None = None
    """Grid of the questions: 32, 64 or native; by default that of the first model's training."""
    order: str | None = None
    """Order of coordinates: row,column or x,y; by default that of the first model's training."""
    chunk: int = 512
    """Questions decoded at a time."""

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise UserError("--checkpoint is missing")
        if bool(self.image) == bool(self.data):
            raise UserError("expected either --image or --data")
        require_at_least(self, 1, "count", "chunk")
        training = PixelTraining.find(checkpoint.read_training(self.checkpoint[0]))
        self.grid = self.grid or (training.grid if training else None)
        if self.grid is None:
            raise UserError(f"{self.checkpoint[0]} was not trained on pixel values; pass --grid 32 to ask all the same")
        self.order = self.order or (training.order if training else ORDERS[0])
        parse_grid(self.grid)


@dataclass(frozen=True)
class EvalImage:
    """An image to reconstruct."""

    name: str
    frames: UInt8[np.ndarray, "history H W 3"]  # the image last
    small_objects: Bool[np.ndarray, "H W"]


def open_eval_images(args: Args, grid: str, history: int, size: tuple[int, int] | None) -> list[EvalImage]:
    """Return the images to reconstruct, resized to `size`; `ImageError` if one is smaller than the grid."""
    found: list[tuple[str, np.ndarray, np.ndarray | None]] = [
        (file.stem, np.stack([read_image(file)] * history), None) for file in args.image
    ]
    if args.data:
        source = open_image_source(str(args.data))
        count = min(args.count, len(source))
        for index in sorted(np.random.default_rng(args.seed).choice(len(source), count, replace=False).tolist()):
            mask = source.motion_mask(index) if isinstance(source, EpisodeFrames) else None
            found.append((f"{source.name}-{index}", source.frame_stack(index, history), mask))
    images = []
    for name, originals, mask in found:
        downsample_grid(originals[-1], grid)  # refuses a grid that is too fine
        frames = np.stack([resize_image(frame, size) for frame in originals])
        if mask is None or mask.shape != frames.shape[1:3]:
            mask = rare_color_mask(frames[-1])
        images.append(EvalImage(name, frames, mask))
    return images


def prediction_metrics(
    prediction: PixelPrediction, true: UInt8[np.ndarray, "rows cols 3"], small_objects: Bool[np.ndarray, "rows cols"]
) -> Metrics:
    """Return the metrics of a prediction of every cell of a grid, row by row."""
    metrics = image_metrics(prediction.colors.reshape(true.shape), true, small_objects)
    metrics["exact_match"] = float((prediction.greedy.reshape(true.shape) == true).all(-1).mean())
    metrics["parse_failure_rate"] = float((prediction.greedy < 0).any(-1).mean())
    if prediction.expected is not None:
        metrics["mae_expected"] = float(mean_absolute_error(prediction.expected.reshape(true.shape), true).mean())
    return metrics


def patch_size(vlm: PixelVLM) -> int:
    """Return the side in pixels of the encoder's patches, a default if it has none."""
    size = getattr(vlm.encoder.config, "patch_size", DEFAULT_PATCH_SIZE)
    return int(size if isinstance(size, int) else size[0])  # InternVL gives a pair


def comparison_grid(panels: dict[str, UInt8[np.ndarray, "_ _ 3"]]) -> Image.Image:
    """Return images side by side at one height, each below its name, without interpolation."""
    first = next(iter(panels.values()))
    width = max(1, round(PANEL_HEIGHT * first.shape[1] / first.shape[0]))
    canvas = Image.new("RGB", (len(panels) * (width + 8) + 8, PANEL_HEIGHT + 30), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (name, panel) in enumerate(panels.items()):
        left = 8 + index * (width + 8)
        draw.text((left, 6), name, fill="black")
        canvas.paste(Image.fromarray(panel).resize((width, PANEL_HEIGHT), Image.Resampling.NEAREST), (left, 24))
    return canvas


def reconstruct_image(
    image: EvalImage, vlms: dict[str, PixelVLM], grid: str, order: str, chunk: int
) -> tuple[list[Metrics], Image.Image]:
    """Return a row of metrics for every baseline and model, and their comparison grid."""
    true = downsample_grid(image.frames[-1], grid)
    small_objects = cells_containing(image.small_objects, grid)
    rows, panels = [], {"original": image.frames[-1], f"grid {grid}": true}
    for name, predicted in baselines(image.frames[-1], true, patch_size(next(iter(vlms.values()))), grid).items():
        rows.append({"image": image.name, "baseline": name, **image_metrics(predicted, true, small_objects)})
    for name, vlm in vlms.items():
        prompt_format = PixelPromptFormat.from_model(vlm, order)
        prediction = predict_pixels(vlm, image.frames, grid_coordinates(*true.shape[:2]), prompt_format, chunk)
        panels[name] = prediction.colors.reshape(true.shape).astype(np.uint8)
        rows.append({"image": image.name, "checkpoint": name, **prediction_metrics(prediction, true, small_objects)})
    return rows, comparison_grid(panels)


def name_checkpoints(directories: tuple[Path, ...]) -> dict[str, Path]:
    """Return the directories by name: their own, or that of the run whose `last` they are."""
    named = {(path.resolve().parent if path.name == "last" else path).name: path for path in directories}
    if len(named) != len(directories):
        raise UserError("expected checkpoints of different runs, got two of one name")
    return named


def image_size(directory: Path) -> tuple[int, int] | None:
    """Return the rows and columns of the images that a checkpoint was trained on, on pixel values if it was."""
    training = PixelTraining.find(checkpoint.read_training(directory))
    return training.size if training else training_resolution(directory)


def reconstruct(args: Args) -> list[Metrics]:
    """Reconstruct every image with every checkpoint; write and return the rows of metrics."""
    assert args.grid
    assert args.order
    started, named = time.monotonic(), name_checkpoints(args.checkpoint)
    vlms = {name: checkpoint.load(path) for name, path in named.items()}
    for vlm in vlms.values():
        require_prefix_sharing(vlm.model)
    inputs = {(vlm.history, image_size(named[name])) for name, vlm in vlms.items()}
    if len(inputs) > 1:
        found = sorted(map(str, inputs))
        raise UserError(f"expected checkpoints of one history and image size in training, got {found}")
    images, rows = open_eval_images(args, args.grid, *inputs.pop()), []
    files = [args.out / "reconstruct.json", *(picture_file(args, image) for image in images)]
    read = [*args.image, *args.checkpoint, *([args.data] if args.data else [])]
    require_output_files(files, read, own=args.out / ARGUMENTS)
    require_same_arguments(args.out, to_json(args), ignore=("chunk",))
    with SummaryWriter(str(args.out)) as writer:
        for step, image in enumerate(tqdm(images, desc="reconstruct", unit="image")):
            found_rows, picture = reconstruct_image(image, vlms, args.grid, args.order, args.chunk)
            rows += found_rows
            with atomic_file(picture_file(args, image)) as temporary:
                picture.save(temporary)
            writer.add_image(f"reconstruction/{image.name}", np.asarray(picture), dataformats="HWC")
            for row in found_rows:
                writer.add_scalar(f"mae/{_model_name(row)}", row["mae"], step)
    result = {**new_result("reconstruct", None, [args.seed]), "grid": args.grid, "rows": rows}
    result["seconds"] = round(time.monotonic() - started, 1)
    write_result(args.out / "reconstruct.json", result)
    return rows


def picture_file(args: Args, image: EvalImage) -> Path:
    """Return the file of an image's comparison grid."""
    return args.out / f"{image.name}.png"


def _model_name(row: Metrics) -> str:
    return row.get("checkpoint") or row["baseline"]


def summary(rows: list[Metrics]) -> str:
    """Return a table of means over images, a line for every baseline and checkpoint."""
    lines = [" ".join([" " * 24, *(f"{heading:>{width}s}" for _, heading, width in COLUMNS)])]
    for name in dict.fromkeys(map(_model_name, rows)):
        cells = []
        for metric, _, width in COLUMNS:
            values = [row[metric] for row in rows if _model_name(row) == name and row.get(metric) is not None]
            cells.append(f"{np.mean(values):{width}.2f}" if values else f"{'-':>{width}s}")
        lines.append(f"{name:24s} {' '.join(cells)}")
    return "\n".join(lines)


def _reconstruct(args: Args) -> str:
    return f"{summary(reconstruct(args))}\npictures and metrics are in {args.out}"


main = command(Args, _reconstruct, __doc__, "{}")


if __name__ == "__main__":
    sys.exit(run(main))
