"""Patch probes find what tokens hold, and nothing that they do not."""

import numpy as np
import pytest
import torch

from pretrain import patch_probe
from pretrain.data.frame_captions import caption_tokenizer
from pretrain.patch_probe import measure_patch_probe
from vlm.clip import build_clip
from vlm.presets import build
from vlm.sinusoidal_init import init_position_embeddings


def test_tokens_that_hold_their_color_or_noise_are_distinguished(monkeypatch):
    vlm = build("tiny")

    def tokens(model, images):  # the mean colors of 32 x 32 pixels, in a mixture of another scale
        padded = np.zeros((len(images), 224, 160, 3), np.float32)
        padded[:, :210] = images
        cells = padded.reshape(len(images), 7, 32, 5, 32, 3).mean((2, 4)).reshape(len(images), 35, 3)
        return torch.from_numpy(cells @ np.array([[1, 0.5, 0], [0, 1, 0], [0.2, 0, 3]], np.float32) - 7)

    monkeypatch.setattr(patch_probe, "image_tokens", tokens)
    metrics = measure_patch_probe(vlm)
    assert metrics["color_mae"] < 0.5
    assert abs(metrics["position_r2"]) < 0.1
    assert metrics["color_mae_baseline"] > 30
    noise = torch.randn(48, 35, 3, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(patch_probe, "image_tokens", lambda model, images: noise)
    assert measure_patch_probe(vlm)["color_mae"] > 40


@pytest.mark.parametrize("kind", ["clip", "vlm"])
def test_sinusoidal_position_embeddings_give_tokens_their_position(kind):
    model = build_clip("tiny-clip", caption_tokenizer()) if kind == "clip" else build("tiny-clip")
    before = measure_patch_probe(model)
    init_position_embeddings(model.encoder, (210 / 32, 160 / 32))
    after = measure_patch_probe(model)
    assert after["position_r2"] > 0.9 > before["position_r2"]
