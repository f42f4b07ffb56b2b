"""The benchmark of masks times all methods on one frame."""

import numpy as np
import pytest
import torch

from experiments.benchmarks import segmentation_speed
from experiments.benchmarks.segmentation_speed import EXPRESSIONS, Args, Predictors
from vlm import checkpoint
from vlm.presets import build
from vlm.segmentation.mask_head import MaskHead
from vlm.segmentation.point_prediction import PointSampler
from vlm.segmentation.referring_segmenter import POINT_GRID


@pytest.fixture
def segmenter(tmp_path):
    """A checkpoint with a mask head and trained on points."""
    vlm = build("tiny", seed=3)
    checkpoint.save(vlm, tmp_path / "segmenter", {POINT_GRID: 8})
    MaskHead.of(vlm, 8).save(tmp_path / "segmenter")
    return tmp_path / "segmenter"


def test_every_method_is_timed(segmenter, benchmark_rows):
    main = segmentation_speed.main
    head, points, oracle = benchmark_rows(main, "--checkpoint", segmenter, "--grid", 5, "--rounds", 2)
    assert min(row["candidate"] for row in (head, points, oracle)) > 0
    assert {row["model"] for row in (head, points, oracle)} == {checkpoint.content_hash(segmenter)}
    assert points["baseline"] == oracle["baseline"] == head["candidate"]
    assert (head["n"], points["n"], oracle["n"]) == (2, 2, 2)


def test_points_may_be_those_of_another_model(segmenter, tmp_path, benchmark_rows):
    checkpoint.save(build("tiny", seed=4), tmp_path / "points", {POINT_GRID: 5})
    arguments = ["--checkpoint", segmenter, "--points", tmp_path / "points", "--grid", 5, "--rounds", 1]
    head, points, _ = benchmark_rows(segmentation_speed.main, *arguments)
    assert head["model"] == checkpoint.content_hash(segmenter)
    assert points["model"] == checkpoint.content_hash(tmp_path / "points")
    assert points["trained_on_points"]


def test_all_methods_answer_the_same_expression(segmenter, tmp_path):
    predictors = Predictors(Args(out=tmp_path / "b.json", checkpoint=segmenter, grid=6))
    assert 1 <= len(predictors.text_answer("the red ghost")) <= 2
    head, points = (predictors.mask(one, "the red ghost") for one in (predictors.head, predictors.points))
    assert head.shape == points.shape == (1, 210, 160)
    assert not np.allclose(head, points, atol=1e-3)


def test_oracle_points_give_the_object_and_sample_few_points(segmenter, tmp_path, monkeypatch):
    predictors, sampled = Predictors(Args(out=tmp_path / "b.json", checkpoint=segmenter, grid=32)), []
    work = PointSampler.point_logits
    monkeypatch.setattr(
        PointSampler, "point_logits", lambda self, points: sampled.append(len(points)) or work(self, points)
    )
    logits = predictors.oracle_logits(EXPRESSIONS[0])
    assert sampled[0] == 16 * 16
    assert sum(sampled) < 32 * 32 / 2
    assert torch.equal(logits > 0, predictors.truths[0])
    assert predictors.truths[0].any()


def test_zero_counts_are_refused(refusal):
    assert "--grid must be at least 1, got 0" in refusal(segmentation_speed.main, "--grid", 0)
