"""The benchmark of agent steps times candidate and baseline on the same model and legal answers."""

import numpy as np
import pytest

from experiments.benchmarks import decision_speed
from experiments.benchmarks.decision_speed import constrained_generation
from vlm import checkpoint
from vlm.presets import build
from vlm.prompts import action_prompt


@pytest.mark.slow
def test_candidate_and_baseline_are_timed(tiny, benchmark_rows):
    (row,) = benchmark_rows(decision_speed.main, "--checkpoint", tiny, "--rounds", 20)
    assert row["candidate"] > 0
    assert row["baseline"] > 0
    assert 0 <= row["same_action"] <= 1
    assert row["model"] == checkpoint.content_hash(tiny)


def test_the_baseline_answers_with_legal_actions():
    names, vlm = ("noop", "right fire"), build("tiny", 1)
    answer = constrained_generation(vlm, action_prompt("Carnival", names), names)
    assert answer(np.zeros((vlm.history, 210, 160, 3), np.uint8)) in names


def test_too_few_steps_are_refused(refusal):
    assert "--rounds must be at least 10, got 3" in refusal(decision_speed.main, "--rounds", 3)
