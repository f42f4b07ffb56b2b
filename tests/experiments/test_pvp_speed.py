"""The benchmark of pixel value prediction compares equal work."""

import pytest

from experiments.benchmarks import pvp_speed
from experiments.benchmarks.pvp_speed import Args, Training
from vlm import checkpoint


def test_training_and_reconstruction_are_timed(tiny, benchmark_rows):
    sizes = ["--images", 2, "--questions", 3, "--grid", 4, "--rounds", 1, "--sample", 3]
    training, reconstruction = benchmark_rows(pvp_speed.main, "--checkpoint", tiny, *sizes)
    for row in (training, reconstruction):
        assert row["candidate"] > 0
        assert row["baseline"] > 0
        assert row["model"] == checkpoint.content_hash(tiny)
    assert reconstruction["same_answer"] == 1


def test_packed_and_separate_training_have_the_same_loss_for_the_same_question(tiny, tmp_path):
    step = Training(Args(out=tmp_path / "b.json", checkpoint=tiny, images=3, questions=1, bf16=False))
    separate = step.separate()
    assert step.packed("mask") == pytest.approx(separate, abs=1e-5)
    assert step.packed("cache") == pytest.approx(separate, abs=1e-5)


def test_a_grid_of_no_cells_or_finer_than_the_image_is_refused(refusal):
    assert "--grid must be at least 1, got 0" in refusal(pvp_speed.main, "--grid", 0)
    assert "--grid must be at most 160, got 161: finer than the image" in refusal(pvp_speed.main, "--grid", 161)
