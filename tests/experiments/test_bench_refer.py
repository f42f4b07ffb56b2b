"""The benchmark of masks measures all sides in one run, on one model."""

import json

import numpy as np
import pytest
import torch

from agents.command import run
from experiments import bench_refer
from experiments.bench_refer import Args, Sides


@pytest.fixture(autouse=True)
def threads():
    """The benchmark sets torch's threads for its process; give them back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_side_is_timed_and_its_ratio_told(tmp_path):
    words = ["--out", str(tmp_path / "b.json"), "--preset", "tiny", "--grid", "5", "--rounds", "2"]
    assert run(lambda: bench_refer.main(words)) == 0
    head, points = json.loads((tmp_path / "b.json").read_text())["rows"]
    for row in (head, points):
        assert row["ratio"] == pytest.approx(row["ours"] / row["rival"], rel=0.05)
        assert row["model"] == "untrained tiny"
    assert points["rival"] == head["ours"]
    assert (head["n"], points["n"]) == (2, 1)


def test_all_sides_answer_the_same_expression(tmp_path):
    sides = Sides(Args(tmp_path / "b.json", preset="tiny", grid=6))
    assert 1 <= len(sides.say()) <= 2
    assert sides.by_head().shape == sides.by_points().shape == (1, 210, 160)
    assert not np.allclose(sides.by_head(), sides.by_points(), atol=1e-3)


def test_zero_counts_are_refused(tmp_path, capsys):
    assert run(lambda: bench_refer.main(["--out", str(tmp_path / "b.json"), "--grid", "0"])) == 2
    assert "--grid must be at least 1, got 0" in capsys.readouterr().err
