"""Score a model's masks for referring expressions: cIoU, gIoU and precision at the pictures' own size.

    python -m pretrain.referring.evaluation --data data/refer --dataset refcoco --split testA --checkpoint runs/refer/last
    python -m pretrain.referring.evaluation --data data/random-Carnival data/random-Pong --checkpoint runs/refer/last
    accelerate launch --multi_gpu --num_processes 2 -m pretrain.referring.evaluation ...  # the same numbers, in half the time
    torchrun --nproc-per-node 2 -m pretrain.referring.evaluation ...                      # the same; on CPUs too

Answers go to `answers.jsonl` as packed run lengths (`pretrain.referring.mask_predictions`), which `--answers FILE` scores again
without a model; the figures (`pretrain.referring.segmentation_metrics`) to `refer.json`; a few pictures, truth beside answer, with them.
An expression without an answer counts as an empty mask, and one that means nothing in its picture is to be answered by
an empty mask. No answer is shown to the model: the mask head answers the expression itself, and points are the
probability of a 1 against a 0 as the next word.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tyro
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from tqdm import tqdm

from common.command import run
from common.errors import UserError
from common.results import new_result, write_result
from pretrain.referring.coco_masks import COMPATS
from pretrain.referring.mask_predictions import MaskPrediction, read_predictions, write_predictions
from pretrain.referring.recorded_games import GameReferringDataset
from pretrain.referring.refcoco import RefCocoDataset
from pretrain.referring.segmentation_metrics import Confusion, confusion, segmentation_metrics
from pretrain.referring.train import GAMES
from vlm import checkpoint
from vlm.device import best_device
from vlm.segmentation.mask_drawing import draw_mask
from vlm.segmentation.referring_segmenter import ReferringSegmenter, load_segmenter


@dataclass
class Args:
    """Score masks for referring expressions."""

    data: tuple[Path, ...]
    """The folder of REFER's layout; with --dataset games, directories of recorded games."""
    out: Path = Path("runs/refer-eval")
    """Where answers, figures and pictures go."""
    dataset: str = GAMES
    """refcoco, refcoco+, refcocog, or games."""
    split: str = "test"
    """train, val, test, testA or testB; of games train, val, test, or all for games that no training saw."""
    checkpoint: Path | None = None
    """A model with a mask head."""
    answers: Path | None = None
    """A file of answers to score in place of a model."""
    count: int = 600
    """Expressions about games, drawn from the seed."""
    hold: int = 1
    """Games of each dataset held out for testing, and as many for choosing, as in training."""
    absent: float = 0.1
    """Share of expressions about games that mean nothing in their frame."""
    seed: int = 1000
    """Seed of which."""
    compat: str = "plain"
    """lisa reproduces the convention of LISA's own evaluation."""
    pictures: int = 8
    """Overlay pictures to write."""

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.answers is None):
            raise UserError("expected either --checkpoint or --answers")
        if self.compat not in COMPATS:
            raise UserError(f"expected --compat {' or '.join(COMPATS)}, got {self.compat!r}")
        if self.dataset != GAMES and len(self.data) != 1:
            raise UserError(f"expected one folder of REFER's layout for {self.dataset}, got {len(self.data)}")


@dataclass(frozen=True)
class Item:
    """An expression to answer. sent_id, ref_id: its numbers; image: uint8[history or 1, H, W, 3]; truth: its mask."""

    sent_id: int
    ref_id: int
    words: str
    image: np.ndarray
    truth: np.ndarray


class Items(Protocol):
    """A numbered set of items."""

    def __len__(self) -> int: ...

    def item(self, index: int) -> Item:
        """Return one."""
        ...


