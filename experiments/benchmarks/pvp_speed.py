"""Speed of training and predicting pixel values: many questions packed after one image, beside one image a question.

    python -m experiments.benchmarks.pvp_speed --out experiments/results/pvp_speed.json
    python -m experiments.benchmarks.pvp_speed --preset base-clip --questions 256 --out gpu.json      to load a GPU

Training: questions per second, forward and backward, by either method of `vlm.decoding.packing`; baseline: batches of
one question per image, as in the paper, by the model class's own forward and loss; both in the precision of
`pretrain.pvp`. Reconstruction: pixels per second of a whole grid after one encoding of the image; baseline: one
default `generate` call per pixel, timed on a sample and scaled; both in float32. Frames are noise.
"""

import sys
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from common.command import require_at_least, run
from common.errors import UserError
from experiments.benchmarks.harness import (
    BenchmarkArgs,
    Functions,
    Row,
    benchmark_main,
    comparison,
    interleaved,
    median_seconds,
)
from vlm.decoding.batched_generate import generate_batch
from vlm.decoding.candidate_scoring import prompt_ids
from vlm.decoding.packing import forward_packed
from vlm.device import best_device, device_name
from vlm.precision import autocast, in_bfloat16
from vlm.prompts import IMAGE, PIXEL_PREFIX, pixel_answer, pixel_prompt

ANSWER_TOKENS = 6  # three numbers, two commas and the closing bracket
HEIGHT, WIDTH = 210, 160
Cells = list[tuple[int, int]]


@dataclass(kw_only=True)
class Args(BenchmarkArgs):
    """Time pixel value prediction, packed and not."""

    preset: str = "nano-clip"
    """The size of untrained weights. The more tokens an image has, the more packing shares."""
    images: int = 8
    """Images per training step, on both sides."""
    questions: int = 96
    """Questions per image where they are packed; the baseline has one."""
    bf16: bool | None = None
    """Train in bfloat16 where that is safe, on both sides; None: where the device has it natively."""
    grid: int = 64
    """Rows and columns of the reconstructed grid."""
    sample: int = 20
    """Pixels of the baseline's sample, in every round."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, "images", "questions", "grid", "sample")
        if self.grid > min(HEIGHT, WIDTH):
            raise UserError(f"--grid must be at most {min(HEIGHT, WIDTH)}, got {self.grid}: finer than the image")


class PixelQuestions:
    """A model, frames of noise, and questions about pixels."""

    def __init__(self, args: Args):
        self.args, self.rng = args, np.random.default_rng(0)
        self.vlm, self.device = args.load_model(), best_device()
        self.vlm.model.to(self.device)
        frames = self.rng.integers(0, 256, (args.images, self.vlm.history, HEIGHT, WIDTH, 3), dtype=np.uint8)
        self.frames = torch.from_numpy(frames).to(self.device)
        self.shared = torch.tensor(self.encode(PIXEL_PREFIX), device=self.device)
        with torch.no_grad():
            self.image_ids = self.vlm.image_ids(self.vlm.preprocess(self.frames[:1]))

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        return self.vlm.tokenizer(text, add_special_tokens=False)["input_ids"]

    def suffix(self, row: int, column: int) -> list[int]:
        """Return the tokens between the shared prefix and the answer."""
        return self.encode(pixel_prompt(row, column).removeprefix(f"{IMAGE} {PIXEL_PREFIX}"))

    def whole_prompt(self, row: int, column: int) -> list[int]:
        """Return the tokens before the answer."""
        return prompt_ids(self.vlm, pixel_prompt(row, column), self.image_ids)

    def inputs(self, rows: list[list[int]], frames: Tensor) -> dict[str, Tensor]:
        """Return the arguments of the model class's own forward."""
        ids = torch.tensor(rows, device=self.device)
        pixels = self.vlm.preprocess(frames)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


class Training(PixelQuestions):
    """One training step, forward and backward."""

    def __init__(self, args: Args):
        super().__init__(args)
        self.vlm.set_attn_implementation("sdpa")
        self.vlm.model.to(memory_format=torch.channels_last)
        cells = self.rng.integers([HEIGHT, WIDTH], size=(args.images, args.questions, 2)).tolist()
        self.questions = [[(r, c, self.frames[i, -1, r, c].tolist()) for r, c in row] for i, row in enumerate(cells)]

    def packed(self, method: str) -> float:
        """Train on all questions about each image; return the loss."""
        rows = [[self.suffix(r, c) + self.encode(pixel_answer(rgb)) for r, c, rgb in row] for row in self.questions]
        tokens = torch.tensor(rows, device=self.device)  # [B, K, L]
        with autocast(self.device, self.args.bf16):
            features = self.vlm.encode_images(self.vlm.preprocess(self.frames))
            states = forward_packed(self.vlm, features, self.shared, tokens[:, :, :-1], method)
            logits = self.vlm.model.get_output_embeddings()(states[:, :, -ANSWER_TOKENS:]).float()
        return self._backward(functional.cross_entropy(logits.flatten(0, 2), tokens[:, :, -ANSWER_TOKENS:].flatten()))

    def separate(self) -> float:
        """Train on the first question about each image; return the loss."""
        rows = [self.whole_prompt(r, c) + self.encode(pixel_answer(rgb)) for (r, c, rgb), *_ in self.questions]
        labels = torch.tensor(rows, device=self.device)
        labels[:, :-ANSWER_TOKENS] = -100
        with autocast(self.device, self.args.bf16):
            loss = self.vlm.model(**self.inputs(rows, self.frames), labels=labels).loss
        return self._backward(loss)

    def _backward(self, loss: Tensor) -> float:
        self.vlm.model.zero_grad()
        loss.backward()
        return loss.item()


