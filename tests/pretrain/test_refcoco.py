"""RefCOCO is read from REFER's files and from Parquet; damaged, unsafe and missing files are reported by name."""

import json
import os
import pickle

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from pycocotools import mask as coco

from common.safe_pickle import PickleError, load_safe_pickle
from pretrain.referring.coco_masks import MaskError, decode_mask, decode_segmentation, encode_mask
from pretrain.referring.dataset_report import PUBLISHED, inspect, main
from pretrain.referring.refcoco import RefCocoDataset
from pretrain.referring.refer_files import IMAGES, ReferError, find_dataset, find_split, in_split

HEIGHT, WIDTH = 20, 30
NAMES = ("COCO_train2014_000000000011.jpg", "COCO_train2014_000000000012.jpg")


def square(top, left, side):
    return [left, top, left + side, top, left + side, top + side, left, top + side]


def box(top, left, side):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + side, left : left + side] = True
    return mask


RING = box(3, 5, 10) & ~box(6, 8, 4)
OVERLAP = box(1, 2, 10) | box(7, 8, 10)
SEGMENTATIONS = {
    101: [square(2, 3, 5)],
    102: [square(1, 2, 10), square(7, 8, 10)],
    103: encode_mask(RING),
    104: [square(0, 0, 4), square(10, 20, 4)],
}
MASKS = {101: box(2, 3, 5), 102: OVERLAP, 103: RING, 104: box(0, 0, 4) | box(10, 20, 4)}
UNC = {101: "train", 102: "val", 103: "testA", 104: "testB"}
UMD = {101: "train", 102: "val", 103: "test", 104: "test"}


def refs(splits):
    """Every object has two expressions; the refs' own file names are wrong, as in REFER."""
    return [
        {
            "ref_id": number,
            "ann_id": ann_id,
            "category_id": 1,
            "image_id": 11 if ann_id < 103 else 12,
            "file_name": f"COCO_train2014_00000000001{number}_{ann_id}.jpg",
            "split": split,
            "sent_ids": [2 * number, 2 * number + 1],
            "sentences": [
                {"sent_id": 2 * number + i, "raw": f"The {w} {ann_id}", "sent": f"the {w} {ann_id} ", "tokens": ["the"]}
                for i, w in enumerate(("thing", "object"))
            ],
        }
        for number, (ann_id, split) in enumerate(splits.items())
    ]


def instances():
    return {
        "images": [{"id": 11 + i, "file_name": name, "height": HEIGHT, "width": WIDTH} for i, name in enumerate(NAMES)],
        "annotations": [
            {"id": ann_id, "image_id": 11 if ann_id < 103 else 12, "category_id": 1, "segmentation": segmentation}
            for ann_id, segmentation in SEGMENTATIONS.items()
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }


def write_images(folder):
    folder.mkdir(parents=True)
    for i, name in enumerate(NAMES):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 100 * i + 50, np.uint8)).save(folder / name)


def write_set(root, dataset, partition, splits, protocol=2):
    (root / dataset).mkdir(exist_ok=True)
    (root / dataset / f"refs({partition}).p").write_bytes(pickle.dumps(refs(splits), protocol=protocol))
    (root / dataset / "instances.json").write_text(json.dumps(instances()))


@pytest.fixture
def root(tmp_path):
    write_images(tmp_path / IMAGES)
    write_set(tmp_path, "refcoco", "unc", UNC)
    write_set(tmp_path, "refcoco+", "unc", {**UNC, 104: "testAB"}, protocol=0)
    write_set(tmp_path, "refcocog", "umd", UMD, protocol=4)
    return tmp_path


def write_parquet(folder, splits, in_list):
    folder.mkdir(parents=True)
    found = instances()
    images = {row["id"]: row for row in found["images"]}
    annotations = {row["id"]: row for row in found["annotations"]}
    for split in set(splits.values()):
        rows = []
        for ref in refs({ann_id: own for ann_id, own in splits.items() if own == split}):
            annotation = annotations[ref["ann_id"]]
            raw = {"raw_anns": json.dumps([annotation] if in_list else annotation)}
            extra = {"raw_image_info": json.dumps(images[ref["image_id"]]), "image_path": "coco/elsewhere.jpg"}
            rows.append({**ref, **raw, **extra, "bbox": [0.0, 1.0, 2.0, 3.0]})
        name = {"val": "validation", "testA": "test"}.get(split, split)
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(rows), folder / f"{name}-00000-of-00001-b0b83eb0af2ba8f1.parquet"
        )


