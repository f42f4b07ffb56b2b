"""Time of a mask: the mask head beside the shortest text answer, points as text beside the mask head.

    python -m experiments.benchmarks.segmentation_speed --out experiments/results/segmentation_speed.json

One expression about one frame, from pixels to the answer, float32 without gradients; each round takes the next of a
few expressions. The text answer is one token and its end. The mask head reads image and expression once and predicts
all pixels. Points are 0 or 1 at every second row and column of a grid, then at as many uncertain points at most, so
their time depends on the model: one that was not trained on points is uncertain everywhere and samples half of the
grid, the most; an oracle (the truth about an object, after the same computation) samples a quarter and some points
around the object.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from common.command import require_at_least, run
from envs.objects import find_objects
from experiments.benchmarks.harness import BenchmarkArgs, Row, benchmark_main, comparison, median_seconds
from pretrain.referring.point_objective import grid_mask
from pretrain.referring.show import first_frame
from vlm import checkpoint
from vlm.decoding.batched_generate import generate_batch
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM
from vlm.released_checkpoints import RELEASED_POLICY
from vlm.segmentation.point_prediction import STRIDE, PointPromptFormat, PointSampler
from vlm.segmentation.referring_segmenter import POINT_GRID, ReferringSegmenter, load_segmenter

GAME = "MsPacman"
EXPRESSIONS = ("the red ghost", "the pac-man", "the energizer at the top left", "the ghost nearest to the pac-man")


@dataclass(kw_only=True)
class Args(BenchmarkArgs):
    """Time masks by the mask head and by points. The default model is the released segmenter."""

    checkpoint: Path = RELEASED_POLICY
    """A model with a mask head."""
    points: Path | None = None
    """A model trained on points (`pretrain.referring.train --mask points`), if it is another."""
    grid: int = 64
    """Points along each side."""
    rounds: int = 16
    """Timed rounds, an expression each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, "grid")


class OraclePoints(PointSampler):
    """Runs the model at each point and returns the truth, bool[grid, grid], as confident logits."""

    truth: torch.Tensor

    def point_logits(self, points: torch.Tensor) -> torch.Tensor:
        """Return logits float32[N]."""
        super().point_logits(points)
        return torch.where(self.truth[points[:, 0], points[:, 1]], 5.0, -5.0)


class Predictors:
    """Four answers to an expression about one frame."""

    def __init__(self, args: Args):
        self.text, self.head = checkpoint.load(args.checkpoint), load_segmenter(args.checkpoint)
        points = load_segmenter(args.points, True) if args.points else ReferringSegmenter(self.text, None)
        self.points = replace(points, grid=args.grid)
        self.frames = first_frame(GAME, 0)[None]
        objects = sorted(find_objects(self.frames[0], GAME), key=lambda one: -one.size)
        self.truths = [torch.from_numpy(grid_mask(one.mask, args.grid)) for one in objects[: len(EXPRESSIONS)]]

    def text_answer(self, expression: str) -> list[int]:
        """Return the tokens of the shortest text answer: a word and its end."""
        prompts, features = PointPromptFormat.of(self.text), features_of(self.text, self.frames)
        question = torch.tensor([[[*prompts.expression_tokens(expression), *prompts.point_tokens(12, 7)]]])
        return generate_batch(self.text, features, prompts.shared, question, 2)[0, 0].tolist()

    def mask(self, segmenter: ReferringSegmenter, expression: str) -> np.ndarray:
        """Return the mask of the mask head or of points."""
        return segmenter.predict(self.frames, [expression])

    def oracle_logits(self, expression: str) -> torch.Tensor:
        """Return the logits of oracle points, for one of the largest objects of the frame."""
        vlm, truth = self.points.vlm, self.truths[EXPRESSIONS.index(expression)]
        sampler = OraclePoints(vlm, features_of(vlm, self.frames), PointPromptFormat.of(vlm), expression)
        sampler.truth = truth
        return sampler.grid_logits(len(truth), STRIDE)


@torch.no_grad()
def features_of(vlm: PixelVLM, frame: np.ndarray) -> ImageFeatures:
    """Return the features of a frame uint8[1, H, W, 3], repeated to the model's history."""
    return vlm.encode_images(vlm.preprocess(np.repeat(frame, vlm.history, axis=0)[None]))


def measure(args: Args) -> list[Row]:
    """Return the rows: the head beside the text answer, points and oracle points beside the head."""
    predictors = Predictors(args)

    def round_robin(predict: Callable[[str], object]) -> Callable[[int], object]:
        predict(EXPRESSIONS[0])  # warm up
        return lambda number: predict(EXPRESSIONS[number % len(EXPRESSIONS)])

    functions = {
        "text": round_robin(predictors.text_answer),
        "head": round_robin(partial(predictors.mask, predictors.head)),
        "points": round_robin(partial(predictors.mask, predictors.points)),
        "oracle": round_robin(predictors.oracle_logits),
    }
    times = median_seconds(functions, args.rounds)
    point_model, points = args.points or args.checkpoint, f"points of a {args.grid} x {args.grid} grid"

    def row(name: str, candidate: str, baseline: str, baseline_name: str, model: Path, **details: bool) -> Row:
        shared: Row = {"model": checkpoint.content_hash(model), "precision": "float32", "n": args.rounds}
        own, other = 1e3 * times[candidate], 1e3 * times[baseline]
        return comparison(name, own, other, baseline_name, "milliseconds, median", **details, **shared)

    trained = POINT_GRID in checkpoint.read_training(point_model)
    return [
        row("mask head", "head", "text", "the shortest text answer", args.checkpoint),
        row(points, "points", "head", "mask head", point_model, trained_on_points=trained),
        row(f"{points}, oracle answers", "oracle", "head", "mask head", point_model),
    ]


main = benchmark_main(Args, measure, [0], __doc__)

if __name__ == "__main__":
    sys.exit(run(main))
