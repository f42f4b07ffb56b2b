"""Metrics agree with hand arithmetic, with the published definitions, and with a file of predictions."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from pretrain.referring.coco_masks import MaskError, decode_mask, decode_segmentation, encode_mask
from pretrain.referring.evaluation import score_predictions
from pretrain.referring.mask_predictions import read_predictions, write_predictions
from pretrain.referring.refcoco import RefCocoDataset
from pretrain.referring.refer_files import IMAGES
from pretrain.referring.segmentation_metrics import (
    PRECISION_THRESHOLDS,
    Confusion,
    ciou_interval,
    confusion,
    segmentation_metrics,
)


def row_mask(text):
    """A mask of one row from text: '.' is 0, '#' is 1."""
    return np.array([[character == "#" for character in text]])


def prediction(sent_id, ref_id, mask):
    return {"sent_id": sent_id, "ref_id": ref_id, "mask": None if mask is None else encode_mask(mask)}


def lisa_by_definition(pairs):
    """LISA's `intersectionAndUnionGPU` and `validate`, with counts of values in place of torch's."""

    def histc(values):
        return np.histogram(values, bins=2, range=(0, 1))[0]  # values outside the range are not counted, as in torch

    inside = outside = ratios = 0.0
    for prediction, target in pairs:
        prediction = prediction.astype(int)
        prediction[target == 255] = 255
        both = histc(prediction[prediction == target])
        union = histc(prediction) + histc(target) - both
        inside, outside = inside + both, outside + union
        ratio = both / (union + 1e-5)
        ratio[union == 0] += 1.0
        ratios = ratios + ratio
    return (inside / (outside + 1e-10))[1], (ratios / (len(pairs) + 1e-5))[1]


def plain_by_definition(pairs):
    """Pixel by pixel, with Python's sets."""
    items = []
    for prediction, target in pairs:
        a, b = ({tuple(place) for place in np.argwhere(mask)} for mask in (prediction, target))
        items.append((len(a & b), len(a | b), len(b), len(a)))
    ratios = [1.0 if not union else both / union for both, union, _, _ in items]
    rejected = [area == 0 for _, _, _, area in [item for item in items if not item[2]]]
    found = [area > 0 for _, _, _, area in [item for item in items if item[2]]]
    return {
        "ciou": sum(item[0] for item in items) / sum(item[1] for item in items),
        "giou": sum(ratios) / len(ratios),
        "miou": sum(0.0 if not union else both / union for both, union, _, _ in items) / len(items),
        **{f"p{round(100 * x)}": sum(ratio >= x for ratio in ratios) / len(ratios) for x in PRECISION_THRESHOLDS},
        "n_acc": sum(rejected) / len(rejected),
        "t_acc": sum(found) / len(found),
    }


def random_pairs(seed, count=200, max_value=1):
    """Predictions near their targets, some of either empty, of many sizes; target values up to `max_value`."""
    rng, pairs = np.random.default_rng(seed), []
    for _ in range(count):
        shape = rng.integers(1, 12, 2)
        target = (rng.random(shape) < rng.choice([0, 0.3, 0.9])).astype(np.uint8) * rng.integers(
            1, max_value + 1, shape
        )
        prediction = (target > 0) ^ (rng.random(shape) < rng.choice([0, 0.1, 0.5]))
        pairs.append((prediction & (rng.random() > 0.1), target.astype(np.uint8)))
    return pairs


def test_metrics_match_hand_arithmetic():
    pairs = [
        (row_mask("####......"), row_mask("##........")),  # 2 of 4
        (row_mask(".#########"), row_mask("##########")),  # 9 of 10
        (row_mask("#........."), row_mask(".#........")),  # 0 of 2
    ]
    found = segmentation_metrics(confusion(prediction, target) for prediction, target in pairs)
    assert found == {
        "ciou": 11 / 16,
        "giou": pytest.approx(1.4 / 3),
        "miou": pytest.approx(1.4 / 3),
        "p50": 2 / 3,
        "p60": 1 / 3,
        "p70": 1 / 3,
        "p80": 1 / 3,
        "p90": 1 / 3,
        "n": 3,
        "missing": 0,
        "t_acc": 1.0,
    }
    assert confusion(*pairs[0]) == Confusion(2, 4, 2, 4)


def test_an_overlap_of_exactly_the_threshold_counts():
    for tenths in (5, 6, 7, 8, 9):
        prediction, target = row_mask("#" * tenths + "." * (10 - tenths)), row_mask("#" * 10)
        assert segmentation_metrics([confusion(prediction, target)])[f"p{tenths}0"] == 1


