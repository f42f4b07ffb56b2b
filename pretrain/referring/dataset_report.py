"""Report of the referring data sets in a folder: files found and missing, and counts beside the published ones.

    python -m pretrain.referring.dataset_report --data data/refer
    python -m pretrain.referring.dataset_report --data data/refer --images coco/train2014 --out data/refer/report.json

The exit code is 2 if no split is usable. `pretrain.referring.refer_files` shows the layout.

Published counts: refs and images are those of TensorFlow Datasets' `ref_coco` (its README); the expressions of
RefCOCO's splits those of FlagEval's page on it. The expressions of each split of RefCOCO+ and of RefCOCOg (umd) are as
papers count them and add up to 141,564 and 95,010; no page that lists them per split was available to compare.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common.command import parse, run
from common.errors import UserError
from common.files import write_text_atomically
from common.outputs import require_output_files
from common.text import printable
from pretrain.referring.refcoco import MAX_NAMED_IMAGES
from pretrain.referring.refer_files import (
    HUB_NAMES,
    IMAGES,
    PARTITIONS,
    SPLITS,
    Ref,
    ReferError,
    in_split,
    instances_file,
    list_images,
    parquet_files,
    read_parquet,
    read_refer,
    refs_file,
)


@dataclass
class Args:
    """Report the referring data sets in a folder."""

    data: Path
    """The folder that holds refcoco, refcoco+, refcocog, grefcoco and images."""
    images: Path | None = None
    """The folder of COCO's train2014, if it is not in --data."""
    out: Path | None = None
    """A JSON file for the report."""


COUNTED = ("refs", "expressions", "images")
PUBLISHED = {  # of what is `COUNTED`; None if no number is published
    ("refcoco", "unc", "train"): (42404, 120624, 16994),
    ("refcoco", "unc", "val"): (3811, 10834, 1500),
    ("refcoco", "unc", "testA"): (1975, 5657, 750),
    ("refcoco", "unc", "testB"): (1810, 5095, 750),
    ("refcoco", "google", "train"): (40000, None, 19213),
    ("refcoco", "google", "val"): (5000, None, 4559),
    ("refcoco", "google", "test"): (5000, None, 4527),
    ("refcoco+", "unc", "train"): (42278, 120191, 16992),
    ("refcoco+", "unc", "val"): (3805, 10758, 1500),
    ("refcoco+", "unc", "testA"): (1975, 5726, 750),
    ("refcoco+", "unc", "testB"): (1798, 4889, 750),
    ("refcocog", "umd", "train"): (42226, 80512, 21899),
    ("refcocog", "umd", "val"): (2573, 4896, 1300),
    ("refcocog", "umd", "test"): (5023, 9602, 2600),
    ("refcocog", "google", "train"): (44822, None, 24698),
    ("refcocog", "google", "val"): (5000, None, 4650),
    **{("grefcoco", "unc", split): (None, None, None) for split in ("train", "val", "testA", "testB")},
}


def data_files(root: Path) -> list[Path]:
    """Return the files of a folder's data sets that there are."""
    files = [
        file
        for dataset, partitions in PARTITIONS.items()
        for file in (
            *(refs_file(root, dataset, partition) for partition in partitions),
            instances_file(root, dataset),
            *parquet_files(root, dataset),
        )
    ]
    return [file for file in files if file.is_file()]


def inspect(root: Path, images: Path) -> list[dict[str, Any]]:
    """Return a row for every data set and form: `missing` files or what is `damaged`, or the counts of its `splits`."""
    available = list_images(images)
    rows: list[dict[str, Any]] = []

    def add(form: str, dataset: str, partition: str, missing: list[str], read: Callable[[], list[Ref]]) -> None:
        row: dict[str, Any] = {"dataset": dataset, "partition": partition, "form": form, "splits": []}
        rows.append(row)
        try:
            row |= {"missing": missing} if missing else {"splits": _splits(read(), dataset, partition, available)}
        except UserError as error:
            row["damaged"] = str(error)

    for dataset, partitions in PARTITIONS.items():
        for partition in partitions:
            files = refs_file(root, dataset, partition), instances_file(root, dataset)
            missing = [str(file) for file in files if not file.is_file()]
            add("REFER", dataset, partition, missing, partial(read_refer, root, dataset, partition))
    for dataset, hub_name in HUB_NAMES.items():
        partition = PARTITIONS[dataset][0]
        pattern = f"{root / dataset / 'data' / '*.parquet'} (of jxu124/{hub_name})"
        missing = [] if parquet_files(root, dataset) else [pattern]
        add("Parquet", dataset, partition, missing, partial(read_parquet, root, dataset))
    return rows


def _splits(refs: list[Ref], dataset: str, partition: str, available: set[str]) -> list[dict[str, Any]]:
    rows = []
    for split in SPLITS:
        if not (published := PUBLISHED.get((dataset, partition, split))):
            continue
        selected = [ref for ref in refs if in_split(ref.split, split)]
        images = {ref.file_name for ref in selected}
        found = len(selected), sum(len(ref.sentences) for ref in selected), len(images)
        missing = sorted(images - available)
        rows.append(
            {
                "split": split,
                "found": dict(zip(COUNTED, found, strict=True)),
                "published": dict(zip(COUNTED, published, strict=True)),
                "images_missing": len(missing),
                "first_missing": missing[:MAX_NAMED_IMAGES],
            }
        )
    return rows


def _describe(row: dict[str, Any]) -> list[str]:
    head = f"{row['dataset']}, partition {row['partition']}, {row['form']} form:"
    if "missing" in row:
        return [f"{head} missing", *(f"  expected {file}" for file in row["missing"])]
    if "damaged" in row:
        return [f"{head} refused", f"  {row['damaged']}"]
    return [f"{head} found; published counts in parentheses", *map(_describe_split, row["splits"])]


def _describe_split(part: dict[str, Any]) -> str:
    counts = ", ".join(
        f"{value:,} {name} ({'-' if part['published'][name] is None else format(part['published'][name], ',')})"
        for name, value in part["found"].items()
    )
    missing = f"; {part['images_missing']:,} images missing: " + ", ".join(part["first_missing"])
    more = " ..." if part["images_missing"] > MAX_NAMED_IMAGES else ""
    return f"  {part['split']:5s} {counts}{missing + more if part['images_missing'] else ''}"


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the module's docstring."""
    args = parse(Args, argv, __doc__)
    if not args.data.is_dir():
        raise ReferError(f"expected a folder with refcoco, refcoco+ or refcocog in it, got {args.data}")
    if args.out:
        require_output_files([args.out], [args.data / IMAGES, *data_files(args.data)])
    images = args.images or args.data / IMAGES
    print(f"images: {len(list_images(images)):,} files in" if images.is_dir() else "expected images in", images)
    rows = inspect(args.data, images)
    print("\n".join(printable(line) for row in rows for line in _describe(row)))
    usable = [
        f"{row['dataset']} {row['partition']} {part['split']}"
        for row in rows
        for part in row["splits"]
        if part["found"]["images"] > part["images_missing"]
    ]
    print(f"usable: {', '.join(usable) if usable else 'nothing; the lines above list the expected files'}")
    if args.out:
        report = {"images": str(images), "usable": usable, "rows": rows}
        write_text_atomically(args.out, json.dumps(report, indent=1) + "\n")
    return 0 if usable else 2


if __name__ == "__main__":
    sys.exit(run(main))
