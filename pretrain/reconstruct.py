"""Rebuild images by asking a model for the colour at every place: what does it see, and how much of it is guessing?

    python -m pretrain.reconstruct --image photo.png
    python -m pretrain.reconstruct --image photo.png --checkpoint runs/frozen/last runs/adapted/last --out runs/rebuilt
    python -m pretrain.reconstruct --data data/random-Seaquest --count 20 --checkpoint runs/adapted/last

Writes one picture an image (the original, its grid, and what each checkpoint sees), `reconstruct.json` with a row for
every image and checkpoint, the floors of `pretrain.metrics` beside them, and both to TensorBoard. `mae` is that of
the answers as text, read greedily, black where an answer cannot be parsed (`parse_failure_rate`, their share); `mae_expected` is
that of the mean of the model's distribution. Of recorded games, `mae_small_objects` is the error where something has
moved since the frame before, elsewhere where a colour is rare; `mae_background` is the error at all other places.
A model knows places of images of the size that it was taught on: others are brought to that size as a whole.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image, ImageDraw
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from common.command import run
from common.errors import UserError
from common.provenance import command_line, git_commit
from pretrain.data.images import EpisodeFrames, ImageError, open_image_source, read_image
from pretrain.metrics import blurred, cells_containing, mean_absolute_error, patch_mean_image, psnr, rare_color_mask, ssim
from pretrain.pvp_prediction import PixelPrediction, grid_coordinates, predict_pixels
from pretrain.pvp_prompts import PixelPromptFormat, downsample_grid, parse_grid
from vlm import checkpoint
from vlm.model import PixelVLM
from vlm.pretrained import RELEASED_PVP
from vlm.prompts import ORDERS
from vlm.training_resolution import resize_image, training_resolution

TAUGHT = "as taught"
PATCH = 16  # of the floor of patch means, where a model's encoder does not say what it cuts images into
TALL = 320  # lines of a picture in the triptych
COLUMNS = (
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
    """Rebuild images by asking for every place."""

    checkpoint: tuple[Path, ...] = (RELEASED_PVP,)
    """Models to ask: frozen and adapted, say; by default the policy that ships and was taught to play and to answer for
    pixels in one."""
    out: Path = Path("runs/rebuilt")
    """Where pictures, figures and TensorBoard's files go."""
    image: tuple[Path, ...] = ()
    """PNG or JPEG files."""
    data: Path | None = None
    """A directory of recorded games or a folder of pictures, of which `count` are drawn."""
    count: int = 8
    """How many images of `data`."""
    seed: int = 0
    """Seed of which."""
    grid: str = TAUGHT
    """The grid to ask on: 32, 64 or native; by default the one that the first model was taught."""
    order: str = TAUGHT
    """The order of coordinates, row,column or x,y; by default the one that the first model was taught."""
    chunk: int = 512
    """Questions answered at a time."""

    def __post_init__(self) -> None:
        if not self.checkpoint:
            raise UserError("--checkpoint is missing")
        if bool(self.image) == bool(self.data):
            raise UserError("expected either --image or --data")
        for name in ("count", "chunk"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}")
        taught = checkpoint.read_training(self.checkpoint[0]).get("arguments", {})
        if self.grid == TAUGHT and "grid" not in taught:
            raise UserError(f"{self.checkpoint[0]} was not taught pixel values; give --grid 32 to ask all the same")
        self.grid = taught["grid"] if self.grid == TAUGHT else self.grid
        self.order = taught.get("order", ORDERS[0]) if self.order == TAUGHT else self.order
        parse_grid(self.grid)


@dataclass(frozen=True)
class EvalImage:
    """An image to rebuild. name: for files; image: uint8[history, H, W, 3]; objects: bool[H, W], its small ones."""

    name: str
    image: np.ndarray
    objects: np.ndarray


