"""Evaluate referring segmentation: cIoU, gIoU and precision at the images' own size.

    python -m pretrain.referring.evaluation --data data/refer --dataset refcoco --checkpoint runs/refer/last
    python -m pretrain.referring.evaluation --data data/random-Carnival data/random-Pong --checkpoint runs/refer/last
    python -m pretrain.referring.evaluation --data data/refer --dataset refcoco --predictions FILE
    accelerate launch --multi_gpu --num_processes 2 -m pretrain.referring.evaluation ...  # the same metrics
    torchrun --nproc-per-node 2 -m pretrain.referring.evaluation ...                      # on CPUs too

Writes `predictions.jsonl`, which `--predictions FILE` scores again without a model, `metrics.json`
(`pretrain.referring.segmentation_metrics`; cIoU with a 95 % bootstrap interval), and a few images, target beside
prediction. Answers are kept as they come: the same command resumes a killed evaluation. An expression that cannot be
answered, as one about a damaged image, is named and left out; `failed` counts them.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from tqdm import tqdm

from common.command import parse, run
from common.errors import UserError
from common.files import atomic_file
from common.output_lock import output_lock
from common.outputs import require_output_files
from common.results import new_result, write_result
from common.run_arguments import FILE as ARGUMENTS
from common.run_arguments import require_same_arguments, to_json
from pretrain.referring.answers import Answer, open_answers, read_answers, remove_answers
from pretrain.referring.coco_masks import COMPAT_MODES, MaskError, decode_mask, encode_mask
from pretrain.referring.mask_predictions import MaskPrediction, read_predictions, write_predictions
from pretrain.referring.refcoco import RefCocoDataset
from pretrain.referring.referring_config import GAMES
from pretrain.referring.samples import ReferringSample, ReferringTestSet
from pretrain.referring.scene_dataset import SceneDataset
from pretrain.referring.segmentation_metrics import ciou_interval, confusion, segmentation_metrics
from vlm import checkpoint
from vlm.device import best_device
from vlm.segmentation.mask_drawing import draw_mask
from vlm.segmentation.referring_segmenter import ReferringSegmenter, load_segmenter

METRICS, PREDICTIONS = "metrics.json", "predictions.jsonl"
MAX_NAME = 60  # letters of an expression in the name of its image
ITEM_ERRORS = (UserError, OSError, ValueError, IndexError, RuntimeError)  # of one expression, its image or its mask


@dataclass
class Args:
    """Evaluate referring segmentation."""

    data: tuple[Path, ...]
    """The folder of REFER's layout; with --dataset games, directories of recorded games and of cut-outs."""
    out: Path = Path("runs/referring-evaluation")
    """The directory for predictions, metrics and images."""
    dataset: str = GAMES
    """refcoco, refcoco+, refcocog, grefcoco, or games."""
    split: str = "test"
    """train, val, test, testA or testB; of games train, val, test, or all for held-out games."""
    checkpoint: Path | None = None
    """A model trained by `pretrain.referring`."""
    predictions: Path | None = None
    """A file of predictions to score instead of a model."""
    count: int = 600
    """Number of expressions, for games."""
    val_episodes: int = 1
    """Games of each data set in its validation split, and as many in its test split; as in training."""
    no_target_fraction: float = 0.1
    """Fraction of expressions without a target in their frame, for games."""
    seed: int = 1000
    """Seed of the expressions, for games."""
    compat: str = "plain"
    """lisa reproduces LISA's own evaluation."""
    num_images: int = 8
    """Images to write, with target and prediction drawn in."""

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.predictions is None):
            raise UserError("expected either --checkpoint or --predictions")
        if self.compat not in COMPAT_MODES:
            raise UserError(f"expected --compat {' or '.join(COMPAT_MODES)}, got {self.compat!r}")
        if self.dataset != GAMES and len(self.data) != 1:
            raise UserError(f"expected one folder of REFER's layout for {self.dataset}, got {len(self.data)}")


def load_test_set(args: Args, history: int) -> ReferringTestSet:
    """Return the expressions to evaluate on."""
    if args.dataset == GAMES:
        return SceneDataset(
            args.data, args.split, args.count, history, args.val_episodes, args.no_target_fraction, args.seed
        )
    data = RefCocoDataset(args.data[0], args.dataset, args.split, compat=args.compat)
    if data.note:
        print(data.note, file=sys.stderr)
    return data


def predict(args: Args, segmenter: ReferringSegmenter, data: ReferringTestSet, state: PartialState) -> list[Answer]:
    """Return the answer to every expression, in order; each process takes a range of those that are not kept yet."""
    kept, answers = read_answers(args.out), []
    with (
        state.split_between_processes(list(range(len(data)))) as indices,
        open_answers(args.out, state.process_index) as keep,
    ):
        for index in tqdm(indices, desc="predict", unit="expression", disable=not state.is_main_process):
            if index not in kept:
                keep(answer := answer_expression(args, segmenter, data, index))
            answers.append(kept.get(index) or answer)
    return gather_object(answers) if state.num_processes > 1 else answers


