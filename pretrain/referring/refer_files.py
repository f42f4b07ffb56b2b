"""Referring expressions as they lie on disk: REFER's own layout, and the Parquet files of `jxu124/refcoco*`.

    DIR/refcoco/instances.json                              COCO's annotations of the images
    DIR/refcoco/refs(unc).p                                 which annotation is meant by which expressions
    DIR/refcoco/data/validation-00000-of-00001.parquet      or, instead of the two, a file or more for each split
    DIR/images/mscoco/images/train2014/COCO_train2014_000000000001.jpg

So too `refcoco+` with `refs(unc).p` and `refcocog` with `refs(umd).p`; a folder of Parquet files may also be called by
the name of its set, `refcocoplus`. REFER's pickles are read by `pretrain.referring.safe_pickle`, which runs nothing.

After Yu et al. 2016 (arXiv 1608.00272), whose `refer.py` fixes the layout and how splits are matched. A ref's own
`file_name` carries a number of its annotation and names no file; the image's is that of `instances.json`.
"""

import difflib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from common.errors import UserError
from pretrain.referring.safe_pickle import load_safe_pickle

PARTITIONS = {"refcoco": ("unc", "google"), "refcoco+": ("unc",), "refcocog": ("umd", "google")}  # the usual one first
SPLITS = ("train", "val", "testA", "testB", "test")
IMAGES = Path("images/mscoco/images/train2014")
HUB_NAMES = {"refcoco": "refcoco", "refcoco+": "refcocoplus", "refcocog": "refcocog"}
COLUMNS = ["ref_id", "ann_id", "split", "sentences", "raw_anns", "raw_image_info"]


class ReferError(UserError):
    """A set of referring expressions that is missing, damaged or of another kind; the message names the file."""


@dataclass(frozen=True)
class Ref:
    """One object that is referred to, and the expressions that mean it.

    image: the file's name; height, width: of the image in pixels; segmentation: as COCO writes it; sentences: pairs of
    an expression's number and its text; split: as the file spells it.
    """

    ref_id: int
    ann_id: int
    split: str
    image: str
    height: int
    width: int
    segmentation: Any
    sentences: tuple[tuple[int, str], ...]


def find_dataset(spelling: str) -> str:
    """Return the set that a spelling means: `RefCOCO+`, `refcocoplus` and `refcoco+` are one.

    Raises:
        ReferError: there is no such set; the message names the nearest.
    """
    bare = spelling.strip().lower().replace("plus", "+").replace("_", "").replace(" ", "")
    if bare in PARTITIONS:
        return bare
    near = difflib.get_close_matches(bare, PARTITIONS, n=1, cutoff=0.0)[0]
    raise ReferError(f"expected one of {', '.join(PARTITIONS)}, got {spelling!r}; did you mean {near}?")


def find_partition(dataset: str, partition: str | None) -> str:
    """Return a set's partition: the one asked for, or the usual one (unc; umd for refcocog) where none is."""
    known = PARTITIONS[dataset]
    if partition is None or partition in known:
        return partition or known[0]
    near = difflib.get_close_matches(partition, known, n=1, cutoff=0.0)[0]
    raise ReferError(f"{dataset} has the partitions {', '.join(known)}, got {partition!r}; did you mean {near}?")


def find_split(spelling: str) -> str:
    """Return the split that a spelling means; upper and lower case are one, and `validation` is `val`."""
    bare = {"validation": "val"}.get(spelling.strip().lower(), spelling.strip().lower())
    known = {split.lower(): split for split in SPLITS}
    if bare in known:
        return known[bare]
    near = known[difflib.get_close_matches(bare, known, n=1, cutoff=0.0)[0]]
    raise ReferError(f"expected one of the splits {', '.join(SPLITS)}, got {spelling!r}; did you mean {near}?")


def in_split(own: str, asked: str) -> bool:
    """Whether a ref whose split is spelled `own` belongs to a split, by REFER's rule.

    `testA` and `testB` ask for their letter anywhere (some refs are `testAB`), `test` for the word anywhere, so it is
    both of them together; `train` and `val` for themselves.
    """
    if asked in ("testA", "testB"):
        return asked[-1] in own
    return asked in own if asked == "test" else asked == own


def refs_file(root: Path, dataset: str, partition: str) -> Path:
    """Return where a partition's pickle belongs."""
    return Path(root) / dataset / f"refs({partition}).p"


def instances_file(root: Path, dataset: str) -> Path:
    """Return where a set's annotations belong."""
    return Path(root) / dataset / "instances.json"


def parquet_files(root: Path, dataset: str) -> list[Path]:
    """Return the Parquet files of a set, in its folder or in `data` below it, by name."""
    folders = dict.fromkeys(Path(root) / name for name in (dataset, HUB_NAMES[dataset]))
    return sorted(file for folder in folders for place in (folder, folder / "data") for file in place.glob("*.parquet"))


