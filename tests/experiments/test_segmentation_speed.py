"""The benchmark of masks measures all sides in one run, on one model."""

import json

import numpy as np
import pytest
import torch

from common.command import run
from experiments.benchmarks import segmentation_speed
from experiments.benchmarks.segmentation_speed import WORDS, Args, Sides
from vlm import checkpoint
from vlm.presets import build
from vlm.segmentation.mask_head import MaskHead
from vlm.segmentation.point_prediction import PointSampler
from vlm.segmentation.referring_segmenter import POINT_GRID


@pytest.fixture(autouse=True)
def threads():
    """The benchmark sets torch's threads for its process; give them back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def taught(tmp_path):
    """A checkpoint that can be asked in both ways."""
    vlm = build("tiny", seed=3)
    checkpoint.save(vlm, tmp_path / "taught", {POINT_GRID: 8})
    MaskHead.of(vlm, 8).save(tmp_path / "taught")
    return tmp_path / "taught"


def test_every_side_is_timed_and_its_ratio_told(taught, tmp_path):
    words = ["--out", str(tmp_path / "b.json"), "--checkpoint", str(taught), "--grid", "5", "--rounds", "2"]
    assert run(lambda: segmentation_speed.main(words)) == 0
    head, points, rightly = json.loads((tmp_path / "b.json").read_text())["rows"]
    for row in (head, points, rightly):
        assert row["ratio"] == pytest.approx(row["ours"] / row["rival"], rel=0.05)
        assert row["model"] == checkpoint.content_hash(taught)
    assert points["rival"] == rightly["rival"] == head["ours"]
    assert (head["n"], points["n"], rightly["n"]) == (2, 2, 2)


def test_points_may_be_asked_of_another_model(taught, tmp_path):
    checkpoint.save(build("tiny", seed=4), tmp_path / "points", {POINT_GRID: 5})
    words = ["--out", str(tmp_path / "b.json"), "--checkpoint", str(taught), "--points", str(tmp_path / "points")]
    assert run(lambda: segmentation_speed.main([*words, "--grid", "5", "--rounds", "1"])) == 0
    head, points, _ = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert head["model"] == checkpoint.content_hash(taught)
    assert points["model"] == checkpoint.content_hash(tmp_path / "points")
    assert points["taught points"]


def test_all_sides_answer_the_same_expression(taught, tmp_path):
    sides = Sides(Args(tmp_path / "b.json", taught, grid=6))
    assert 1 <= len(sides.say("the red ghost")) <= 2
    head, points = sides.by_head("the red ghost"), sides.by_points("the red ghost")
    assert head.shape == points.shape == (1, 210, 160)
    assert not np.allclose(head, points, atol=1e-3)


def test_right_answers_give_the_object_and_are_asked_for_at_few_places(taught, tmp_path, monkeypatch):
    sides, asked = Sides(Args(tmp_path / "b.json", taught, grid=32)), []
    work = PointSampler.ask
    monkeypatch.setattr(PointSampler, "ask", lambda self, places: asked.append(len(places)) or work(self, places))
    odds = sides.by_points_rightly(WORDS[0])
    assert asked[0] == 16 * 16
    assert sum(asked) < 32 * 32 / 2
    assert torch.equal(odds > 0, sides.truths[0])
    assert sides.truths[0].any()


def test_zero_counts_are_refused(tmp_path, capsys):
    assert run(lambda: segmentation_speed.main(["--out", str(tmp_path / "b.json"), "--grid", "0"])) == 2
    assert "--grid must be at least 1, got 0" in capsys.readouterr().err