def answer_expression(args: Args, segmenter: ReferringSegmenter, data: ReferringTestSet, index: int) -> Answer:
    """Return the answer to one expression; one that cannot be answered has the reason."""
    try:
        sample = data[index]
        mask = segmenter.predict(sample.frames, sample.expressions)[0] > 0.5
        counts = confusion(mask, sample.masks[0], args.compat)
    except ITEM_ERRORS as error:
        return Answer(index, reason=(str(error).splitlines() or [type(error).__name__])[0])
    if index < args.num_images:
        _save_image(args.out, index, sample, mask)
    sent_id, ref_id = sample.sent_ids[0], sample.ref_ids[0]
    return Answer(index, MaskPrediction(sent_id=sent_id, ref_id=ref_id, mask=encode_mask(mask)), counts)


def score_predictions(
    data: ReferringTestSet, predictions: dict[int, MaskPrediction], compat: str = "plain"
) -> list[Answer]:
    """Return the answers of a file of predictions to a test set; a missing prediction counts as an empty mask."""
    answers, unused = [], set(predictions)
    for index in range(len(data)):
        try:
            sample = data[index]
        except ITEM_ERRORS as error:
            answers.append(Answer(index, reason=str(error)))
            continue
        prediction = predictions.get(sample.sent_ids[0])
        unused.discard(sample.sent_ids[0])
        rle = prediction["mask"] if prediction else None
        counts = confusion(None if rle is None else decode_mask(rle), sample.masks[0], compat)
        answers.append(Answer(index, prediction, counts))
    if len(unused) > sum(bool(answer.reason) for answer in answers):
        raise MaskError(
            f"expected predictions for {data.name}, got {len(unused)} for expressions that it does not hold, "
            f"the first {min(unused)}; score them on the split that they were made for"
        )
    return answers


def require_answers(answers: Sequence[Answer], name: str) -> int:
    """Name the expressions without an answer and return their number; `UserError` if no expression has one."""
    failed = [answer for answer in answers if answer.confusion is None]
    if failed and len(failed) == len(answers):
        raise UserError(
            f"none of the {len(failed)} expressions of {name} can be answered; the first: {failed[0].reason}"
        )
    for answer in failed:
        print(f"left out: expression {answer.index} of {name}: {answer.reason}", file=sys.stderr)
    return len(failed)


def begin(args: Args, state: PartialState) -> None:
    """Check where to write, and that it holds no other evaluation."""
    if state.is_main_process:
        files = [args.out / METRICS, *([args.out / PREDICTIONS] if args.checkpoint else [])]
        require_output_files(files, [args.predictions] if args.predictions else [], own=args.out / ARGUMENTS)
        content = checkpoint.content_hash(args.checkpoint) if args.checkpoint else None
        require_same_arguments(args.out, to_json(args) | {"checkpoint content": content}, ignore=("num_images",))
    state.wait_for_everyone()


def _save_image(directory: Path, index: int, sample: ReferringSample, mask: np.ndarray) -> None:
    """Write an image with the target drawn in, beside the same with the prediction."""
    words = sample.expressions[0][:MAX_NAME]
    name = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in words)
    sides = [draw_mask(sample.frames[-1], drawn) for drawn in (sample.masks[0] > 0, mask)]
    with atomic_file(directory / f"{index:04d}-{name}.png") as file:
        Image.fromarray(np.concatenate(sides, axis=1)).save(file)


def evaluate(args: Args) -> dict[str, Any] | None:
    """Predict, score and write the results; return the row of metrics in the main process, None in others."""
    start = time.monotonic()
    state = PartialState(cpu=best_device().type == "cpu")  # without cpu=True, CPU processes do not find each other
    row: dict[str, Any] = {name: getattr(args, name) for name in ("dataset", "split", "compat")}
    row["num_processes"] = state.num_processes
    begin(args, state)
    if args.checkpoint:
        segmenter = load_segmenter(args.checkpoint)
        data = load_test_set(args, segmenter.vlm.history)
        answers = predict(args, segmenter, data, state)
        row |= {"method": segmenter.method, "checkpoint": checkpoint.content_hash(args.checkpoint)}
    else:
        assert args.predictions
        data = load_test_set(args, 1)
        answers = score_predictions(data, read_predictions(args.predictions), args.compat)
        row["method"] = str(args.predictions)
    if not state.is_main_process:
        return None
    row["failed"] = require_answers(answers, data.name)
    if args.checkpoint:
        write_predictions(args.out / PREDICTIONS, (answer.prediction for answer in answers if answer.prediction))
    confusions = [answer.confusion for answer in answers if answer.confusion]
    row |= segmentation_metrics(confusions, args.compat)
    if args.compat == "plain" and len(confusions) > 1:
        row |= ciou_interval(confusions)
    result = new_result("referring-evaluation", None, [args.seed])
    seconds = round(time.monotonic() - start, 1)
    write_result(args.out / METRICS, {**result, "seconds": seconds, "rows": [row]})
    remove_answers(args.out)
    return row


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the module's docstring."""
    args = parse(Args, argv, __doc__)
    with output_lock(args.out):
        row = evaluate(args)
    if row is not None:
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, indent=1))
        print(f"predictions, metrics and images are in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
