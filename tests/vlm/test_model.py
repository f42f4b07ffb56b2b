"""Frames reach the encoder whole: every pixel, every frame of history, and always in the same way."""

import hashlib

import numpy as np
import pytest
import torch

from vlm.errors import VlmError
from vlm.presets import build

TINY = build("tiny")


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()[:16]


def test_preprocessing_has_not_changed():
    frames = noise((1, 2, 210, 160, 3))
    assert digest(frames) == "185bfe76c4dbac46"
    assert digest(TINY.pixels(frames).numpy()) == "5435845b1870849f"


def test_pixels_are_the_present_frame_and_what_changed_with_black_below_and_nothing_resized():
    frames = noise((2, 2, 210, 160, 3))
    pixels = TINY.pixels(frames)
    assert pixels.shape == (2, 6, 216, 168)
    whole = (pixels * 256).numpy().transpose(0, 2, 3, 1)  # [B, 216, 168, 6]
    assert np.array_equal(whole[:, :210, :160, :3], frames[:, 1])
    assert np.array_equal(whole[:, :210, :160, 3:], frames[:, 1].astype(int) - frames[:, 0])
    assert (whole[:, 210:] == 0).all()
    assert (whole[:, :, 160:] == 0).all()


def test_half_precision_loses_no_pixel_value():
    frames = noise((1, 2, 210, 160, 3))
    with torch.autocast("cpu", torch.bfloat16):
        half = TINY.pixels(frames)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half.float(), TINY.pixels(frames))


@pytest.mark.parametrize(("height", "rows"), [(210, 216), (214, 216), (216, 240), (230, 240), (250, 264)])
def test_games_of_nearly_one_height_share_a_shape(height, rows):
    assert TINY.pixels(noise((1, 2, height, 160, 3))).shape[2] == rows


def test_a_frame_becomes_9_image_tokens():
    assert TINY.image_embeddings(TINY.pixels(noise((1, 2, 214, 160, 3)))).shape[:2] == (1, 9)


@torch.no_grad()
@pytest.mark.parametrize("place", [(0, 0), (100, 81), (0, 159), (213, 0), (213, 159)])
@pytest.mark.parametrize("age", [0, 1])
def test_one_pixel_of_any_frame_of_history_changes_what_the_decoder_reads(place, age):
    frames = np.zeros((1, 2, 214, 160, 3), dtype=np.uint8)
    dark = TINY.image_embeddings(TINY.pixels(frames))
    frames[0, age, *place] = 255
    assert (TINY.image_embeddings(TINY.pixels(frames)) - dark).abs().max() > 1e-5


@pytest.mark.parametrize("shape", [(1, 1, 210, 160, 3), (2, 210, 160, 3)])
def test_frames_of_another_shape_are_refused(shape):
    with pytest.raises(VlmError, match=r"expected frames uint8\[B, 2, H, W, 3\]"):
        TINY.pixels(noise(shape))


def test_float_frames_are_refused():
    with pytest.raises(VlmError, match=r"got torch\.float32"):
        TINY.pixels(np.zeros((1, 2, 210, 160, 3), dtype=np.float32))