def test_the_interval_of_ciou_is_that_of_a_ratio_of_sums_over_resampled_expressions():
    same = [Confusion(3, 4, 4, 3)] * 10
    assert ciou_interval(same) == {"ciou_low": 0.75, "ciou_high": 0.75}
    items = [Confusion(0, 100, 100, 0), *[Confusion(1, 1, 1, 1)] * 9]  # the large one is missed in 0.9 ** 10 of samples
    found = ciou_interval(items)
    assert found["ciou_high"] == 1.0
    assert found["ciou_low"] == pytest.approx(7 / 307, abs=0.01)  # it is drawn three times, or twice
    assert ciou_interval([Confusion(0, 0, 0, 0)] * 2) == {"ciou_low": 1.0, "ciou_high": 1.0}


def test_large_objects_weigh_most_in_ciou_and_not_in_giou():
    large, small = np.ones((10, 10), bool), row_mask("#.")
    found = segmentation_metrics([confusion(large, large), confusion(~small, small)])
    assert found["ciou"] == 100 / 102
    assert found["giou"] == 0.5


def test_empty_targets_and_empty_or_missing_predictions():
    empty, some = row_mask("...."), row_mask("##..")
    assert confusion(empty, empty) == Confusion(0, 0, 0, 0)
    assert confusion(None, some) == Confusion(0, 2, 2, 0, missing=True)
    rightly = segmentation_metrics([confusion(empty, empty)])
    assert (rightly["giou"], rightly["miou"], rightly["ciou"], rightly["p90"]) == (1, 0, 1, 1)
    assert rightly["n_acc"] == 1
    assert "t_acc" not in rightly
    found = segmentation_metrics(
        [confusion(some, some), confusion(None, some), confusion(empty, empty), confusion(some, empty)]
    )
    assert found["ciou"] == 2 / 6  # 2 right, 2 missed, none, 2 false positives
    assert found["giou"] == 2 / 4
    assert found["miou"] == 1 / 4
    assert (found["n"], found["missing"], found["n_acc"], found["t_acc"]) == (4, 1, 0.5, 0.5)
    assert segmentation_metrics([confusion(empty, empty, "lisa")], "lisa")["ciou"] == 0  # 0 / 1e-10
    assert segmentation_metrics([confusion(empty, empty, "lisa")], "lisa")["giou"] == 1 / (1 + 1e-5)


def test_a_perfect_prediction_of_overlapping_polygons_is_imperfect_in_lisas_convention_only():
    squares = [[2, 1, 12, 1, 12, 11, 2, 11], [8, 7, 18, 7, 18, 17, 8, 17]]  # 10 x 10 each, 4 x 4 in common
    prediction = decode_segmentation(squares, 20, 20)
    plain = confusion(prediction, decode_segmentation(squares, 20, 20))
    lisa = confusion(prediction, decode_segmentation(squares, 20, 20, "lisa"), "lisa")
    assert segmentation_metrics([plain])["ciou"] == 1
    assert (lisa.intersection, lisa.union) == (168, 184)
    assert segmentation_metrics([lisa], "lisa")["ciou"] == pytest.approx(0.913, abs=5e-4)
    summed = decode_segmentation(squares, 20, 20, "lisa")
    assert (
        segmentation_metrics([confusion(prediction, summed)])["ciou"] == 1
    )  # plain takes every value but 0 for the target


@pytest.mark.parametrize("seed", range(3))
def test_plain_metrics_agree_with_their_definitions(seed):
    pairs = random_pairs(seed)
    found = segmentation_metrics(confusion(prediction, target.astype(bool)) for prediction, target in pairs)
    assert {name: found[name] for name in plain_by_definition(pairs)} == pytest.approx(plain_by_definition(pairs))
    assert found["giou"] > found["miou"]  # some are empty


@pytest.mark.parametrize("seed", range(3))
def test_lisa_metrics_agree_with_lisas_own_code(seed):
    pairs = random_pairs(seed, max_value=3)
    pairs[5][1][:1] = 255
    found = segmentation_metrics((confusion(prediction, target, "lisa") for prediction, target in pairs), "lisa")
    assert (found["ciou"], found["giou"]) == pytest.approx(lisa_by_definition(pairs), rel=1e-12)
    assert found["ciou"] < segmentation_metrics(confusion(prediction, target) for prediction, target in pairs)["ciou"]


def test_invalid_masks_are_refused():
    target = row_mask("##..")
    with pytest.raises(MaskError, match=r"expected a prediction bool\[1, 4\], got float64\[1, 4\]"):
        confusion(target.astype(float), target)
    with pytest.raises(MaskError, match=r"expected a prediction bool\[1, 4\], got bool\[1, 3\]"):
        confusion(target[:, :3], target)
    with pytest.raises(MaskError, match=r"expected a target bool\[H, W\] or uint8\[H, W\], got float64"):
        confusion(target, target.astype(float))
    with pytest.raises(MaskError, match="expected at least one expression to score, got none"):
        segmentation_metrics([])
    with pytest.raises(MaskError, match="expected compat to be one of plain, lisa, got 'other'"):
        confusion(target, target, "other")


