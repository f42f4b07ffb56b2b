"""Files of referring expressions from anyone take time and memory as their size tells, and end in one line."""

import json
import pickle
import time

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from common.command import run
from common.errors import UserError
from common.safe_pickle import PickleError, load_safe_pickle
from pretrain.referring import dataset_report
from pretrain.referring.coco_masks import MAX_OUTLINE, MaskError, decode_mask, decode_segmentation
from pretrain.referring.mask_predictions import read_predictions
from pretrain.referring.refcoco import RefCocoDataset

NESTED_KEY = b"\x80\x02}(" + b")" + b"q\x00h\x00\x86" * 60 + b"K\x01u."  # a hash of 2 ** 60 steps
SEQUENCES = {
    "nested tuples as a key": (NESTED_KEY, "each tuple in one place"),
    "nested tuples as a member": (
        b"\x80\x02c__builtin__\nset\n](" + b")" + b"q\x00h\x00\x86" * 60 + b"e\x85R.",
        "each tuple in one place",
    ),
    "a tuple twice by DUP": (b"\x80\x02}" + b")" + b"2\x86" * 60 + b"K\x01s.", "each tuple in one place"),
    "tuples by MEMOIZE": (
        b"\x80\x04}(" + b")" + b"".join(b"\x94h%c\x86" % number for number in range(60)) + b"K\x01u.",
        "each tuple in one place",
    ),
    "a list copied by a call": (
        b"\x80\x02](]q\x01(" + b"K\x01" * 99 + b"e" + b"c__builtin__\nlist\nh\x01\x85R" * 99 + b"e.",
        "each list in one place",
    ),
    "an index of 16 GB": (b"\x80\x02K\x01r\xff\xff\xff\x7f.", "indices no larger than the file"),
    "a long integer": (b"\x80\x02\x8b" + (10**5).to_bytes(4, "little") + bytes(10**5 - 1) + b"\x01.", "128 bits"),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_pickle_that_asks_for_endless_work_is_refused_at_once(tmp_path, name):
    content, message = SEQUENCES[name]
    (tmp_path / "p").write_bytes(content)
    start = time.monotonic()
    with pytest.raises(PickleError, match=rf"p refused: expected .*{message}"):
        load_safe_pickle(tmp_path / "p")
    assert time.monotonic() - start < 1


def test_lists_in_several_places_are_read(tmp_path):
    one = ["a", "dog"]
    (tmp_path / "p").write_bytes(pickle.dumps([one, one, {"tokens": one}], protocol=2))
    assert load_safe_pickle(tmp_path / "p") == [one, one, {"tokens": one}]


@pytest.fixture
def refer(write_refcoco):
    """REFER's layout with one image; its refs and its instances, to be changed."""
    root = write_refcoco("val", (20, 30), 2, 3, 10, 12)
    return root, root / "refcoco" / "refs(unc).p", root / "refcoco" / "instances.json"


def mask_of_first(root):
    return RefCocoDataset(root, "refcoco", "val")[0].masks


def test_more_expressions_than_bytes_are_refused(refer):
    root, refs, _ = refer
    (row,) = pickle.loads(refs.read_bytes())
    refs.write_bytes(pickle.dumps([{**row, "sentences": row["sentences"] * 1000}] * 1000))
    with pytest.raises(UserError, match="more expressions than bytes"):
        mask_of_first(root)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_id": (1, 2)}, "image_id: .*valid integer, got"),
        ({"ref_id": float("inf")}, "ref inf: ref_id: .*finite number"),
        ({"ann_id": "x"}, "ann_id"),
        ({"ann_id": 10**30}, "ann_id"),
        ({"sentences": "a dog"}, "sentences: .*valid list, got 'a dog'"),
        ({"sentences": [{"sent_id": 1, "sent": ["a"]}]}, "sentences.0.sent: .*valid string"),
        ({"sentences": [5]}, "sentences.0: "),
        ({"split": 5}, "split: .*valid string"),
    ],
)
def test_refs_of_other_kinds_are_named(refer, fields, message):
    root, refs, _ = refer
    (row,) = pickle.loads(refs.read_bytes())
    refs.write_bytes(pickle.dumps([{**row, **fields}]))
    with pytest.raises(UserError, match=rf"refs\(unc\)\.p .*{message}"):
        mask_of_first(root)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"height": float("inf")}, "height: .*finite number, got inf"),
        ({"height": -1}, "height: .* got -1"),
        ({"width": 10**9}, "width: .* got 1000000000"),
        ({"file_name": 5}, "file_name: .*valid string"),
    ],
)
def test_images_of_other_kinds_are_named(refer, fields, message):
    root, _, instances = refer
    content = json.loads(instances.read_text())
    content["images"][0] |= fields
    instances.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        mask_of_first(root)


