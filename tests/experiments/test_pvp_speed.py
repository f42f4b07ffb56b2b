"""The benchmark measures both sides in one run, and both do the same work."""

import json

import pytest
import torch

from common.command import run
from experiments.benchmarks import pvp_speed
from experiments.benchmarks.pvp_speed import Args, Training
from vlm import checkpoint
from vlm.presets import build


@pytest.fixture
def tiny(tmp_path):
    checkpoint.save(build("tiny", 1), tmp_path / "tiny", {})
    return tmp_path / "tiny"


@pytest.fixture(autouse=True)
def threads():
    """The benchmark sets torch's threads for its process; give them back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_benchmark_times_both_sides_and_writes_its_rows(tiny, tmp_path):
    out = tmp_path / "bench.json"
    sizes = ["--images", "2", "--questions", "3", "--grid", "4", "--rounds", "1", "--sample", "3", "--threads", "1"]
    assert run(lambda: pvp_speed.main(["--out", str(out), "--checkpoint", str(tiny), *sizes])) == 0
    training, reconstruction = json.loads(out.read_text())["rows"]
    for row in (training, reconstruction):
        assert row["ratio"] == pytest.approx(row["ours"] / row["rival"], rel=0.05)
        assert row["model"] == checkpoint.content_hash(tiny)
        assert row["threads"] == 1
    assert training["ours"] == max(training["ours_mask"], training["ours_cache"])
    assert reconstruction["answered_alike"] == 1
    assert reconstruction["ours_seconds_a_grid"] == pytest.approx(16 / reconstruction["ours"], abs=0.01)


def test_all_sides_of_training_find_the_same_loss_for_the_same_question(tiny, tmp_path):
    step = Training(Args(out=tmp_path / "b.json", checkpoint=tiny, images=3, questions=1, bf16=False))
    separate = step.separate()
    assert step.packed("mask") == pytest.approx(separate, abs=1e-5)
    assert step.packed("cache") == pytest.approx(separate, abs=1e-5)


@pytest.mark.parametrize(("option", "told"), [("--rounds", "at least 1, got 0"), ("--grid", "at least 1, got 0")])
def test_zero_counts_are_refused(option, told, tmp_path, capsys):
    assert run(lambda: pvp_speed.main(["--out", str(tmp_path / "b.json"), option, "0"])) == 2
    assert f"{option} must be {told}" in capsys.readouterr().err


def test_a_grid_finer_than_the_image_is_refused(tmp_path, capsys):
    assert run(lambda: pvp_speed.main(["--out", str(tmp_path / "b.json"), "--grid", "161"])) == 2
    assert "--grid must be at most 160, got 161: finer than the image" in capsys.readouterr().err
