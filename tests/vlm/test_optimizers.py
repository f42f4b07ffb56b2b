"""Muon trains the matrices inside a model, AdamW the rest, as one optimizer that resumes."""

import copy

import pytest
import torch

from vlm.presets import build
from vlm.training.learning_rates import ModuleLearningRates, parameter_groups
from vlm.training.optimizers import MuonWithAdamW, as_matrix, hidden_matrices

RATES = ModuleLearningRates(encoder=1e-3, connector=1e-3, decoder=1e-3)


def optimizer_of(vlm):
    return MuonWithAdamW(parameter_groups(vlm, RATES, weight_decay=0.0), hidden_matrices(vlm))


def backward(vlm, seed):
    """Give every parameter a random gradient."""
    generator = torch.Generator().manual_seed(seed)
    for p in vlm.model.parameters():
        p.grad = torch.randn(p.shape, generator=generator).to(memory_format=torch.preserve_format)


@pytest.mark.parametrize("preset", ["tiny", "tiny-clip"])
def test_embeddings_norms_and_patch_embeddings_stay_with_adamw(preset):
    vlm = build(preset)
    matrices = hidden_matrices(vlm)
    others = {name for name, p in vlm.model.named_parameters() if id(p) not in matrices}
    assert all(p.ndim in (2, 4) for p in vlm.model.parameters() if id(p) in matrices)
    assert all("embed" in name or "norm" in name or name.endswith("bias") for name in others)
    assert any("embed_tokens" in name for name in others)


def test_a_step_moves_all_directions_of_a_matrix_alike():
    vlm = build("tiny")
    weight = vlm.decoder.layers[0].mlp.gate_proj.weight
    before, optimizer = weight.detach().clone(), optimizer_of(vlm)
    backward(vlm, 0)
    weight.grad[:, 0] *= 1000  # one direction dominates the gradient
    optimizer.step()
    values = torch.linalg.svdvals(weight.detach() - before)
    assert values.min() / values.max() > 0.1  # of the gradient: below 0.001


def test_convolutions_in_channels_last_train_in_place():
    vlm = build("tiny")
    vlm.model.to(memory_format=torch.channels_last)
    kernel = vlm.encoder.embedder.embedder.convolution.weight
    before = kernel.detach().clone()
    assert as_matrix(kernel.detach()).data_ptr() == kernel.data_ptr()
    optimizer = optimizer_of(vlm)
    backward(vlm, 0)
    optimizer.step()
    step = (kernel.detach() - before).permute(0, 2, 3, 1).flatten(1)
    values = torch.linalg.svdvals(step)
    assert values.min() / values.max() > 0.5


def test_both_memory_formats_take_the_same_step():
    steps = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        vlm = build("tiny")
        vlm.model.to(memory_format=memory_format)
        kernel = vlm.encoder.embedder.embedder.convolution.weight
        before, optimizer = kernel.detach().clone(), optimizer_of(vlm)
        backward(vlm, 0)
        optimizer.step()
        steps.append((kernel.detach() - before).contiguous())
    torch.testing.assert_close(*steps, rtol=0, atol=3e-4)  # Newton-Schulz runs in bfloat16


def test_a_saved_state_continues_as_if_nothing_happened():
    whole, resumed = build("tiny"), build("tiny")
    first = optimizer_of(whole)
    backward(whole, 0)
    first.step()
    resumed.model.load_state_dict(whole.model.state_dict())
    second = optimizer_of(resumed)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for vlm, optimizer in ((whole, first), (resumed, second)):
        backward(vlm, 1)
        optimizer.step()
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_schedule_reaches_both():
    vlm = build("tiny")
    optimizer = optimizer_of(vlm)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in vlm.model.parameters()]
    backward(vlm, 0)
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, vlm.model.parameters(), strict=True))
