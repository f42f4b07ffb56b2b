"""What of the sets of referring expressions lies in a folder, what is missing, and how many there are of each.

Published numbers: refs and images are those of TensorFlow Datasets' `ref_coco` (its README); the expressions of
RefCOCO's splits those of FlagEval's page on it. The expressions of each split of RefCOCO+ and of RefCOCOg (umd) are as
papers count them and add up to 141,564 and 95,010; no single page that lists them was at hand to compare with.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import UserError
from pretrain.referring.refer_files import (
    HUB_NAMES,
    PARTITIONS,
    SPLITS,
    Ref,
    image_folder,
    in_split,
    instances_file,
    list_pictures,
    parquet_files,
    read_parquet,
    read_refer,
    refs_file,
)

NAMED = 3  # of the images that are missing


@dataclass(frozen=True)
class Counts:
    """How many refs, expressions and images there are; None where no number is published."""

    refs: int | None
    expressions: int | None
    images: int | None


PUBLISHED = {
    ("refcoco", "unc", "train"): Counts(42404, 120624, 16994),
    ("refcoco", "unc", "val"): Counts(3811, 10834, 1500),
    ("refcoco", "unc", "testA"): Counts(1975, 5657, 750),
    ("refcoco", "unc", "testB"): Counts(1810, 5095, 750),
    ("refcoco", "google", "train"): Counts(40000, None, 19213),
    ("refcoco", "google", "val"): Counts(5000, None, 4559),
    ("refcoco", "google", "test"): Counts(5000, None, 4527),
    ("refcoco+", "unc", "train"): Counts(42278, 120191, 16992),
    ("refcoco+", "unc", "val"): Counts(3805, 10758, 1500),
    ("refcoco+", "unc", "testA"): Counts(1975, 5726, 750),
    ("refcoco+", "unc", "testB"): Counts(1798, 4889, 750),
    ("refcocog", "umd", "train"): Counts(42226, 80512, 21899),
    ("refcocog", "umd", "val"): Counts(2573, 4896, 1300),
    ("refcocog", "umd", "test"): Counts(5023, 9602, 2600),
    ("refcocog", "google", "train"): Counts(44822, None, 24698),
    ("refcocog", "google", "val"): Counts(5000, None, 4650),
}


def count(refs: Iterable[Ref]) -> Counts:
    """Return how many refs, expressions and images there are."""
    refs = list(refs)
    return Counts(len(refs), sum(len(ref.sentences) for ref in refs), len({ref.image for ref in refs}))


def inspect(root: Path, images: Path | None = None) -> list[dict]:
    """Return a row for every set and form: `dataset`, `partition`, `form`, `missing` or `damaged`, `splits`.

    `missing` names the files that are expected and not there; each of `splits` has its numbers, the published ones and
    how many of its pictures are missing. Splits whose pictures are all missing cannot be used.
    """
    there = list_pictures(image_folder(root, images))
    rows = [_inspect_refer(root, d, p, there) for d, known in PARTITIONS.items() for p in known]
    return rows + [_inspect_parquet(root, dataset, there) for dataset in PARTITIONS]


def _inspect_refer(root: Path, dataset: str, partition: str, pictures: set[str]) -> dict:
    row = {"dataset": dataset, "partition": partition, "form": "REFER", "splits": []}
    expected = (refs_file(root, dataset, partition), instances_file(root, dataset))
    missing = [str(file) for file in expected if not file.is_file()]
    if missing:
        return {**row, "missing": missing}
    try:
        refs = read_refer(root, dataset, partition)
    except UserError as error:
        return {**row, "damaged": str(error)}
    return {**row, "splits": _inspect_splits(refs, dataset, partition, pictures)}


def _inspect_parquet(root: Path, dataset: str, pictures: set[str]) -> dict:
    partition = PARTITIONS[dataset][0]
    row = {"dataset": dataset, "partition": partition, "form": "Parquet", "splits": []}
    if not parquet_files(root, dataset):
        place = Path(root) / dataset / "data" / "*.parquet"
        return {**row, "missing": [f"{place} (of jxu124/{HUB_NAMES[dataset]})"]}
    try:
        refs = read_parquet(root, dataset)
    except UserError as error:
        return {**row, "damaged": str(error)}
    return {**row, "splits": _inspect_splits(refs, dataset, partition, pictures)}


def _inspect_splits(refs: list[Ref], dataset: str, partition: str, pictures: set[str]) -> list[dict]:
    rows = []
    for split in SPLITS:
        if (published := PUBLISHED.get((dataset, partition, split))) is None:
            continue
        own = [ref for ref in refs if in_split(ref.split, split)]
        missing = sorted({ref.image for ref in own} - pictures)
        numbers = {"split": split, "found": asdict(count(own)), "published": asdict(published)}
        rows.append({**numbers, "pictures_missing": len(missing), "first_missing": missing[:NAMED]})
    return rows


def usable(rows: Iterable[dict]) -> list[str]:
    """Return the names of what can be used of the rows of `inspect`: splits with a picture or more."""
    return [
        f"{row['dataset']} {row['partition']} {part['split']}"
        for row in rows
        for part in row["splits"]
        if part["found"]["images"] > part["pictures_missing"]
    ]


def describe(rows: list[dict]) -> str:
    """Return the rows of `inspect` as text, a block for each set and form."""
    return "\n".join(line for row in rows for line in _describe(row))


def _describe(row: dict) -> list[str]:
    head = f"{row['dataset']}, partition {row['partition']}, {row['form']} form:"
    if "missing" in row:
        return [f"{head} missing", *(f"  expected {file}" for file in row["missing"])]
    if "damaged" in row:
        return [f"{head} refused", f"  {row['damaged']}"]
    return [f"{head} found; numbers are followed by the published ones", *map(_describe_split, row["splits"])]


def _describe_split(part: dict) -> str:
    numbers = ", ".join(
        f"{value:,} {name} ({'-' if part['published'][name] is None else format(part['published'][name], ',')})"
        for name, value in part["found"].items()
    )
    missing = f"; {part['pictures_missing']:,} pictures missing: " + ", ".join(part["first_missing"])
    more = " ..." if part["pictures_missing"] > NAMED else ""
    return f"  {part['split']:5s} {numbers}{missing + more if part['pictures_missing'] else ''}"