@pytest.mark.parametrize("split", ["train", "val", "testA", "testB"])
def test_an_expression_has_its_text_its_image_and_its_mask(root, split):
    data = RefCocoDataset(root, "refcoco", split)
    ann_id = next(ann_id for ann_id, own in UNC.items() if own == split)
    assert (len(data), data.name, data.note, data.num_left_out) == (2, f"refcoco-unc-{split}", "", 0)
    first, second = data[0], data[1]
    assert first.expressions + second.expressions == (f"the thing {ann_id}", f"the object {ann_id}")
    number = list(UNC).index(ann_id)
    assert (first.ref_ids, first.sent_ids, second.sent_ids) == ((number,), (2 * number,), (2 * number + 1,))
    assert data.expressions[0].ref.split == split
    assert first.source == NAMES[ann_id > 102]
    assert (first.frames.shape, first.frames.dtype) == ((1, HEIGHT, WIDTH, 3), np.uint8)
    assert abs(int(first.frames[0, 0, 0, 0]) - (50 if ann_id < 103 else 150)) < 3
    assert first.masks.dtype == bool
    assert np.array_equal(first.masks, MASKS[ann_id][None])


def test_splits_are_matched_as_refer_does(root):
    assert len(RefCocoDataset(root, "refcoco", "test")) == 4
    assert [len(RefCocoDataset(root, "refcoco+", split)) for split in ("testA", "testB", "test")] == [4, 2, 4]
    assert len(RefCocoDataset(root, "refcocog", "test")) == 4
    assert in_split("testAB", "testA")
    assert not in_split("testB", "testA")
    assert not in_split("testA", "train")
    with pytest.raises(ReferError, match=r"refcocog umd has no expressions in the split testA; .* test, train, val"):
        RefCocoDataset(root, "refcocog", "testA")


def test_the_parquet_form_gives_the_same_expressions(root, tmp_path):
    for dataset, splits, folder in (
        ("refcoco", UNC, "refcoco/data"),
        ("refcoco+", UNC, "refcocoplus"),
        ("refcocog", UMD, "refcocog/data"),
    ):
        write_parquet(tmp_path / "hub" / folder, splits, in_list=dataset == "refcocog")
        for split in dict.fromkeys(splits.values()):
            write_set(root, dataset, "unc" if dataset != "refcocog" else "umd", splits)
            one = RefCocoDataset(root, dataset, split)
            two = RefCocoDataset(tmp_path / "hub", dataset, split, images=root / IMAGES)
            assert one.expressions, split
            order = {words.text: i for i, words in enumerate(two.expressions)}
            assert order.keys() == {words.text for words in one.expressions}
            for i, words in enumerate(one.expressions):
                assert np.array_equal(one.mask(i), two.mask(order[words.text]))
                assert words.ref.file_name == two.expressions[order[words.text]].ref.file_name


def test_names_are_matched_in_any_spelling_and_unknown_ones_get_a_suggestion():
    assert [find_dataset(name) for name in ("RefCOCO", "refcocoplus", "RefCOCO+", "refcoco_g")] == [
        "refcoco",
        "refcoco+",
        "refcoco+",
        "refcocog",
    ]
    assert [find_split(name) for name in ("testa", "TestB", "validation")] == ["testA", "testB", "val"]
    with pytest.raises(ReferError, match=r"got 'refcok'; did you mean refcoco\?"):
        find_dataset("refcok")
    with pytest.raises(ReferError, match=r"got 'trian'; did you mean train\?"):
        find_split("trian")


class Payload:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_with_a_payload_is_refused_and_runs_nothing(root, tmp_path, protocol, capsys):
    trap = tmp_path / "ran"
    file = root / "refcoco" / "refs(unc).p"
    file.write_bytes(pickle.dumps([{"ref_id": 1, "payload": Payload(trap)}], protocol=protocol))
    with pytest.raises(PickleError, match=r"refs\(unc\).p refused: .* the global posix.mkdir, which was not run"):
        RefCocoDataset(root, "refcoco", "val")
    assert main(["--data", str(root)]) == 0
    assert "refcoco, partition unc, REFER form: refused" in capsys.readouterr().out
    assert not trap.exists()
    for words in (b"c__builtin__\neval\n(S'1'\ntR.", b"cos\nsystem\n.", b"ccollections\nOrderedDict\n)R."):
        file.write_bytes(words)
        with pytest.raises(PickleError, match=r"the global (__builtin__.eval|os.system|collections.OrderedDict)"):
            load_safe_pickle(file)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_plain_values_are_read(tmp_path, protocol):
    values = [{"a": (1, 2.5, None, True), "b": {1, 2}, "c": frozenset("x"), "d": "naïve"}, [-(2**70)]]
    (tmp_path / "p").write_bytes(pickle.dumps(values, protocol=protocol))
    assert load_safe_pickle(tmp_path / "p") == values