def image_folder(root: Path, images: Path | None = None) -> Path:
    """Return the folder of COCO's train2014: the one given, or the layout's own."""
    return Path(images) if images else Path(root) / IMAGES


def list_pictures(folder: Path) -> set[str]:
    """Return the names of the files in a folder; none where it is missing."""
    return set(os.listdir(folder)) if folder.is_dir() else set()


def read_refs(root: Path, dataset: str, partition: str) -> list[Ref]:
    """Return the refs of a partition: from REFER's files where its pickle is there, else from the Parquet files.

    Raises:
        ReferError: neither is there, or what is there is damaged; the message names the file.
    """
    if refs_file(root, dataset, partition).exists():
        return read_refer(root, dataset, partition)
    if partition == PARTITIONS[dataset][0] and parquet_files(root, dataset):
        return read_parquet(root, dataset)
    raise ReferError(
        f"{dataset} is not in {root}: expected {refs_file(root, dataset, partition)} beside "
        f"{instances_file(root, dataset)}, or the Parquet files of jxu124/{HUB_NAMES[dataset]} in "
        f"{Path(root) / dataset / 'data'}; `python -m pretrain.referring.refcoco --data {root}` tells what is there"
    )


def read_refer(root: Path, dataset: str, partition: str) -> list[Ref]:
    """Return the refs of REFER's two files."""
    pickle, instances = refs_file(root, dataset, partition), instances_file(root, dataset)
    found = load_safe_pickle(pickle)
    if not isinstance(found, list) or not all(isinstance(ref, dict) for ref in found):
        raise ReferError(f"{pickle} is damaged: expected a list of dicts, got {type(found).__name__}")
    images, annotations = _read_instances(instances)
    return [_ref(row, images, annotations, pickle, instances) for row in found]


def _read_instances(file: Path) -> tuple[dict[int, dict], dict[int, dict]]:
    if not file.is_file():
        raise ReferError(f"expected COCO's annotations at {file}, found none")
    try:
        found = json.loads(file.read_bytes())
        return {row["id"]: row for row in found["images"]}, {row["id"]: row for row in found["annotations"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ReferError(f"{file} is damaged: {type(error).__name__}: {error}") from error


def _ref(row: dict, images: dict[int, dict], annotations: dict[int, dict], pickle: Path, instances: Path) -> Ref:
    try:
        image_id, ann_id = row["image_id"], row["ann_id"]
        for number, known, kind in ((image_id, images, "image"), (ann_id, annotations, "annotation")):
            if number not in known:
                raise ReferError(f"{pickle} means {kind} {number}, which {instances} does not hold")
        return _build(row, images[image_id], annotations[ann_id], row["split"])
    except (KeyError, TypeError, ValueError) as error:
        raise ReferError(f"{pickle} is damaged: ref {row.get('ref_id')}: {type(error).__name__}: {error}") from error


def _build(row: dict, image: dict, annotation: dict, split: str) -> Ref:
    sentences = tuple((int(sentence["sent_id"]), str(sentence["sent"]).strip()) for sentence in row["sentences"])
    size = int(image["height"]), int(image["width"])
    ids = int(row["ref_id"]), int(row["ann_id"])
    return Ref(*ids, str(split), str(image["file_name"]), *size, annotation["segmentation"], sentences)


def read_parquet(root: Path, dataset: str) -> list[Ref]:
    """Return the refs of a set's Parquet files; their names tell the split, `test` being testA where there is one."""
    return [ref for file in parquet_files(root, dataset) for ref in _parquet_refs(file, dataset)]


def _parquet_refs(file: Path, dataset: str) -> Iterator[Ref]:
    try:
        for row in parquet.read_table(file, columns=COLUMNS).to_pylist():
            annotation = _own(json.loads(row["raw_anns"]), row["ann_id"])
            yield _build(row, json.loads(row["raw_image_info"]), annotation, _split(file, row["split"], dataset))
    except (OSError, ValueError, KeyError, TypeError) as error:  # Arrow's own errors are ValueErrors and KeyErrors
        raise ReferError(f"{file} is damaged: {type(error).__name__}: {str(error).splitlines()[0]}") from error


def _own(annotations: dict | Sequence[dict], ann_id: int) -> dict:
    """Return an annotation that stands alone or, by its number, in a list."""
    if isinstance(annotations, dict):
        return annotations
    return {annotation["id"]: annotation for annotation in annotations}[ann_id]


def _split(file: Path, own: str, dataset: str) -> str:
    tests = "test" if dataset == "refcocog" else "testA"
    names = {"train": "train", "validation": "val", "test": tests, "testB": "testB"}
    return names.get(file.name.split("-")[0], own)
