"""Training on a CPU takes the fused passes of plain models, with the loss and gradients of the library's classes."""

import numpy as np
import pytest
import torch

from pretrain.pvp_config import PvpData
from pretrain.pvp_objective import ImageSampler, PvpObjective, PvpSampler
from pretrain.pvp_questions import PixelPromptFormat
from vlm import model as vlm_model
from vlm.decoding import packing
from vlm.decoding.fused_llama import supports_fused_llama
from vlm.fused_clip import supports_fused_clip
from vlm.precision import autocast
from vlm.presets import build
from vlm.training.lora import add_lora


def losses(preset, attention_supervision, bf16=False):
    """Loss, metrics and gradients of one batch of a model, which is fixed by its preset."""
    vlm = build(preset)
    vlm.set_attn_implementation("sdpa")
    vlm.model.train()
    prompts = PixelPromptFormat.from_model(vlm)
    data = PvpData(size=(210, 160), synthetic=1.0, grid="32", images=2, questions=5)
    sampler = PvpSampler(ImageSampler([], data, vlm.history), prompts, data, steps=1)
    objective = PvpObjective(vlm, sampler, prompts, 6.0, attention_supervision)
    batch = sampler(0, np.random.default_rng(0))
    with autocast(vlm.device, bf16):
        result = objective.loss(objective.encode(batch), batch)
    result.loss.backward()
    gradients = {name: p.grad for name, p in vlm.model.named_parameters() if p.grad is not None}
    return result.loss.item(), {name: value.item() for name, value in result.metrics.items()}, gradients


def without_fused(monkeypatch):
    monkeypatch.setattr(packing, "supports_fused_llama", lambda _: False)
    monkeypatch.setattr(vlm_model, "supports_fused_clip", lambda _: False)


@pytest.mark.parametrize("attention_supervision", [1.0, 0.0])
@pytest.mark.parametrize("preset", ["tiny-clip", "micro"])  # micro: a ResNet, and heads with biases
def test_loss_metrics_and_gradients_equal_those_of_the_library(preset, attention_supervision, monkeypatch):
    loss, metrics, gradients = losses(preset, attention_supervision)
    without_fused(monkeypatch)
    expected_loss, expected_metrics, expected = losses(preset, attention_supervision)
    assert loss == pytest.approx(expected_loss, abs=1e-4)
    assert metrics == pytest.approx(expected_metrics, abs=1e-3)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert float((gradient - expected[name]).norm()) <= 1e-4 * float(expected[name].norm()) + 1e-6, name


def test_in_bfloat16_the_loss_is_as_near_to_that_of_float32_as_the_librarys(monkeypatch):
    exact, *_ = losses("tiny-clip", 1.0)
    fused, *_ = losses("tiny-clip", 1.0, bf16=True)
    without_fused(monkeypatch)
    plain, *_ = losses("tiny-clip", 1.0, bf16=True)
    assert fused != exact  # it did compute in bfloat16
    assert abs(fused - exact) < max(0.03, 2 * abs(plain - exact))


def test_what_is_no_plain_model_in_training_takes_the_librarys_classes():
    vlm = build("tiny-clip")
    assert not supports_fused_llama(vlm.decoder)  # in evaluation mode
    assert not supports_fused_clip(vlm.model)
    vlm.model.train()
    assert supports_fused_llama(vlm.decoder)
    assert supports_fused_clip(vlm.model)
    with torch.no_grad():
        assert not supports_fused_llama(vlm.decoder)
        assert not supports_fused_clip(vlm.model)
    vlm.model.gradient_checkpointing_enable()
    assert not supports_fused_llama(vlm.decoder)
    assert not supports_fused_clip(vlm.model)
    adapted = build("tiny-clip")
    add_lora(adapted, 2)
    adapted.model.train()
    assert not supports_fused_llama(adapted.decoder)
    assert supports_fused_clip(adapted.model)  # adapters are of the decoder alone
    assert not supports_fused_clip(build("tiny").model.train())