def test_the_pickles_of_python_2_are_read(tmp_path):
    words = b"(lp0\n(dp1\nS'sent'\np2\nS'a dog'\np3\nsS'ids'\np4\nc__builtin__\nset\n((lp5\nI7\natRsa."
    (tmp_path / "p").write_bytes(words)
    assert load_safe_pickle(tmp_path / "p") == [{"sent": "a dog", "ids": {7}}]
    (tmp_path / "p").write_bytes(words[:30])
    with pytest.raises(PickleError, match="is not a pickle, or is damaged"):
        load_safe_pickle(tmp_path / "p")


def test_damaged_files_are_named(root):
    refs_of, whole = root / "refcoco" / "refs(unc).p", root / "refcoco" / "instances.json"
    kept, found = refs_of.read_bytes(), json.loads(whole.read_text())
    for words, expected in (
        (kept[:50], r"refs\(unc\).p is not a pickle, or is damaged"),
        (pickle.dumps({"a": 1}), r"refs\(unc\).p is damaged: expected a list of dicts, got dict"),
        (pickle.dumps([{"ref_id": 5}]), r"refs\(unc\).p is damaged: ref 5: ann_id: field required"),
        (
            pickle.dumps([{**refs(UNC)[0], "ann_id": 9}]),
            r"refers to annotation 9, which .*instances.json does not hold",
        ),
    ):
        refs_of.write_bytes(words)
        with pytest.raises((ReferError, PickleError), match=expected):
            RefCocoDataset(root, "refcoco", "train")
    refs_of.write_bytes(kept)
    found["annotations"][0]["segmentation"] = [[1, 2, 3]]
    whole.write_text(json.dumps(found))
    with pytest.raises(ReferError, match="annotation 101 of refcoco-unc-train is damaged: expected a polygon"):
        RefCocoDataset(root, "refcoco", "train").mask(0)
    whole.write_text("{")
    with pytest.raises(ReferError, match=r"instances.json is damaged"):
        RefCocoDataset(root, "refcoco", "train")
    whole.unlink()
    with pytest.raises(ReferError, match=r"expected COCO's annotations at .*instances.json, found none"):
        RefCocoDataset(root, "refcoco", "train")
    refs_of.unlink()
    with pytest.raises(ReferError, match=r"refcoco is not in .*refs\(unc\).p beside .*jxu124/refcoco in"):
        RefCocoDataset(root, "refcoco", "train")


def test_a_damaged_parquet_file_is_named(tmp_path):
    write_parquet(tmp_path / "refcoco", UNC, in_list=False)
    file = next((tmp_path / "refcoco").glob("train*"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ReferError, match=r"train-.*parquet is damaged"):
        RefCocoDataset(tmp_path, "refcoco", "train")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"split": "train"}]), file)
    with pytest.raises(ReferError, match=r"train-.*parquet is damaged"):
        RefCocoDataset(tmp_path, "refcoco", "train")


def test_missing_images_are_counted_and_named_and_a_split_without_images_is_refused(root):
    write_set(root, "refcoco", "unc", dict.fromkeys(UNC, "val"))
    (root / IMAGES / NAMES[1]).unlink()
    data = RefCocoDataset(root, "refcoco", "val")
    assert (len(data), data.missing_images, data.num_left_out) == (4, [NAMES[1]], 4)
    assert data.note == (f"refcoco-unc-val: 1 images missing in {root / IMAGES} and 4 expressions left out: {NAMES[1]}")
    assert np.array_equal(data.mask(2), OVERLAP)
    (root / IMAGES / NAMES[0]).unlink()
    with pytest.raises(ReferError, match=r"none of the images of refcoco-unc-val is in .*; the first: COCO_train"):
        RefCocoDataset(root, "refcoco", "val")


def test_an_image_of_another_size_is_refused(root):
    Image.fromarray(np.zeros((HEIGHT, WIDTH + 1, 3), np.uint8)).save(root / IMAGES / NAMES[0])
    with pytest.raises(ReferError, match="expected 20 x 30 pixels as the annotations say, got 20 x 31"):
        RefCocoDataset(root, "refcoco", "val").image(0)


