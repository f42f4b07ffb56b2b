"""The benchmark of a training step compares the same step of two revisions, and refuses one that is not there."""

import pytest
import torch

from experiments.benchmarks import pvp_step_speed
from experiments.benchmarks.pvp_step_speed import Args, Step


def test_a_step_repeats_itself_and_reports_loss_and_norm(tmp_path):
    step = Step(Args(out=tmp_path / "b.json", preset="tiny-clip", images=2), questions=3)
    first, second = step(False), step(False)
    assert first["loss"] == pytest.approx(second["loss"], abs=1e-5)  # the learning rate is 0
    assert first["norm"] == pytest.approx(second["norm"], rel=1e-4)
    assert first["loss"] > 1
    assert first["norm"] > 0


def test_the_setup_of_the_earlier_revision_loads_as_plain_tensors(tmp_path):
    step = Step(Args(out=tmp_path / "b.json", preset="tiny-clip", images=2), questions=3)
    torch.save(step.setup(), tmp_path / "setup.pt")
    setup = torch.load(tmp_path / "setup.pt", weights_only=True)
    assert setup["batch"]["read"].shape[:2] == (2, 3)
    assert setup["weights"].keys() == step.vlm.model.state_dict().keys()


def test_a_revision_that_is_not_there_is_refused(refusal):
    said = refusal(pvp_step_speed.main, "--preset", "tiny-clip", "--questions", 2, "--baseline-revision", "0000000")
    assert "expected --baseline-revision of this repository, got '0000000': fetch it" in said


def test_no_questions_are_refused(refusal):
    assert "expected --questions of at least 1" in refusal(pvp_step_speed.main, "--questions", 0)
