"""Referring expressions of RefCOCO, RefCOCO+ and RefCOCOg: an image, words, and the mask of what they mean.

    python -m pretrain.referring.refcoco --data data/refer
    python -m pretrain.referring.refcoco --data data/refer --images coco/train2014 --out data/refer/check.json

The command tells, for every set and partition, what of it lies in a folder, which file is missing and where it is
expected, and how many refs, expressions and images each split has beside the published numbers. Its exit code is 2
where nothing can be used. The layout is that of `pretrain.referring.refer_files`. The images are COCO's `train2014`.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from common.command import run
from common.errors import UserError
from common.files import write_text_atomically
from pretrain.data.images import StillImageSource, read_image
from pretrain.referring.coco_masks import check_compat, decode_segmentation
from pretrain.referring.dataset_report import NAMED, describe, inspect, usable
from pretrain.referring.refer_files import (
    Ref,
    ReferError,
    find_dataset,
    find_partition,
    find_split,
    image_folder,
    in_split,
    list_pictures,
    read_refs,
)


@dataclass(frozen=True)
class Expression:
    """Words that mean one object of an image.

    image: the picture's file; ref_id: the object's number; sent_id: the expression's own; split: as the file spells it.
    """

    text: str
    image: Path
    ref_id: int
    sent_id: int
    split: str


@dataclass(frozen=True)
class RefCocoExample:
    """An expression with its image uint8[H, W, 3] and the mask of what it means, bool[H, W].

    Under `compat="lisa"` the mask is uint8[H, W] and 2 or more where polygons of the object overlap.
    """

    expression: Expression
    image: np.ndarray
    mask: np.ndarray


class RefCocoDataset(StillImageSource):
    """The expressions of a split in the order of its file; images and masks are made when they are asked for.

    Expressions whose picture is missing are left out; `missing` names the pictures and `left_out` counts the
    expressions. `index` counts expressions everywhere.

    Args:
        root: the folder of the layout, see `pretrain.referring.refer_files`.
        dataset: refcoco, refcoco+ or refcocog, in any spelling.
        split: train, val, testA, testB or test, matched as REFER does.
        partition: unc, umd or google; None for the usual one.
        images: the folder of COCO's train2014, where it is not in `root`.
        compat: "plain", or "lisa" for masks that add overlapping polygons up.

    Raises:
        ReferError: files are missing or damaged, the split is empty, or all of its pictures are missing.
    """

    def __init__(
        self,
        root: Path,
        dataset: str,
        split: str,
        partition: str | None = None,
        images: Path | None = None,
        compat: str = "plain",
    ):
        check_compat(compat)
        self.dataset, self.split = find_dataset(dataset), find_split(split)
        self.partition = find_partition(self.dataset, partition)
        self.name = f"{self.dataset}-{self.partition}-{self.split}"
        self.compat, self.pictures = compat, image_folder(root, images)
        refs = select(read_refs(root, self.dataset, self.partition), self.split, f"{self.dataset} {self.partition}")
        there = list_pictures(self.pictures)
        self.missing = sorted({ref.image for ref in refs} - there)
        self._refs: list[Ref] = [ref for ref in refs if ref.image in there for _ in ref.sentences]
        self.expressions = [words for ref in refs if ref.image in there for words in _expressions(ref, self.pictures)]
        self.left_out = sum(len(ref.sentences) for ref in refs) - len(self.expressions)
        if not self.expressions:
            raise ReferError(f"none of the pictures of {self.name} is in {self.pictures}; the first: {refs[0].image}")

    def __len__(self) -> int:
        return len(self.expressions)

    def __getitem__(self, index: int) -> RefCocoExample:
        return RefCocoExample(self.expressions[index], self.image(index), self.mask(index))

    def image(self, index: int) -> np.ndarray:
        """Return an expression's picture, uint8[H, W, 3]; `ReferError` where its size is not that of its masks."""
        image, ref = read_image(self.expressions[index].image), self._refs[index]
        if image.shape[:2] != (ref.height, ref.width):
            raise ReferError(
                f"{self.expressions[index].image}: expected {ref.height} x {ref.width} pixels as the annotations say, "
                f"got {image.shape[0]} x {image.shape[1]}"
            )
        return image

    def mask(self, index: int) -> np.ndarray:
        """Return the mask of what an expression means, at the picture's size; bool, or uint8 under "lisa"."""
        ref = self._refs[index]
        try:
            return decode_segmentation(ref.segmentation, ref.height, ref.width, self.compat)
        except UserError as error:
            raise ReferError(f"annotation {ref.ann_id} of {self.name} is damaged: {error}") from error

    @property
    def note(self) -> str:
        """What was left out, fit to print; empty where nothing was."""
        if not self.missing:
            return ""
        rest = f" and {len(self.missing) - NAMED} more" if len(self.missing) > NAMED else ""
        names = ", ".join(self.missing[:NAMED])
        return (
            f"{self.name}: {len(self.missing)} pictures missing in {self.pictures} and {self.left_out} expressions "
            f"left out: {names}{rest}"
        )


def _expressions(ref: Ref, pictures: Path) -> list[Expression]:
    return [Expression(text, pictures / ref.image, ref.ref_id, number, ref.split) for number, text in ref.sentences]


def select(refs: Sequence[Ref], split: str, name: str) -> list[Ref]:
    """Return the refs of a split; where there are none, `ReferError` names the splits there are."""
    found = [ref for ref in refs if ref.sentences and in_split(ref.split, split)]
    if not found:
        there = ", ".join(sorted({ref.split for ref in refs})) or "none"
        raise ReferError(f"{name} has no expressions in the split {split}; its splits: {there}")
    return found


@dataclass
class Args:
    """Check a folder of referring expressions."""

    data: Path
    """The folder that holds refcoco, refcoco+, refcocog and images."""
    images: Path | None = None
    """The folder of COCO's train2014, where it lies elsewhere."""
    out: Path | None = None
    """A JSON for what was found."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    if not args.data.is_dir():
        raise ReferError(f"expected a folder with refcoco, refcoco+ or refcocog in it, got {args.data}")
    folder = image_folder(args.data, args.images)
    print(
        f"pictures: {len(list_pictures(folder)):,} files in {folder}"
        if folder.is_dir()
        else f"expected pictures in {folder}"
    )
    rows = inspect(args.data, args.images)
    print(describe(rows))
    found = usable(rows)
    print(f"usable: {', '.join(found)}" if found else "usable: nothing; the lines above tell what is expected where")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(
            args.out, json.dumps({"images": str(folder), "usable": found, "rows": rows}, indent=1) + "\n"
        )
    return 0 if found else 2


if __name__ == "__main__":
    sys.exit(run(main))