@pytest.mark.parametrize(("orientation", "stored"), [(1, (20, 30)), (6, (20, 30)), (6, (30, 20))])
def test_an_image_is_taken_in_the_orientation_of_its_annotation(root, orientation, stored):
    file = root / IMAGES / NAMES[0]
    pixels, tags = np.random.default_rng(0).integers(0, 256, (*stored, 3), dtype=np.uint8), Image.Exif()
    tags[0x0112] = orientation
    Image.fromarray(pixels).save(file, format="PNG", exif=tags)
    expected = pixels if stored == (20, 30) else np.rot90(pixels, -1)
    assert np.array_equal(RefCocoDataset(root, "refcoco", "train").image(0), expected)


def test_overlapping_polygons_merge_and_add_up_in_lisas_convention(root):
    assert np.array_equal(RefCocoDataset(root, "refcoco", "val").mask(0), OVERLAP)
    mask = RefCocoDataset(root, "refcoco", "val", compat="lisa").mask(0)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, box(1, 2, 10).astype(int) + box(7, 8, 10))
    assert mask.max() == 2
    with pytest.raises(MaskError, match="expected compat to be one of plain, lisa, got 'gsva'"):
        RefCocoDataset(root, "refcoco", "val", compat="gsva")


def test_every_form_of_a_segmentation_is_decoded():
    counts = [0]
    for value in RING.T.reshape(-1):
        if bool(len(counts) % 2) == bool(value):
            counts.append(0)
        counts[-1] += 1
    loose = {"size": [HEIGHT, WIDTH], "counts": counts}
    hole = [5, 3, 15, 3, 15, 13, 5, 13, 5, 6, 8, 6, 8, 10, 12, 10, 12, 6, 5, 6]  # a ring as one cut polygon
    assert np.array_equal(decode_segmentation(encode_mask(RING), HEIGHT, WIDTH), RING)
    assert np.array_equal(decode_segmentation(loose, HEIGHT, WIDTH), RING)
    assert np.array_equal(decode_segmentation([loose, encode_mask(box(6, 8, 4))], HEIGHT, WIDTH), box(3, 5, 10))
    assert np.array_equal(
        decode_segmentation([hole], HEIGHT, WIDTH), coco.decode(coco.frPyObjects([hole], HEIGHT, WIDTH))[..., 0] == 1
    )
    assert not decode_segmentation([hole], HEIGHT, WIDTH)[7:9, 9:11].any()
    assert decode_segmentation([hole], HEIGHT, WIDTH)[11, 6]
    for compat in ("plain", "lisa"):
        empty = decode_segmentation([], HEIGHT, WIDTH, compat)
        assert (empty.shape, empty.sum()) == ((HEIGHT, WIDTH), 0)
        assert not decode_segmentation([[1, 1, 9, 9]], HEIGHT, WIDTH, compat).any()  # a line, not a box
    rng = np.random.default_rng(0)
    for _ in range(30):
        mask = rng.random(rng.integers(1, 40, 2)) < rng.random() ** 2
        assert np.array_equal(decode_mask(json.loads(json.dumps(encode_mask(mask)))), mask)


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        ({"size": [HEIGHT, WIDTH], "counts": ""}, "add up to 20 x 30"),
        ({"size": [HEIGHT, WIDTH], "counts": "zzzz"}, "add up to 20 x 30"),
        ({"size": [HEIGHT, WIDTH], "counts": [3, 4]}, "add up to 20 x 30"),
        ({"size": [HEIGHT, WIDTH]}, "expected counts as text"),
        ({"size": [WIDTH, HEIGHT], "counts": "0"}, r"of size \[20, 30\], got size \[30, 20\]"),
        ({"counts": "0"}, "got size None"),
        ([[0, 0, 1e9, 0, 1e9, 1e9]], "expected a polygon on an image of 20 x 30"),
        ([[0, 0, float("nan"), 0, 1, 1]], "expected a polygon on an image of 20 x 30"),
        (["polygon"], "expected a polygon"),
        ("polygon", "expected polygons or run lengths, got str"),
        (None, "expected polygons or run lengths, got NoneType"),
    ],
)
def test_invalid_segmentations_are_refused(segmentation, expected):
    with pytest.raises(MaskError, match=expected):
        decode_segmentation(segmentation, HEIGHT, WIDTH)