@pytest.fixture
def data(tmp_path):
    """Thirty expressions of ten objects, each of two squares that overlap."""
    rng, size = np.random.default_rng(1), (24, 32)
    (tmp_path / IMAGES).mkdir(parents=True)
    (tmp_path / "refcoco").mkdir()
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / IMAGES / "a.png")
    annotations, refs = [], []
    for number in range(10):
        top, left = (int(place) for place in rng.integers(0, 12, 2))
        squares = [[x, y, x + 6, y, x + 6, y + 6, x, y + 6] for x, y in ((left, top), (left + 4, top + 4))]
        annotations.append({"id": number, "segmentation": squares})
        sentences = [{"sent_id": 3 * number + i, "sent": "it"} for i in range(3)]
        row = {"ref_id": number, "ann_id": number, "image_id": 1, "split": "val", "sentences": sentences}
        refs.append(row)
    images = [{"id": 1, "file_name": "a.png", "height": size[0], "width": size[1]}]
    (tmp_path / "refcoco" / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (tmp_path / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs))
    return tmp_path


def counts(answers):
    return [answer.confusion for answer in answers]


@pytest.mark.parametrize("compat", ["plain", "lisa"])
def test_predictions_in_a_file_get_the_same_metrics(data, tmp_path, compat):
    source, rng = RefCocoDataset(data, "refcoco", "val", compat=compat), np.random.default_rng(0)
    masks = [(source.mask(i) > 0) ^ (rng.random((24, 32)) < 0.1) for i in range(len(source))]
    given = [None if i % 7 == 3 else mask for i, mask in enumerate(masks)]
    now = segmentation_metrics((confusion(m, source.mask(i), compat) for i, m in enumerate(given)), compat)
    file = tmp_path / "out" / "predictions.jsonl"
    items = zip(source.expressions, given, strict=True)
    write_predictions(file, (prediction(e.sent_id, e.ref.ref_id, mask) for e, mask in items))
    later = read_predictions(file)
    assert len(later) == 30
    assert segmentation_metrics(counts(score_predictions(source, later, compat)), compat) == now
    assert all(m is None or np.array_equal(decode_mask(later[i]["mask"]), m) for i, m in enumerate(given))
    assert [path.name for path in file.parent.iterdir()] == ["predictions.jsonl"]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert isinstance(lines[0]["mask"]["counts"], str)
    assert lines[3]["mask"] is None
    without = {sent_id: one for sent_id, one in later.items() if one["mask"] is not None}
    # a missing line counts as an empty mask too
    assert segmentation_metrics(counts(score_predictions(source, without, compat)), compat) == now
    assert now["missing"] == 4


def test_a_failing_model_leaves_the_file_as_it_was(tmp_path):
    file = tmp_path / "predictions.jsonl"
    write_predictions(file, [prediction(1, 2, row_mask("##"))])
    before = file.read_bytes()

    def failing():
        yield prediction(3, 4, None)
        raise RuntimeError("the model failed")

    with pytest.raises(RuntimeError, match="the model failed"):
        write_predictions(file, failing())
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_unusable_files_of_predictions_are_refused(data, tmp_path):
    file, source = tmp_path / "predictions.jsonl", RefCocoDataset(data, "refcoco", "val")
    with pytest.raises(MaskError, match="expected a file of predictions"):
        read_predictions(file)
    good = json.dumps({"sent_id": 1, "ref_id": 0, "mask": None})
    for line, expected in (
        ("{", "line 2 is damaged: JSONDecodeError"),
        ('{"sent_id": 5}', "line 2 is damaged: KeyError: 'ref_id'"),
        ('{"sent_id": 5, "ref_id": 0, "mask": {"size": [2, 2], "counts": "zz"}}', "line 2 is damaged: MaskError"),
        ('{"sent_id": 5, "ref_id": 0, "mask": "all"}', "line 2 is damaged: MaskError"),
        (good, "line 2: expression 1 has a second prediction"),
    ):
        file.write_text(f"{good}\n{line}\n")
        with pytest.raises(MaskError, match=expected):
            read_predictions(file)
    with pytest.raises(MaskError, match=r"expected predictions for refcoco-unc-val, got 1 for expressions .* first 99"):
        score_predictions(source, {99: prediction(99, 0, None)})
    with pytest.raises(MaskError, match=r"expected a prediction bool\[24, 32\], got bool\[1, 2\]"):
        score_predictions(source, {0: prediction(0, 0, row_mask("##"))})
    with pytest.raises(MaskError, match=r"expected a mask bool\[H, W\], got float64\[2\]"):
        encode_mask(np.zeros(2))