@pytest.mark.parametrize("content", ["[" * 200_000, "[]", "5", '{"images": 5}', '{"images": [[]]}', "", "\xff"])
def test_annotations_of_other_content_are_damaged(refer, content):
    root, _, instances = refer
    instances.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"instances\.json is damaged"):
        mask_of_first(root)


def test_parquet_files_of_other_content_are_damaged(refer):
    root, refs, _ = refer
    refs.unlink()
    (root / "refcoco" / "data").mkdir()
    row = {"ref_id": 1, "ann_id": 5, "split": "val", "sentences": [{"sent_id": 1, "sent": "a"}]}
    row |= {"raw_anns": "[" * 200_000, "raw_image_info": "{}"}
    file = root / "refcoco" / "data" / "validation-0.parquet"
    for fields in ({}, {"raw_anns": "5"}, {"raw_anns": '{"segmentation": []}'}, {"sentences": [{"sent": "a"}]}):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**row, **fields}]), file)
        with pytest.raises(UserError, match=r"validation-0\.parquet is damaged"):
            mask_of_first(root)


def test_an_outline_beyond_reason_is_refused_at_once():
    corners = [value for number in range(100_000) for value in (0, 6000 * (number % 2))]
    start = time.monotonic()
    for parts in ([corners], [corners[:1000]] * 10):
        with pytest.raises(MaskError, match=f"outlines of at most {MAX_OUTLINE:,} pixels"):
            decode_segmentation(parts, 480, 640)
    assert time.monotonic() - start < 1
    assert decode_segmentation([corners[:200]], 480, 640).shape == (480, 640)


def test_parts_that_are_counted_do_not_add_up_in_memory():
    square = [1.0, 1.0, 5.0, 1.0, 5.0, 5.0, 1.0, 5.0]
    counted = decode_segmentation([square] * 300, 480, 640, "lisa")
    assert counted.dtype == np.uint8
    assert counted.max() == 300 % 256
    with pytest.raises(MaskError, match="at most 67,108,864 pixels, and"):
        decode_segmentation([square] * 10_000, 480, 640, "lisa")


@pytest.mark.parametrize("size", [[2**20, 2**20], [-2, -3], [0, 0], [float("inf"), 1], ["a", "b"], [1], None])
def test_masks_of_other_sizes_are_refused(size):
    with pytest.raises(MaskError):
        decode_mask({"size": size, "counts": [6]})


def test_run_lengths_that_never_end_are_refused_at_once():
    start = time.monotonic()
    with pytest.raises(MaskError, match="run lengths that add up"):
        decode_mask({"size": [2, 3], "counts": "o" * 10**6})
    assert time.monotonic() - start < 0.5


@pytest.mark.parametrize("line", ["[" * 200_000, "5", '{"sent_id": Infinity, "ref_id": 1, "mask": null}', "{}"])
def test_lines_of_predictions_of_other_content_are_named(tmp_path, line):
    (tmp_path / "p.jsonl").write_text('{"sent_id": 1, "ref_id": 1, "mask": null}\n' + line)
    with pytest.raises(MaskError, match="line 2 is damaged"):
        read_predictions(tmp_path / "p.jsonl")


def test_fields_cannot_write_to_the_terminal(refer, capsys):
    root, refs, instances = refer
    (row,) = pickle.loads(refs.read_bytes())
    content = json.loads(instances.read_text())
    content["images"].append({**content["images"][0], "id": 12, "file_name": "\x1b]0;title\x07.jpg"})
    instances.write_text(json.dumps(content))
    refs.write_bytes(pickle.dumps([row, {**row, "ref_id": 2, "image_id": 12}, {**row, "split": "\x1b[2J"}]))
    assert run(lambda: dataset_report.main(["--data", str(root)])) == 0
    print(RefCocoDataset(root, "refcoco", "val").note)
    with pytest.raises(UserError, match="its splits: ") as refused:
        RefCocoDataset(root, "refcoco", "train")
    assert run(lambda: (_ for _ in ()).throw(refused.value)) == 2
    written = "".join(capsys.readouterr())
    assert r"\x1b]0;title\x07.jpg" in written
    assert r"\x1b[2J" in written
    assert "\x1b" not in written
