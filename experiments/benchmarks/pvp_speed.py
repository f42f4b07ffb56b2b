"""How fast pixel values are taught and asked, many questions behind one image beside one image a question.

    python -m experiments.benchmarks.pvp_speed --out experiments/results/bench_pvp.json

Training: questions a second, forward and backward, through `vlm.decoding.packing` by either of its ways, beside batches of one
question an image, as in the paper, through the class's own forward and loss; both sides compute as `pretrain.pvp`
does. Reconstruction: the colours of a whole grid behind one reading of the image, beside one `generate` at its defaults
a place, in float32; a sample of places is timed and scaled to the grid. Same model, same run, turn and turn about, on
frames of noise, since the time does not depend on what they show; on a GPU if there is one. Model FLOPs utilisation is
of a packed step: its products, forward and backward, beside what one large product of the same precision reaches.

    python -m experiments.benchmarks.pvp_speed --preset base-clip --questions 256 --out bench_gpu.json     what a GPU is for
"""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from common.command import run
from common.errors import UserError
from common.results import new_result, write_result
from vlm import checkpoint
from vlm.decoding.batched_generate import generate_batch
from vlm.decoding.candidate_scoring import prompt_ids
from vlm.decoding.packing import forward_packed
from vlm.device import best_device, device_name
from vlm.model import PixelVLM
from vlm.precision import autocast, in_bfloat16
from vlm.presets import build
from vlm.prompts import IMAGE, PIXEL_PREFIX, pixel_answer, pixel_prompt

ANSWER_TOKENS = 6  # three numbers, two commas and the closing bracket
HEIGHT, WIDTH = 210, 160


@dataclass
class Args:
    """Time pixel value prediction, packed and not."""

    out: Path
    """The result JSON."""
    checkpoint: Path | None = None
    """The model; by default untrained weights of the preset."""
    preset: str = "nano-clip"
    """The size of untrained weights: nano-clip is what `pvp-nano` teaches, nano what plays. The more tokens an image
    has, the more there is to share."""
    images: int = 8
    """Images a training step, on both sides."""
    questions: int = 96
    """Questions behind each image where they are packed; the rival asks one."""
    bf16: bool | None = None
    """Train in bfloat16 where that is safe, on both sides; None does where the device has it natively."""
    grid: int = 64
    """Rows and columns of the grid that is reconstructed."""
    rounds: int = 3
    """Turns of each side that are timed."""
    sample: int = 20
    """Places asked by one `generate` each, in every turn."""
    threads: int = 1
    """Threads of torch; two where two cores are free."""

    def __post_init__(self) -> None:
        for name in ("images", "questions", "grid", "rounds", "sample", "threads"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.grid > HEIGHT or self.grid > WIDTH:
            raise UserError(f"--grid must be at most {min(HEIGHT, WIDTH)}, got {self.grid}: finer than the image")


class Asking:
    """A model and frames, and pixels' questions as tokens."""

    def __init__(self, args: Args):
        self.args, self.rng = args, np.random.default_rng(0)
        self.vlm: PixelVLM = checkpoint.load(args.checkpoint) if args.checkpoint else build(args.preset)
        self.device = best_device()
        self.vlm.model.to(self.device)
        frames = self.rng.integers(0, 256, (args.images, self.vlm.history, HEIGHT, WIDTH, 3), dtype=np.uint8)
        self.frames = torch.from_numpy(frames).to(self.device)
        self.shared = torch.tensor(self.encode(PIXEL_PREFIX), device=self.device)
        with torch.no_grad():
            self.image_ids = self.vlm.image_ids(self.vlm.preprocess(self.frames[:1]))

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return self.vlm.tokenizer(text, add_special_tokens=False)["input_ids"]

    def question(self, row: int, column: int) -> list[int]:
        """Return the tokens between the shared ones and the answer."""
        return self.encode(pixel_prompt(row, column).removeprefix(f"{IMAGE} {PIXEL_PREFIX}"))

    def whole_prompt(self, row: int, column: int) -> list[int]:
        """Return the tokens before the answer as the class's own forward takes them."""
        return prompt_ids(self.vlm, pixel_prompt(row, column), self.image_ids)


class Training(Asking):
    """One step, forward and backward, of either side; a lesson sets up the model as training does."""

    def __init__(self, args: Args):
        super().__init__(args)
        self.vlm.set_attn_implementation("sdpa")
        self.vlm.model.to(memory_format=torch.channels_last)
        self.bf16 = args.bf16
        places = self.rng.integers([HEIGHT, WIDTH], size=(args.images, args.questions, 2)).tolist()
        self.asked = [[(r, c, self.frames[i, -1, r, c].tolist()) for r, c in rows] for i, rows in enumerate(places)]

    def packed(self, method: str) -> float:
        """Go through all questions about each image; return the loss."""
        rows = [[self.question(r, c) + self.encode(pixel_answer(rgb)) for r, c, rgb in row] for row in self.asked]
        tokens = torch.tensor(rows, device=self.device)  # [B, K, L]
        with autocast(self.vlm.device, self.bf16):
            features = self.vlm.encode_images(self.vlm.preprocess(self.frames))
            states = forward_packed(self.vlm, features, self.shared, tokens[:, :, :-1], method)
            logits = self.vlm.model.get_output_embeddings()(states[:, :, -ANSWER_TOKENS:]).float()
        return self._backward(functional.cross_entropy(logits.flatten(0, 2), tokens[:, :, -ANSWER_TOKENS:].flatten()))

    def separate(self) -> float:
        """Go through one question about each image; return the loss."""
        rows = [
            self.whole_prompt(r, c) + self.encode(pixel_answer(rgb)) for r, c, rgb in (row[0] for row in self.asked)
        ]
        ids = torch.tensor(rows, device=self.device)
        labels = ids.clone()
        labels[:, :-ANSWER_TOKENS] = -100
        with autocast(self.vlm.device, self.bf16):
            done = self.vlm.model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=self.vlm.preprocess(self.frames),
                labels=labels,
            )
        return self._backward(done.loss)

    def _backward(self, loss: Tensor) -> float:
        self.vlm.model.zero_grad()
        loss.backward()
        return loss.item()