class Reconstruction(PixelQuestions):
    """The colours at the cells of a grid on one image."""

    def __init__(self, args: Args):
        super().__init__(args)
        steps = range(args.grid)
        self.grid = [(row * HEIGHT // args.grid, column * WIDTH // args.grid) for row in steps for column in steps]
        self.sample = [self.grid[i] for i in self.rng.integers(len(self.grid), size=args.sample)]

    @torch.no_grad()
    def batched(self, cells: Cells) -> list[list[int]]:
        """Return the answers' tokens, after one encoding of the image."""
        questions = torch.tensor([[self.suffix(*cell) for cell in cells]], device=self.device)
        features = self.vlm.encode_images(self.vlm.preprocess(self.frames[:1]))
        return generate_batch(self.vlm, features, self.shared, questions, ANSWER_TOKENS)[0].tolist()

    def one_by_one(self, cells: Cells) -> list[list[int]]:
        """Return the answers' tokens, by one `generate` call each."""
        answers = []
        for cell in cells:
            prompt = self.whole_prompt(*cell)
            inputs = self.inputs([prompt], self.frames[:1])
            output = self.vlm.model.generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)
            answers.append(output[0, len(prompt) :].tolist())
        return answers

    def same_answers(self) -> float:
        """Return the fraction of the sample with the same answer by both."""
        pairs = zip(self.batched(self.sample), self.one_by_one(self.sample), strict=True)
        return float(np.mean([batched[: len(alone)] == alone for batched, alone in pairs]))


def peak_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of a large matrix product, the best of a few."""
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def product(_: int) -> None:
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return 2 * size**3 / min(interleaved({"product": product}, 8)["product"])


def training_row(args: Args) -> Row:
    """Return the row of training."""
    step = Training(args)
    functions: Functions = {
        "mask": lambda _: step.packed("mask"),
        "cache": lambda _: step.packed("cache"),
        "baseline": lambda _: step.separate(),
    }
    for name in ("mask", "baseline"):
        functions[name](0)  # warm up
    with FlopCounterMode(display=False) as counter:  # matrix products and convolutions, backward included
        step.packed("cache")
    seconds = median_seconds(functions, args.rounds)
    bf16, packed = in_bfloat16(step.device, args.bf16), args.images * args.questions
    reached = counter.get_total_flops() / seconds["cache"]
    peak = peak_flops_per_second(step.device, torch.bfloat16 if bf16 else torch.float32)
    mask, cache = packed / seconds["mask"], packed / seconds["cache"]
    return comparison(
        "pvp training",
        max(mask, cache),
        args.images / seconds["baseline"],
        "one question per image, the model class's own forward and loss, equal images per step",
        "questions per second, forward and backward, median over rounds",
        candidate_mask=round(mask, 1),
        candidate_cache=round(cache, 1),
        precision="bf16" if bf16 else "f32",
        flops_per_second=reached,
        utilization=round(reached / peak, 4),
        utilization_of=f"{peak:.3g} floating-point operations per second, reached by one large matrix product in the "
        "same run",
        images=args.images,
        questions=args.questions,
        n=args.rounds,
    )


def reconstruction_row(args: Args) -> Row:
    """Return the row of reconstruction."""
    image = Reconstruction(args)
    same_answer, pixels = image.same_answers(), len(image.grid)  # warms up as well
    seconds = median_seconds(
        {"candidate": lambda _: image.batched(image.grid), "baseline": lambda _: image.one_by_one(image.sample)},
        args.rounds,
    )
    baseline = args.sample / seconds["baseline"]
    return comparison(
        "pvp reconstruction",
        pixels / seconds["candidate"],
        baseline,
        f"one default `generate` call per pixel; {args.sample} pixels timed, scaled to {pixels}",
        "pixels per second, median over rounds",
        precision="f32",
        grid=args.grid,
        candidate_seconds_per_grid=round(seconds["candidate"], 2),
        baseline_seconds_per_grid=round(pixels / baseline, 1),
        same_answer=round(same_answer, 4),
        n=args.rounds,
    )


def measure(args: Args) -> list[Row]:
    """Return the rows of training and of reconstruction."""
    details = {"model": args.model_name(), "device": device_name(best_device())}
    return [row | details for row in (training_row(args), reconstruction_row(args))]


main = benchmark_main(Args, measure, [0], __doc__)

if __name__ == "__main__":
    sys.exit(run(main))
