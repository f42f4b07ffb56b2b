"""The fast answers for all cells of a grid are the free ones; the grid is the one that a checkpoint was trained on."""

import dataclasses
import json

import numpy as np
import pytest

from common.errors import UserError
from pretrain import pvp_prediction
from pretrain.pixel_training import PixelTraining
from pretrain.pvp_prediction import grid_coordinates, predict_grid, predict_pixels
from pretrain.pvp_questions import PixelPromptFormat
from vlm import checkpoint
from vlm.presets import build
from vlm.released_checkpoints import RELEASED_POLICY, RELEASED_PVP


def draw(vlm):
    """Random rectangles, as a model's frames."""
    rng = np.random.default_rng(3)
    image = np.full((210, 160, 3), rng.integers(0, 256, 3), np.uint8)
    for top, left in rng.integers(0, 120, (12, 2)):
        image[top : top + 40, left : left + 30] = rng.integers(0, 256, 3)
    return np.stack([image] * vlm.history)


@pytest.mark.parametrize("released", [RELEASED_POLICY, RELEASED_PVP], ids=lambda path: path.name)
def test_answers_and_expected_values_are_those_of_free_greedy_decoding(released):
    vlm = checkpoint.load(released)
    frames, prompt_format = draw(vlm), PixelPromptFormat.from_model(vlm)
    free = predict_pixels(vlm, frames, grid_coordinates(12, 9), prompt_format, chunk=50)
    fast = predict_grid(vlm, frames, 12, 9, prompt_format)
    parsed = (free.greedy >= 0).all(1)
    assert parsed.mean() > 0.9
    assert len(np.unique(free.greedy, axis=0)) > 4
    assert np.array_equal(fast.greedy[parsed], free.greedy[parsed])
    assert np.abs(fast.expected - free.expected)[parsed].max() < 0.01


def test_every_answer_has_the_form_even_of_a_model_that_never_learned_it():
    vlm = build("tiny")
    found = predict_grid(vlm, draw(vlm), 5, 4, PixelPromptFormat.from_model(vlm))
    assert found.greedy.shape == found.expected.shape == (20, 3)
    assert found.greedy.min() >= 0
    assert found.greedy.max() <= 255


def test_a_cell_takes_three_passes_of_the_decoder():
    vlm, tokens = build("tiny"), []
    vlm.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: tokens.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    predict_grid(vlm, draw(vlm), 7, 6, PixelPromptFormat.from_model(vlm))
    # the image with its text, the starts of rows, and for each cell the rest of the question and two more passes
    assert tokens[2:] == [(42, 2)] * 3


def test_where_numbers_are_split_it_decodes_freely(monkeypatch):
    vlm = build("tiny")
    prompt_format = dataclasses.replace(PixelPromptFormat.from_model(vlm), number_token_ids=None)
    monkeypatch.setattr(pvp_prediction, "fill_template", None)
    frames = draw(vlm)
    free = predict_pixels(vlm, frames, grid_coordinates(2, 2), prompt_format, chunk=4)
    found = predict_grid(vlm, frames, 2, 2, prompt_format)
    assert np.array_equal(found.greedy, free.greedy)
    assert found.expected is None


PVP = {"arguments": {"grid": "32", "order": "x,y", "size": [105, 80]}}


@pytest.mark.parametrize(
    ("training", "found"),
    [
        (PVP, PixelTraining("32", "x,y", (105, 80))),
        ({"arguments": {"pvp_weight": 0.1, "pvp_config": "with-play"}}, PixelTraining("32", size=(210, 160))),
        ({"arguments": {"pvp_weight": 0.2, "grid": "64", "size": None}}, PixelTraining("64")),
        ({"arguments": {"pvp_weight": 0.0, "pvp_config": "with-play"}, "started_from": PVP}, PixelTraining.find(PVP)),
        ({"arguments": {"pvp_weight": 0, "grid": "64"}, "started_from": PVP}, PixelTraining.find(PVP)),
        ({"arguments": {"mask": "points", "grid": 64}, "started_from": PVP}, PixelTraining.find(PVP)),
        ({"arguments": {"grid": 64, "pvp_weight": 0.2, "pvp_config": "policy"}}, PixelTraining("32", size=(210, 160))),
        ({"arguments": {"pvp_weight": 0.0}, "started_from": None}, None),
        ({"games": ["Pong"]}, None),
        ({}, None),
    ],
)
def test_the_grid_is_that_of_the_last_training_on_pixel_values(training, found):
    assert PixelTraining.find(json.loads(json.dumps(training))) == found


def test_released_checkpoints_tell_what_they_were_trained_on(tmp_path):
    for released, grid in ((RELEASED_POLICY, "8px"), (RELEASED_PVP, "9px")):
        assert PixelTraining.of_checkpoint(released) == PixelTraining(grid, size=(210, 160))
    checkpoint.save(build("tiny"), tmp_path / "plain", {})
    with pytest.raises(UserError, match="expected a checkpoint trained on pixel values"):
        PixelTraining.of_checkpoint(tmp_path / "plain")