class ReferItems:
    """The expressions of a split of REFER's layout."""

    def __init__(self, args: Args):
        self.data = RefCocoDataset(args.data[0], args.dataset, args.split, compat=args.compat)
        if self.data.note:
            print(self.data.note, file=sys.stderr)

    def __len__(self) -> int:
        return len(self.data)

    def item(self, index: int) -> Item:
        """Return one."""
        expression, image, mask = (found := self.data[index]).expression, found.image, found.mask
        return Item(expression.sent_id, expression.ref_id, expression.text, image[None], mask)


class GameItems:
    """Expressions about frames of recorded games."""

    def __init__(self, args: Args, history: int):
        self.data = GameReferringDataset(args.data, args.split, args.count, history, args.hold, args.absent, args.seed)

    def __len__(self) -> int:
        return len(self.data)

    def item(self, index: int) -> Item:
        """Return one."""
        found = self.data[index]
        return Item(index, index, found.words, found.stack, found.mask)


def open_items(args: Args, history: int) -> Items:
    """Return what is to be answered."""
    return GameItems(args, history) if args.dataset == GAMES else ReferItems(args)


def answer(
    args: Args, segmenter: ReferringSegmenter, items: Items, state: PartialState
) -> list[tuple[MaskPrediction, Confusion]]:
    """Return every item's answer and how it overlaps the truth, in order; processes share the items by ranges."""
    with state.split_between_processes(list(range(len(items)))) as own:
        found = list(_answer_some(args, segmenter, items, own, state.is_main_process))
    return gather_object(found) if state.num_processes > 1 else found


def _answer_some(
    args: Args, segmenter: ReferringSegmenter, items: Items, own: list[int], told: bool
) -> Iterator[tuple[MaskPrediction, Confusion]]:
    for index in tqdm(own, desc="find", unit="expression", disable=not told):
        item = items.item(index)
        mask = segmenter.find(item.image, [item.words])[0] > 0.5
        if index < args.pictures:
            args.out.mkdir(parents=True, exist_ok=True)
            name = "".join(letter if letter.isalnum() else "-" for letter in item.words)
            picture = np.concatenate([draw_mask(item.image[-1], m) for m in (item.truth > 0, mask)], axis=1)
            Image.fromarray(picture).save(args.out / f"{index:04d}-{name}.png")
        yield MaskPrediction.of(item.sent_id, item.ref_id, mask), confusion(mask, item.truth, args.compat)


def score_file(args: Args, items: Items) -> list[Confusion]:
    """Return how the answers of a file overlap the truth, in the order of the items."""
    assert args.answers
    given, found = read_predictions(args.answers), []
    for index in range(len(items)):
        item = items.item(index)
        mask = given[item.sent_id].mask if item.sent_id in given else None
        found.append(confusion(mask, item.truth, args.compat))
    return found


def evaluate(args: Args) -> dict[str, Any] | None:
    """Answer and score; return the row of figures, in the main process alone."""
    state = PartialState(cpu=best_device().type == "cpu")  # or several processes on CPUs know nothing of each other
    row: dict[str, Any] = {
        "dataset": args.dataset,
        "split": args.split,
        "convention": args.compat,
        "processes": state.num_processes,
    }
    if args.checkpoint:
        segmenter = load_segmenter(args.checkpoint)
        row["answered"] = segmenter.way
        found = answer(args, segmenter, open_items(args, segmenter.vlm.history), state)
        overlaps = [one for _, one in found]
        row["checkpoint"] = checkpoint.content_hash(args.checkpoint)
        if state.is_main_process:
            write_predictions(args.out / "answers.jsonl", (one for one, _ in found))
    else:
        overlaps = score_file(args, open_items(args, 1))
        row["answered"] = str(args.answers)
    if not state.is_main_process:
        return None
    row |= segmentation_metrics(overlaps, args.compat)
    result = new_result("refer-eval", None, [args.seed])
    result["rows"] = [row]
    write_result(args.out / "refer.json", result)
    return row


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    row = evaluate(args := tyro.cli(Args, args=argv, description=__doc__))
    if row is not None:
        print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, indent=1))
        print(f"answers, figures and pictures are in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
