"""What a mask costs: by the mask head beside the shortest text answer, by points in text beside the mask head.

    python -m experiments.benchmarks.segmentation_speed --out experiments/results/bench_refer.json

One expression about one frame of a game, from pixels to the answer, turn and turn about, float32 without gradients;
each turn asks for the next of a few things. The text answer is one word and its end, the least that a model can say: is
the one place asked about part of what is meant? The mask head reads image and expression once and gives a mask of every
pixel; points are 0 or 1 at the places of a grid, every second one first and as many again at most where it is least
clear. So their time depends on what the model knows: one that was not taught points is in doubt everywhere and asked
half of the places, the most that there may be; one that always answers rightly (played here by the truth about an
object of the frame, behind the same work) is asked a quarter of them and some round the object.
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

from common.command import run
from common.errors import UserError
from common.results import new_result, write_result
from envs.objects import find_objects
from pretrain.referring.point_objective import grid_mask
from pretrain.referring.show import first_frame
from vlm import checkpoint
from vlm.decoding.batched_generate import generate_batch
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM
from vlm.pretrained import RELEASED_SEGMENTER
from vlm.segmentation.point_prediction import STRIDE, PointPromptFormat, PointSampler
from vlm.segmentation.referring_segmenter import POINT_GRID, ReferringSegmenter, load_segmenter

GAME = "MsPacman"
WORDS = ("the red ghost", "the pac-man", "the energizer at the top left", "the ghost nearest to the pac-man")


@dataclass
class Args:
    """Time masks by the mask head and by points."""

    out: Path
    """The result JSON."""
    checkpoint: Path = RELEASED_SEGMENTER
    """The model, which has a mask head."""
    points: Path | None = None
    """One that was taught points (`pretrain.referring.train --mask points`), where that is another."""
    grid: int = 64
    """Places of points along each side."""
    rounds: int = 16
    """Turns that are timed."""
    threads: int = 1
    """Threads of torch; two where two cores are free."""

    def __post_init__(self) -> None:
        for name in ("grid", "rounds", "threads"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}")


class OraclePoints(PointSampler):
    """Places asked about, and answered by what is true, bool[grid, grid]; the model does its work all the same."""

    truth: torch.Tensor

    def ask(self, places: torch.Tensor) -> torch.Tensor:
        """Return log-odds float32[N] that are sure and right."""
        super().ask(places)
        return torch.where(self.truth[places[:, 0], places[:, 1]], 5.0, -5.0)


class Sides:
    """Models asked about one frame in four ways; the head has its own, whose encoder hands out its maps."""

    def __init__(self, args: Args):
        self.text = checkpoint.load(args.checkpoint)
        self.points = (
            load_segmenter(args.points, True) if args.points else ReferringSegmenter(self.text, None, args.grid)
        )
        self.points.grid = args.grid
        self.head = load_segmenter(args.checkpoint)
        self.stack = first_frame(GAME, 0)[None]
        things = sorted(find_objects(self.stack[0], GAME), key=lambda thing: -thing.size)
        self.truths = [torch.from_numpy(grid_mask(thing.mask, args.grid)) for thing in things[: len(WORDS)]]

    def say(self, words: str) -> list[int]:
        """Return the tokens of the shortest text answer: a word and its end."""
        vlm = self.text
        language, features = PointPromptFormat.of(vlm), features_of(vlm, self.stack)
        question = torch.tensor([[[*language.trunk(words), *language.leaf(12, 7)]]])
        return generate_batch(vlm, features, language.shared, question, 2)[0, 0].tolist()

    def by_head(self, words: str) -> np.ndarray:
        """Return the mask of the mask head."""
        return self.head.find(self.stack, [words])

    def by_points(self, words: str) -> np.ndarray:
        """Return the mask of points."""
        return self.points.find(self.stack, [words])

    def by_points_rightly(self, words: str) -> torch.Tensor:
        """Return the log-odds of points of a model that answers rightly, about one of the frame's largest objects."""
        vlm = self.points.vlm
        asked = OraclePoints(vlm, features_of(vlm, self.stack), PointPromptFormat.of(vlm), words)
        asked.truth = self.truths[WORDS.index(words)]
        return asked.grid_logits(self.points.grid, STRIDE)


@torch.no_grad()
def features_of(vlm: PixelVLM, frame: np.ndarray) -> ImageFeatures:
    """Return the features of a frame uint8[1, H, W, 3] that stands still."""
    return vlm.encode_images(vlm.preprocess(np.repeat(frame, vlm.history, axis=0)[None]))


def timed(work: Callable[[str], Any], words: str) -> float:
    """Return the seconds that work takes."""
    began = time.perf_counter()
    work(words)
    return time.perf_counter() - began


def measure(args: Args) -> list[dict[str, Any]]:
    """Return the rows: the head beside the text answer, points and rightly answered points beside the head."""
    torch.set_num_threads(args.threads)
    sides = Sides(args)
    ways = {"text": sides.say, "head": sides.by_head, "points": sides.by_points, "rightly": sides.by_points_rightly}
    took: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way(WORDS[0])  # the first time of anything is slower
    for number in range(args.rounds):
        for name, way in ways.items():
            took[name].append(timed(way, WORDS[number % len(WORDS)]))
    text, head, points, rightly = (float(np.median(took[name])) for name in ways)
    asked = args.points or args.checkpoint
    about = {"precision": "float32", "threads": args.threads, "unit": "milliseconds, median"}
    return [
        row("mask head", head, "the shortest text answer", text, args.rounds)
        | {"model": checkpoint.content_hash(args.checkpoint)}
        | about,
        row(f"points of a {args.grid} x {args.grid} grid", points, "mask head", head, args.rounds)
        | {"model": checkpoint.content_hash(asked), "taught points": POINT_GRID in checkpoint.read_training(asked)}
        | about,
        row(f"points of a {args.grid} x {args.grid} grid, answered rightly", rightly, "mask head", head, args.rounds)
        | {"model": checkpoint.content_hash(asked)}
        | about,
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
