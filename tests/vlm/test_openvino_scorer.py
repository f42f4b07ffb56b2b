"""The compiled graph gives the log-probabilities of the model, in every precision, for every preset."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from vlm.decoding.candidate_scoring import CandidateScorer
from vlm.decoding.openvino_scorer import OpenVinoScorer, native_precision
from vlm.presets import build
from vlm.prompts import action_prompt

ACTIONS = ("noop", "up", "right", "left", "down", "up right", "up left")


def scorer_and_frames(preset, count=1):
    vlm = build(preset, seed=1)
    frames = np.random.default_rng(0).integers(0, 256, (count, 2, 210, 160, 3), dtype=np.uint8)
    return CandidateScorer(vlm, action_prompt("Pong", ACTIONS), ACTIONS, cache_prompt=True), frames


def model_scores(scorer, frames):
    vlm = scorer.vlm
    return scorer.log_probs(vlm.encode_images(vlm.preprocess(frames))).numpy()


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "count"), [("tiny", 1), ("nano", 1), ("nano", 3)])
def test_in_float32_it_equals_the_model(preset, count):
    scorer, frames = scorer_and_frames(preset, count)
    with torch.no_grad():
        expected = model_scores(scorer, frames)
    compiled = OpenVinoScorer(scorer, frames, precision="f32")
    assert np.abs(compiled.log_probs(frames) - expected).max() < 1e-4
    with torch.no_grad():
        after = model_scores(scorer, frames)
    assert np.array_equal(after, expected), "compiling leaves the model as it was"


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["tiny", "nano"])
def test_in_the_native_precision_it_is_near_the_model(preset):
    scorer, frames = scorer_and_frames(preset)
    compiled = OpenVinoScorer(scorer, frames)
    assert compiled.precision == native_precision()
    with torch.no_grad():
        assert np.abs(compiled.log_probs(frames) - model_scores(scorer, frames)).max() < 0.3


@pytest.mark.slow
def test_the_compiled_graph_reads_new_frames_every_time():
    scorer, frames = scorer_and_frames("tiny")
    compiled = OpenVinoScorer(scorer, frames, precision="f32")
    first = compiled.log_probs(frames)
    assert not np.array_equal(compiled.log_probs(np.zeros_like(frames)), first)
    assert np.array_equal(compiled.log_probs(frames), first)


def test_openvino_sends_no_usage_data_and_leaves_no_file_in_the_home(tmp_path):
    """By default its import starts a thread that sends an event, with a client's number that it keeps in the home."""
    code = (
        "import threading, agents.vlm_agent, openvino.tools.ovc as ovc; print(threading.active_count(), ovc.telemetry)"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    threads, *telemetry = ended.stdout.split()
    assert threads == "1"
    assert "telemetry_stub" in telemetry[0]
    assert not (tmp_path / "intel").exists()
