"""Readers of referring expressions on disk: REFER's own layout, and the Parquet files of `jxu124/refcoco*`.

    DIR/refcoco/instances.json                              COCO's annotations of the images
    DIR/refcoco/refs(unc).p                                 the expressions for each annotation
    DIR/refcoco/data/validation-00000-of-00001.parquet      or, instead of the two, one or more files for each split
    DIR/grefcoco/grefs(unc).json                            gRefCOCO's, beside its instances.json
    DIR/images/mscoco/images/train2014/COCO_train2014_000000000001.jpg

`refcocog` has `refs(umd).p`. A folder of Parquet files may also have the hub's name, `refcocoplus`.
After Yu et al. 2016 (arXiv 1608.00272), whose `refer.py` defines the layout and how splits match. A ref's own
`file_name` contains its annotation's number and names no file; the image's is in `instances.json`. An expression of
gRefCOCO (Liu et al. 2023, GRES) refers to several objects, or to none: its annotations are a list, or [-1].
"""

import json
import os
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet as parquet
from pyarrow import ArrowException
from pydantic import BaseModel, Field, ValidationError

from common.errors import UserError, nearest
from common.json_file import first_fault
from common.safe_pickle import load_safe_pickle

PARTITIONS = {  # the default first
    "refcoco": ("unc", "google"),
    "refcoco+": ("unc",),
    "refcocog": ("umd", "google"),
    "grefcoco": ("unc",),
}
NO_TARGET = -1  # gRefCOCO's number in place of an annotation's
SPLITS = ("train", "val", "testA", "testB", "test")
IMAGES = Path("images/mscoco/images/train2014")
HUB_NAMES = {"refcoco": "refcoco", "refcoco+": "refcocoplus", "refcocog": "refcocog"}
# Deep JSON is a RecursionError, an infinite number an OverflowError.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, ArrowException)
COLUMNS = ["ref_id", "ann_id", "split", "sentences", "raw_anns", "raw_image_info"]


class ReferError(UserError):
    """A data set of referring expressions that is missing or damaged; the message names the file."""


Number = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Sentence(BaseModel):
    """An expression, in a file."""

    sent_id: Number
    sent: str


class RefRow(BaseModel):
    """What readers use of a ref in a file; its values may be anything before they are checked, and hashed or shown."""

    ref_id: Number
    ann_id: Number | list[Number]
    image_id: Number | None = None  # Parquet files have none
    split: str
    sentences: list[Sentence]


class ImageRow(BaseModel):
    """What readers use of an image in a file."""

    file_name: str
    height: Annotated[int, Field(ge=1, le=2**16)]
    width: Annotated[int, Field(ge=1, le=2**16)]


@dataclass(frozen=True)
class Ref:
    """One object, or several or none in gRefCOCO, and the expressions that refer to it."""

    ref_id: int
    ann_ids: tuple[int, ...]
    split: str  # as the file spells it
    file_name: str  # of the image
    height: int  # of the image, in pixels
    width: int
    segmentations: tuple[Any, ...]  # of each annotation, as COCO writes it
    sentences: tuple[tuple[int, str], ...]  # pairs of an expression's id and its text


def find_dataset(name: str) -> str:
    """Return the key in `PARTITIONS` of a data set in any spelling, or raise `ReferError` with the nearest."""
    return _find(name, name.strip().lower().replace("plus", "+").replace("_", "").replace(" ", ""), PARTITIONS)


def find_split(name: str) -> str:
    """Return the split of a name in any case, or raise `ReferError` with the nearest; `validation` is `val`."""
    return _find(name, name.strip().lower().replace("validation", "val"), SPLITS)


def _find(name: str, key: str, known: Iterable[str]) -> str:
    """Return the one of `known` whose lower case is `key`."""
    choices = {choice.lower(): choice for choice in known}
    if key in choices:
        return choices[key]
    hint = choices[nearest(key, choices)]
    raise ReferError(f"expected one of {', '.join(choices.values())}, got {name!r}; did you mean {hint}?")


def in_split(ref_split: str, split: str) -> bool:
    """Whether a ref belongs to a split, by REFER's rule: `testAB` belongs to `testA`, `testB` and `test`."""
    if split in ("testA", "testB"):
        return split[-1] in ref_split
    return split in ref_split if split == "test" else split == ref_split


def refs_file(root: Path, dataset: str, partition: str) -> Path:
    """Return the path of a partition's expressions."""
    return root / dataset / (f"grefs({partition}).json" if dataset == "grefcoco" else f"refs({partition}).p")


def instances_file(root: Path, dataset: str) -> Path:
    """Return the path of a data set's annotations."""
    return root / dataset / "instances.json"


def parquet_files(root: Path, dataset: str) -> list[Path]:
    """Return the Parquet files of a data set, in its folder or in `data` below it, by name; gRefCOCO has none."""
    names = (dataset, HUB_NAMES[dataset]) if dataset in HUB_NAMES else ()
    folders = {root / name / parent for name in names for parent in (".", "data")}
    return sorted(file for folder in folders for file in folder.glob("*.parquet"))