def open_eval_images(args: Args, history: int, size: tuple[int, int] | None) -> list[EvalImage]:
    """Return the images to rebuild; a grid finer than an image as it came is refused."""
    found = []
    if args.image:
        for file in args.image:
            image = read_image(file)
            downsample_grid(image, args.grid)
            shown = resize_image(image, size)
            found.append(EvalImage(file.stem, np.stack([shown] * history), rare_color_mask(shown)))
        return found
    source = open_image_source(str(args.data))
    count = min(args.count, len(source))
    for index in sorted(np.random.default_rng(args.seed).choice(len(source), count, replace=False)):
        stack = source.frame_stack(int(index), history)
        downsample_grid(stack[-1], args.grid)
        objects = source.motion_mask(int(index)) if isinstance(source, EpisodeFrames) else None
        stack = np.stack([resize_image(image, size) for image in stack])
        if objects is None or objects.shape != stack.shape[1:3]:
            objects = rare_color_mask(stack[-1])
        found.append(EvalImage(f"{source.name}-{index}", stack, objects))
    return found


def prediction_metrics(reading: PixelPrediction, true: np.ndarray, objects: np.ndarray) -> dict[str, Any]:
    """Return the figures of a reading of every place of a grid.

    Args:
        reading: of rows * columns places, row by row.
        true: the grid's colours, uint8[rows, columns, 3].
        objects: bool[rows, columns], the places of small objects.
    """
    rebuilt = reading.answered.reshape(true.shape)
    out = image_metrics(rebuilt, true, objects)
    out["exact_match"] = float((reading.greedy.reshape(true.shape) == true).all(-1).mean())
    out["parse_failure_rate"] = float(reading.invalid.mean())
    if reading.expected is not None:
        out["mae_expected"] = float(mean_absolute_error(reading.expected.reshape(true.shape), true).mean())
    return out


def image_metrics(rebuilt: np.ndarray, true: np.ndarray, objects: np.ndarray) -> dict[str, Any]:
    """Return the figures that any rebuilt image has; errors of no place are None."""
    channels = mean_absolute_error(rebuilt, true)
    return {
        "mae": float(channels.mean()),
        **{f"mae_{name}": float(value) for name, value in zip(("red", "green", "blue"), channels, strict=True)},
        "mae_small_objects": _mae_at(rebuilt, true, objects),
        "mae_background": _mae_at(rebuilt, true, ~objects),
        "psnr": psnr(rebuilt, true),
        "ssim": ssim(rebuilt, true),
        "n": int(true.shape[0] * true.shape[1]),
        "n_small_objects": int(objects.sum()),
    }


def _mae_at(rebuilt: np.ndarray, true: np.ndarray, where: np.ndarray) -> float | None:
    return float(mean_absolute_error(rebuilt[where], true[where]).mean()) if where.any() else None


