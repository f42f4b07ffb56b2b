"""The compiled graph gives the scores of the model, in every precision, for every preset."""

import numpy as np
import pytest
import torch

from vlm.choices import ChoiceScorer
from vlm.compiled import CompiledScorer, native_precision
from vlm.presets import build
from vlm.prompts import action_prompt

ACTIONS = ("noop", "up", "right", "left", "down", "up right", "up left")


def scorer_and_pixels(preset, count=1):
    vlm = build(preset, seed=1)
    frames = np.random.default_rng(0).integers(0, 256, (count, 2, 210, 160, 3), dtype=np.uint8)
    return ChoiceScorer(vlm, action_prompt("Pong", ACTIONS), ACTIONS, keep_text=True), vlm.pixels(frames)


@pytest.mark.parametrize(("preset", "count"), [("tiny", 1), ("nano", 1), ("nano", 3)])
def test_in_float32_it_gives_the_scores_of_the_model(preset, count):
    scorer, pixels = scorer_and_pixels(preset, count)
    with torch.no_grad():
        expected = scorer.log_probs(pixels)
    compiled = CompiledScorer(scorer, pixels, precision="f32")
    assert (compiled.log_probs(pixels) - expected).abs().max() < 1e-4
    with torch.no_grad():
        assert torch.equal(scorer.log_probs(pixels), expected), "compiling leaves the model as it was"


@pytest.mark.parametrize("preset", ["tiny", "nano"])
def test_in_the_processors_own_precision_scores_are_near_those_of_the_model(preset):
    scorer, pixels = scorer_and_pixels(preset)
    compiled = CompiledScorer(scorer, pixels)
    assert compiled.precision == native_precision()
    with torch.no_grad():
        assert (compiled.log_probs(pixels) - scorer.log_probs(pixels)).abs().max() < 0.3


def test_the_compiled_graph_reads_new_pixels_every_time():
    scorer, pixels = scorer_and_pixels("tiny")
    compiled = CompiledScorer(scorer, pixels, precision="f32")
    first = compiled.log_probs(pixels)
    assert not torch.equal(compiled.log_probs(torch.zeros_like(pixels)), first)
    assert torch.equal(compiled.log_probs(pixels), first)