def list_images(folder: Path) -> set[str]:
    """Return the names of the files in a folder; none if it is missing."""
    return set(os.listdir(folder)) if folder.is_dir() else set()


def read_refs(root: Path, dataset: str) -> list[Ref]:
    """Return the refs of a data set's first partition: from REFER's pickle if there is one, else from Parquet files."""
    partition = PARTITIONS[dataset][0]
    if refs_file(root, dataset, partition).exists():
        return read_refer(root, dataset, partition)
    if parquet_files(root, dataset):
        return read_parquet(root, dataset)
    parquet_form = ""
    if dataset in HUB_NAMES:
        parquet_form = f", or the Parquet files of jxu124/{HUB_NAMES[dataset]} in {root / dataset / 'data'}"
    raise ReferError(
        f"{dataset} is not in {root}: expected {refs_file(root, dataset, partition)} beside "
        f"{instances_file(root, dataset)}{parquet_form}; "
        f"`python -m pretrain.referring.dataset_report --data {root}` lists what is there"
    )


def read_refer(root: Path, dataset: str, partition: str) -> list[Ref]:
    """Return the refs of REFER's two files."""
    pickle, instances = refs_file(root, dataset, partition), instances_file(root, dataset)
    rows = load_safe_pickle(pickle) if pickle.suffix == ".p" else _read_json(pickle)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ReferError(f"{pickle} is damaged: expected a list of dicts, got {type(rows).__name__}")
    images, annotations = _read_instances(instances)
    refs: list[Ref] = []
    num_sentences, most = 0, pickle.stat().st_size  # a pickle may hold one list in many places
    for row in rows:
        with _damage(f"{pickle} is damaged: ref {reprlib.repr(row.get('ref_id'))}"):
            num_sentences += 1 + len(RefRow.model_validate(row).sentences)
            if num_sentences > most:
                raise ReferError(f"{pickle} refused: it holds more expressions than bytes")
            image_id, ann_ids = row["image_id"], _annotation_ids(row["ann_id"])
            wanted = [(image_id, images, "image"), *((number, annotations, "annotation") for number in ann_ids)]
            for number, known, kind in wanted:
                if number not in known:
                    raise ReferError(f"{pickle} refers to {kind} {number}, which {instances} does not hold")
            found = {number: annotations[number] for number in ann_ids}
            refs.append(_to_ref(row, images[image_id], found, row["split"]))
    return refs


def _annotation_ids(value: int | list[int]) -> tuple[int, ...]:
    """Return the numbers of a ref's annotations; none where it has no target."""
    return tuple(number for number in (value if isinstance(value, list) else [value]) if number != NO_TARGET)


def _read_json(file: Path) -> Any:
    if not file.is_file():
        raise ReferError(f"expected expressions at {file}, found none")
    with _damage(f"{file} is damaged"):
        return json.loads(file.read_bytes())


def _read_instances(file: Path) -> tuple[dict[int, dict], dict[int, dict]]:
    if not file.is_file():
        raise ReferError(f"expected COCO's annotations at {file}, found none")
    with _damage(f"{file} is damaged"):
        content = json.loads(file.read_bytes())
        images, annotations = ({row["id"]: row for row in content[name]} for name in ("images", "annotations"))
    return images, annotations


@contextmanager
def _damage(message: str) -> Iterator[None]:
    """Turn the errors of a file of another content into a `ReferError`."""
    try:
        yield
    except ValidationError as error:
        raise ReferError(f"{message}: {first_fault(error)}") from error
    except DAMAGE as error:
        raise ReferError(f"{message}: {type(error).__name__}: {error}".partition("\n")[0]) from error


def _to_ref(row: dict, image: dict, annotations: dict[int, dict], split: str) -> Ref:
    sentences = tuple((int(sentence["sent_id"]), str(sentence["sent"]).strip()) for sentence in row["sentences"])
    checked_image = ImageRow.model_validate(image)
    size = checked_image.height, checked_image.width
    segmentations = tuple(annotation["segmentation"] for annotation in annotations.values())
    ids = int(row["ref_id"]), tuple(map(int, annotations))
    return Ref(*ids, str(split), str(image["file_name"]), *size, segmentations, sentences)


def read_parquet(root: Path, dataset: str) -> list[Ref]:
    """Return the refs of a data set's Parquet files, whose names give the split; `test` is testA if there is one."""
    splits = {"train": "train", "validation": "val", "test": "testA", "testB": "testB"}
    if dataset == "refcocog":
        splits["test"] = "test"
    refs = []
    for file in parquet_files(root, dataset):
        with _damage(f"{file} is damaged"):
            for row in parquet.read_table(file, columns=COLUMNS).to_pylist():
                RefRow.model_validate(row)
                annotation = json.loads(row["raw_anns"])
                if isinstance(annotation, list):
                    annotation = {one["id"]: one for one in annotation}[row["ann_id"]]
                split = splits.get(file.name.split("-")[0], row["split"])
                refs.append(_to_ref(row, json.loads(row["raw_image_info"]), {row["ann_id"]: annotation}, split))
    return refs