def write_grefcoco(root):
    """gRefCOCO with one object, two objects, and none in either spelling."""
    (root / "grefcoco").mkdir()
    sentences = [{"sent_id": 0, "sent": "the things", "raw": "", "tokens": []}]
    refs = [
        {"ref_id": number, "image_id": 12, "ann_id": ann_id, "split": "val", "no_target": ann_id in ([-1], -1)}
        | {"sentences": [{**sentences[0], "sent_id": number}], "file_name": "x"}
        for number, ann_id in enumerate(([103], [103, 104], [-1], -1))
    ]
    (root / "grefcoco" / "grefs(unc).json").write_text(json.dumps(refs))
    (root / "grefcoco" / "instances.json").write_text(json.dumps(instances()))


def test_an_expression_of_grefcoco_refers_to_several_objects_or_to_none(root, capsys):
    write_grefcoco(root)
    data = RefCocoDataset(root, "gRefCOCO", "val")
    assert data.name == "grefcoco-unc-val"
    masks = [data[index].masks[0] for index in range(len(data))]
    nothing = np.zeros((HEIGHT, WIDTH), bool)
    for mask, expected in zip(masks, (RING, RING | MASKS[104], nothing, nothing), strict=True):
        assert mask.dtype == bool
        assert np.array_equal(mask, expected)
    assert main(["--data", str(root)]) == 0
    assert "  val   4 refs (-), 4 expressions (-), 1 images (-)\n" in capsys.readouterr().out
    (root / "grefcoco" / "grefs(unc).json").write_text("[{")
    with pytest.raises(ReferError, match=r"grefs\(unc\)\.json is damaged"):
        RefCocoDataset(root, "grefcoco", "val")
    ref = {"ref_id": 1, "image_id": 12, "ann_id": [103, 9], "split": "val", "sentences": []}
    (root / "grefcoco" / "grefs(unc).json").write_text(json.dumps([ref]))
    with pytest.raises(ReferError, match=r"refs\(unc\)\.json refers to annotation 9, which"):
        RefCocoDataset(root, "grefcoco", "val")


def test_the_report_lists_files_found_and_missing_with_their_counts(root, tmp_path, capsys):
    (root / IMAGES / NAMES[1]).unlink()
    write_parquet(root / "refcoco" / "data", UNC, in_list=False)
    assert main(["--data", str(root), "--out", str(tmp_path / "report.json")]) == 0
    output = capsys.readouterr().out
    assert f"images: 1 files in {root / IMAGES}" in output
    assert "refcoco, partition unc, REFER form: found" in output
    assert "refcoco, partition unc, Parquet form: found" in output
    assert "  train 1 refs (42,404), 2 expressions (120,624), 1 images (16,994)\n" in output
    assert f"  testB 1 refs (1,810), 2 expressions (5,095), 1 images (750); 1 images missing: {NAMES[1]}\n" in output
    assert f"refcocog, partition google, REFER form: missing\n  expected {root}/refcocog/refs(google).p\n" in output
    assert f"expected {root}/refcoco+/data/*.parquet (of jxu124/refcocoplus)" in output
    assert "usable: refcoco unc train, refcoco unc val, refcoco+ unc train" in output
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["rows"] == inspect(root, root / IMAGES)
    assert "refcoco unc testB" not in written["usable"]


def test_the_report_fails_if_no_split_is_usable(tmp_path, capsys):
    assert main(["--data", str(tmp_path)]) == 2
    output = capsys.readouterr().out
    assert f"expected images in {tmp_path / IMAGES}" in output
    for name in ("refcoco/refs(unc).p", "refcoco+/refs(unc).p", "refcocog/refs(umd).p", "refcocog/instances.json"):
        assert f"expected {tmp_path / name}" in output
    assert "usable: nothing" in output
    write_set(tmp_path, "refcoco", "unc", UNC)
    assert main(["--data", str(tmp_path)]) == 2  # expressions without an image
    assert "1 images missing" in capsys.readouterr().out
    with pytest.raises(ReferError, match="expected a folder with refcoco"):
        main(["--data", str(tmp_path / "nowhere")])


def test_published_counts_add_up_to_the_published_totals():
    totals = {"refcoco": (19994, 142210), "refcoco+": (19992, 141564), "refcocog": (25799, 95010)}
    for dataset, (images, expressions) in totals.items():
        own = [counts for key, counts in PUBLISHED.items() if key[0] == dataset and key[1] != "google"]
        assert sum(counts[2] for counts in own) == images
        assert sum(counts[1] for counts in own) == expressions


def test_images_may_be_in_another_folder(root, tmp_path):
    write_images(tmp_path / "coco")
    for name in NAMES:
        (root / IMAGES / name).unlink()
    data = RefCocoDataset(root, "refcoco", "val", images=tmp_path / "coco")
    assert data[0].source == NAMES[0]
    assert data.image_dir == tmp_path / "coco"
