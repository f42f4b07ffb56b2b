"""Preprocessing keeps every pixel of every frame, and does not change."""

import hashlib

import numpy as np
import pytest
import torch

from common.errors import UserError
from vlm import checkpoint
from vlm.layers import StridedPointwiseConv2d
from vlm.presets import build
from vlm.released_checkpoints import RELEASED_POLICY, RELEASED_PVP

TINY = build("tiny")


def noise(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()[:16]


def test_preprocessing_has_not_changed():
    frames = noise((1, 2, 210, 160, 3))
    assert digest(frames) == "185bfe76c4dbac46"
    assert digest(TINY.preprocess(frames).numpy()) == "575db3e908d0f165"


def test_the_input_is_the_current_frame_differences_and_coordinates_padded_and_not_resized():
    frames = noise((2, 2, 210, 150, 3))
    pixels = TINY.preprocess(frames)
    assert pixels.shape == (2, 8, 224, 160)
    whole = (pixels[:, :6] * 256).numpy().transpose(0, 2, 3, 1)  # [B, 224, 160, 6]
    assert np.array_equal(whole[:, :210, :150, :3], frames[:, 1])
    assert np.array_equal(whole[:, :210, :150, 3:], 8 * (frames[:, 1].astype(int) - frames[:, 0]))
    assert (whole[:, 210:] == 0).all()
    assert (whole[:, :, 150:] == 0).all()
    down, along = pixels[0, 6], pixels[1, 7]
    assert torch.equal(down[:, 0], down[:, 159])
    assert torch.equal(along[0], along[223])
    assert torch.allclose(down[:, 0], torch.linspace(-2 + 2 / 224, 2 - 2 / 224, 224), atol=1e-6)
    assert torch.allclose(along[0], torch.linspace(-2 + 2 / 160, 2 - 2 / 160, 160), atol=1e-6)


def test_bfloat16_keeps_every_pixel_value():
    frames = noise((1, 2, 210, 160, 3))
    with torch.autocast("cpu", torch.bfloat16):
        half = TINY.preprocess(frames)
    assert half.dtype == torch.bfloat16
    whole = TINY.preprocess(frames)
    assert torch.equal(half[:, :6].float(), whole[:, :6])
    assert torch.allclose(half.float(), whole, atol=1 / 128)  # the planes that tell places are rounded


@pytest.mark.parametrize(("height", "rows"), [(210, 224), (214, 224), (224, 224), (230, 256), (250, 256)])
def test_games_of_nearly_one_height_share_a_shape(height, rows):
    assert TINY.preprocess(noise((1, 2, height, 160, 3))).shape[2] == rows


@pytest.mark.parametrize("directory", [RELEASED_POLICY, RELEASED_PVP], ids=lambda path: path.name)
def test_a_prompt_has_a_placeholder_for_each_image_token_of_a_released_model(directory):
    vlm = checkpoint.load(directory)
    images = vlm.preprocess(np.zeros((1, vlm.history, 210, 160, 3), np.uint8))
    assert len(vlm.image_ids(images)) == vlm.encode_images(images).tokens.shape[1]


def test_a_frame_becomes_35_image_tokens():
    assert TINY.encode_images(TINY.preprocess(noise((1, 2, 214, 160, 3)))).tokens.shape[:2] == (1, 35)


@torch.no_grad()
@pytest.mark.parametrize("pixel", [(0, 0), (100, 81), (0, 159), (213, 0), (213, 159)])
@pytest.mark.parametrize("index", [0, 1])
def test_one_pixel_of_any_frame_of_history_changes_what_the_decoder_reads(pixel, index):
    frames = np.zeros((1, 2, 214, 160, 3), dtype=np.uint8)
    dark = TINY.encode_images(TINY.preprocess(frames)).tokens
    frames[0, index, *pixel] = 255
    assert (TINY.encode_images(TINY.preprocess(frames)).tokens - dark).abs().max() > 1e-5


@pytest.mark.parametrize("shape", [(1, 1, 210, 160, 3), (2, 210, 160, 3)])
def test_frames_of_another_shape_are_refused(shape):
    with pytest.raises(UserError, match=r"expected frames uint8\[B, 2, H, W, 3\]"):
        TINY.preprocess(noise(shape))


def test_strided_pointwise_convolutions_equal_torchs_own():
    found = [
        module
        for module in build("micro").encoder.modules()
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (1, 1) and module.stride != (1, 1)
    ]
    assert found
    assert all(type(module) is StridedPointwiseConv2d for module in found)
    for module in found:
        image = torch.randn(3, module.in_channels, 9, 12)
        made = torch.nn.Conv2d.forward(module, image)
        torch.testing.assert_close(module(image), made)


def test_batch_norms_keep_their_statistics_in_training():
    vlm = build("tiny")
    norms = [module for module in vlm.encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    pixels = vlm.preprocess(noise((4, 2, 210, 160, 3)))
    still = vlm.encode_images(pixels).tokens
    vlm.model.train()
    assert torch.equal(vlm.encode_images(pixels).tokens, still)
    assert len(norms) > 6
    assert all((norm.running_mean == 0).all() and (norm.running_var == 1).all() for norm in norms)


def test_float_frames_are_refused():
    with pytest.raises(UserError, match=r"got torch\.float32"):
        TINY.preprocess(np.zeros((1, 2, 210, 160, 3), dtype=np.float32))
