"""What a mask costs: by the mask head beside the shortest text answer, by points in text beside the mask head.

    python -m experiments.bench_refer --out experiments/results/bench_refer.json

One expression about one frame, from pixels to the answer, turn and turn about, float32 without gradients. The text
answer is one word and its end, the least that a model can say: is the one place asked about part of what is meant? The
mask head reads image and expression once and gives a mask of every pixel; points are 0 or 1 at every place of a grid.
On frames of noise, since the time does not depend on what they show.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from agents.command import run
from agents.results import new_result, write_result
from envs.errors import EnvsError
from vlm import checkpoint
from vlm.answers import answer_questions
from vlm.mask_finder import MaskFinder
from vlm.mask_head import MaskHead
from vlm.model import PixelVLM
from vlm.point_masks import PointLanguage
from vlm.presets import build

HEIGHT, WIDTH = 210, 160
WORDS = "the second red object from the left"


@dataclass
class Args:
    """Time masks by the mask head and by points."""

    out: Path
    """The result JSON."""
    checkpoint: Path | None = None
    """The model, with or without a mask head; by default untrained weights of the preset."""
    preset: str = "nano"
    """The size of untrained weights."""
    grid: int = 64
    """Places of points along each side."""
    rounds: int = 15
    """Turns of text answer and mask head that are timed; points take every fifth."""
    threads: int = 1
    """Threads of torch; two where two cores are free."""

    def __post_init__(self) -> None:
        for name in ("grid", "rounds", "threads"):
            if getattr(self, name) < 1:
                raise EnvsError(f"--{name} must be at least 1, got {getattr(self, name)}")


def load(args: Args) -> PixelVLM:
    """Return the model that is timed."""
    return checkpoint.load(args.checkpoint) if args.checkpoint else build(args.preset)


class Sides:
    """One model, asked about one frame in three ways; the head has a copy, whose encoder hands out its maps."""

    def __init__(self, args: Args):
        self.vlm, own = load(args), load(args)
        shape = (self.vlm.history, HEIGHT, WIDTH, 3)
        self.stack = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        self.points = MaskFinder(self.vlm, None, args.grid)
        self.head = MaskFinder(own, MaskHead.of(own).eval())

    def say(self) -> list[int]:
        """Return the tokens of the shortest text answer: a word and its end."""
        language, pixels = PointLanguage.of(self.vlm), self.vlm.pixels(self.stack[None])
        question = torch.tensor([[[*language.trunk(WORDS), *language.leaf(12, 7)]]])
        return answer_questions(self.vlm, pixels, language.shared, question, 2)[0, 0].tolist()

    def by_head(self) -> np.ndarray:
        """Return the mask of the mask head."""
        return self.head.find(self.stack, [WORDS])

    def by_points(self) -> np.ndarray:
        """Return the mask of points."""
        return self.points.find(self.stack, [WORDS])


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds that work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(args: Args) -> list[dict[str, Any]]:
    """Return the rows: the head beside the text answer, points beside the head."""
    torch.set_num_threads(args.threads)
    sides = Sides(args)
    took: dict[str, list[float]] = {"text": [], "head": [], "points": []}
    for side in (sides.say, sides.by_head, sides.by_points):
        side()  # the first time of anything is slower
    for number in range(args.rounds):
        took["text"].append(timed(sides.say))
        took["head"].append(timed(sides.by_head))
        if number % 5 == 0:
            took["points"].append(timed(sides.by_points))
    text, head, points = (float(np.median(took[name])) for name in ("text", "head", "points"))
    model = checkpoint.content_hash(args.checkpoint) if args.checkpoint else f"untrained {args.preset}"
    about = {"model": model, "precision": "float32", "threads": args.threads, "unit": "milliseconds, median"}
    return [
        row("mask head", head, "the shortest text answer", text, args.rounds) | about,
        row(f"points of a {args.grid} x {args.grid} grid", points, "mask head", head, len(took["points"])) | about,
    ]


def row(name: str, ours: float, rival_is: str, rival: float, turns: int) -> dict[str, Any]:
    """Return a row of two times in seconds, told in milliseconds; the ratio is how many times as long ours takes."""
    return {
        "benchmark": name,
        "ours": round(1e3 * ours, 2),
        "rival_is": rival_is,
        "rival": round(1e3 * rival, 2),
        "ratio": round(ours / rival, 3),
        "n": turns,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    began = time.monotonic()
    result = new_result("bench_refer", None, [0])
    result["rows"] = measure(args)
    result["seconds"] = round(time.monotonic() - began, 1)
    write_result(args.out, result)
    for found in result["rows"]:
        told = (
            f"{found['benchmark']}: {found['ours']} ms, {found['rival_is']} {found['rival']} ms, {found['ratio']} times"
        )
        print(told)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