class Reconstruction(Asking):
    """The colours at places of a grid on one image, by either side."""

    def __init__(self, args: Args):
        super().__init__(args)
        steps = range(args.grid)
        self.grid = [(row * HEIGHT // args.grid, column * WIDTH // args.grid) for row in steps for column in steps]
        self.sample = [self.grid[i] for i in self.rng.integers(len(self.grid), size=args.sample)]

    @torch.no_grad()
    def together(self, places: list[tuple[int, int]]) -> list[list[int]]:
        """Answer places behind one reading of the image; return their tokens."""
        asked = [[self.question(row, column) for row, column in places]]
        questions = torch.tensor(asked, device=self.device)
        features = self.vlm.encode_images(self.vlm.preprocess(self.frames[:1]))
        return generate_batch(self.vlm, features, self.shared, questions, ANSWER_TOKENS)[0].tolist()

    def one_by_one(self, places: list[tuple[int, int]]) -> list[list[int]]:
        """Answer places by one `generate` each; return their tokens."""
        return [self._generate(row, column) for row, column in places]

    def _generate(self, row: int, column: int) -> list[int]:
        ids = torch.tensor([self.whole_prompt(row, column)], device=self.device)
        made = self.vlm.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=self.vlm.preprocess(self.frames[:1]),
            max_new_tokens=ANSWER_TOKENS,
            do_sample=False,
        )
        return made[0, ids.shape[1] :].tolist()

    def share_alike(self) -> float:
        """Return the share of the sample to which both sides say the same."""
        pairs = zip(self.together(self.sample), self.one_by_one(self.sample), strict=True)
        return float(np.mean([ours[: len(said)] == said for ours, said in pairs]))


def count_flops(side: Callable[[], object]) -> int:
    """Return the floating-point operations of a side's matrix products and convolutions, backward included."""
    with FlopCounterMode(display=False) as counter:
        side()
    return counter.get_total_flops()


def product_flops(device: torch.device, precision: torch.dtype) -> float:
    """Return the operations a second of a large matrix product, the best of a few, as the most that is to be had."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=precision) for _ in range(2))

    def product() -> None:
        left @ right
        wait(device)

    return 2 * size**3 / min(median_seconds({"product": product}, 1)["product"] for _ in range(8))


def wait(device: torch.device) -> None:
    """Wait until a GPU has done what it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Call each side `rounds` times, turn and turn about; return the median seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            times[name].append(time.perf_counter() - started)
    return {name: float(np.median(taken)) for name, taken in times.items()}


def training_row(args: Args) -> dict:
    """Time training; return the row."""
    step = Training(args)
    sides = {
        "mask": lambda: step.packed("mask"),
        "cache": lambda: step.packed("cache"),
        "rival": step.separate,
    }
    flops = {name: count_flops(side) for name, side in sides.items()}  # first calls set up what later ones find
    taken = median_seconds(sides, args.rounds)
    packed, half = args.images * args.questions, in_bfloat16(step.device, args.bf16)
    reached = flops["cache"] / taken["cache"]
    most = product_flops(step.device, torch.bfloat16 if half else torch.float32)
    mask, cache, rival = packed / taken["mask"], packed / taken["cache"], args.images / taken["rival"]
    return {
        "benchmark": "pvp training",
        "ours": round(max(mask, cache), 1),
        "ours_mask": round(mask, 1),
        "ours_cache": round(cache, 1),
        "rival": round(rival, 2),
        "rival_is": "one question an image, the class's own forward and loss, as many images a step",
        "ratio": round(max(mask, cache) / rival, 2),
        "unit": "questions per second, forward and backward, median over steps",
        "precision": "bf16" if half else "f32",
        "flops_a_second": reached,
        "utilisation": round(reached / most, 4),
        "utilisation_is": f"of {most:.3g} floating-point operations a second, those of one large product in this run",
        "images": args.images,
        "questions": args.questions,
        "n": args.rounds,
    }


def reconstruction_row(args: Args) -> dict:
    """Time reconstruction; return the row."""
    image = Reconstruction(args)
    alike = image.share_alike()  # first, so that what the first calls set up is there
    sides = {"ours": lambda: image.together(image.grid), "rival": lambda: image.one_by_one(image.sample)}
    taken, places = median_seconds(sides, args.rounds), len(image.grid)
    ours, rival = places / taken["ours"], args.sample / taken["rival"]
    return {
        "benchmark": "pvp reconstruction",
        "ours": round(ours, 1),
        "rival": round(rival, 2),
        "rival_is": f"one generate a place at its defaults; {args.sample} places timed, scaled to {places}",
        "ratio": round(ours / rival, 2),
        "unit": "places per second, median over turns",
        "precision": "f32",
        "grid": args.grid,
        "ours_seconds_a_grid": round(taken["ours"], 2),
        "rival_seconds_a_grid": round(places / rival, 1),
        "answered_alike": round(alike, 4),
        "n": args.rounds,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    started = time.monotonic()
    torch.set_num_threads(args.threads)
    model = checkpoint.content_hash(args.checkpoint) if args.checkpoint else f"untrained {args.preset}"
    common = {"model": model, "device": device_name(best_device()), "threads": args.threads}
    rows = [row | common for row in (training_row(args), reconstruction_row(args))]
    result = new_result("bench_pvp", None, [0]) | {"rows": rows, "seconds": round(time.monotonic() - started, 1)}
    write_result(args.out, result)
    for row in rows:
        print(f"{row['benchmark']}: ours {row['ours']}, rival {row['rival']}, ratio {row['ratio']} ({row['unit']})")
    print(f"model FLOPs utilisation of a packed step: {rows[0]['utilisation']:.1%} {rows[0]['utilisation_is']}")
    print(f"result: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