def baselines(
    image: np.ndarray, true: np.ndarray, patch: int, training: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return what one would answer without reading pixels, float or uint8[rows, columns, 3] by name.

    Args:
        image: uint8[H, W, 3].
        true: the grid's colours, uint8[rows, columns, 3].
        patch: the side of the squares that the encoder cuts the image into.
        training: the mean colour of the training images, float[3], where it is known.
    """
    flat = {} if training is None else {"training mean": np.broadcast_to(training, true.shape)}
    return {
        **flat,
        "image mean": np.broadcast_to(true.reshape(-1, 3).mean(0), true.shape),
        "blurred": blurred(true),
        "patch mean": patch_mean_image(image, patch, *true.shape[:2]),
    }


def patch_size(vlm: PixelVLM) -> int:
    """Return the side in pixels of the patches that a model's encoder cuts images into, 16 where it does not say."""
    return int(getattr(vlm.encoder.config, "patch_size", PATCH))


def comparison_grid(pictures: dict[str, np.ndarray]) -> Image.Image:
    """Return images uint8[h, w, 3] side by side at one height, each under its name; pixels stay square blocks."""
    first = next(iter(pictures.values()))
    width = max(1, round(TALL * first.shape[1] / first.shape[0]))
    sheet = Image.new("RGB", (len(pictures) * (width + 8) + 8, TALL + 30), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (name, picture) in enumerate(pictures.items()):
        left = 8 + index * (width + 8)
        draw.text((left, 6), name, fill="black")
        sheet.paste(Image.fromarray(picture).resize((width, TALL), Image.Resampling.NEAREST), (left, 24))
    return sheet


def reconstruct_image(
    subject: EvalImage, vlms: dict[str, PixelVLM], args: Args
) -> tuple[list[dict[str, Any]], Image.Image]:
    """Return a row of figures for every floor and model, and the triptych."""
    image = subject.image[-1]
    true = downsample_grid(image, args.grid)
    objects = cells_containing(subject.objects, *true.shape[:2])
    rows, pictures = [], {"original": image, f"grid {args.grid}": true}
    patch = patch_size(next(iter(vlms.values())))
    for name, guess in baselines(image, true, patch).items():
        rows.append({"image": subject.name, "baseline": name, **image_metrics(guess, true, objects)})
    for name, vlm in vlms.items():
        language = PixelPromptFormat.of(vlm, args.order)
        reading = predict_pixels(vlm, subject.image, grid_coordinates(*true.shape[:2]), language, args.chunk)
        pictures[name] = reading.answered.reshape(true.shape).astype(np.uint8)
        rows.append({"image": subject.name, "checkpoint": name, **prediction_metrics(reading, true, objects)})
    return rows, comparison_grid(pictures)


def name_checkpoints(directories: tuple[Path, ...]) -> dict[str, Path]:
    """Return a name for each directory: its own, or that of the run it is the `last` of; refused where two agree."""
    named = {(path.resolve().parent if path.name == "last" else path).name: path for path in directories}
    if len(named) != len(directories):
        raise ImageError("expected checkpoints of different runs, got two of one name")
    return named


def reconstruct(args: Args) -> list[dict[str, Any]]:
    """Rebuild every image with every checkpoint; write and return the rows."""
    named = name_checkpoints(args.checkpoint)
    sizes = {training_resolution(path) for path in named.values()}
    vlms = {name: checkpoint.load(path) for name, path in named.items()}
    histories = {vlm.history for vlm in vlms.values()}
    if len(sizes) > 1 or len(histories) > 1:
        raise ImageError(
            f"expected checkpoints taught on images of one size and history, got {sorted(map(str, sizes))}"
        )
    subjects = open_eval_images(args, histories.pop(), sizes.pop())
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with SummaryWriter(str(args.out)) as writer:
        for number, subject in enumerate(tqdm(subjects, desc="rebuild", unit="image")):
            found, picture = reconstruct_image(subject, vlms, args)
            rows += found
            picture.save(args.out / f"{subject.name}.png")
            writer.add_image(f"rebuilt/{subject.name}", np.asarray(picture), dataformats="HWC")
            for row in found:
                writer.add_scalar(f"mae/{row.get('checkpoint') or row.get('baseline')}", row["mae"], number)
    result = {"command": command_line(), "commit": git_commit(), "grid": args.grid, "rows": rows}
    (args.out / "reconstruct.json").write_text(json.dumps(result, indent=1) + "\n")
    return rows


def summary(rows: list[dict[str, Any]]) -> str:
    """Return a table of the means over images, a line for every floor and checkpoint."""
    lines = [
        f"{'':24s} {'mae':>7s} {'expected':>9s} {'objects':>8s} {'psnr':>6s} {'ssim':>6s} {'exact':>6s} {'unparsed':>8s}"
    ]
    for name in dict.fromkeys(row.get("checkpoint") or row["baseline"] for row in rows):
        own = [row for row in rows if name in (row.get("checkpoint"), row.get("baseline"))]
        cells = []
        for key, _, width in COLUMNS:
            values = [row[key] for row in own if row.get(key) is not None]
            cells.append(f"{np.mean(values):{width}.2f}" if values else " " * (width - 1) + "-")
        lines.append(f"{name:24s} {' '.join(cells)}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    print(summary(reconstruct(args)))
    print(f"pictures and figures are in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
