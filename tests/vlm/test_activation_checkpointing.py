"""Activation checkpointing reaches the packed pass and the scores of actions, which it leaves as they are."""

import numpy as np
import pytest
import torch

from experiments.model_classes.tiny_checkpoints import write
from vlm import checkpoint
from vlm.decoding.candidate_scoring import CandidateScorer
from vlm.decoding.packing import forward_packed

NAMES = ("noop", "fire", "up", "up right")


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return write("llava", tmp_path_factory.mktemp("hub") / "llava")


def pixels_loss(vlm, images):
    """The packed pass of pixel value prediction, over 6 questions about each image."""
    suffixes = torch.arange(10, 34).view(1, 6, 4).expand(2, -1, -1)
    states = forward_packed(vlm, vlm.encode_images(images), torch.tensor([30, 31]), suffixes)
    return vlm.model.get_output_embeddings()(states).log_softmax(-1)[..., 5].mean()


def actions_loss(vlm, images):
    """The scores of cloning."""
    return (
        CandidateScorer(vlm, vlm.action_prompt("Pong", NAMES), NAMES).log_probs(vlm.encode_images(images))[:, 1].mean()
    )


def measured(llava, compute, saving):
    """The loss, its gradients by name, and the bytes of different tensors that the forward pass saved."""
    vlm = checkpoint.load(llava)
    vlm.model.train()
    if saving:
        vlm.model.gradient_checkpointing_enable()
    images = vlm.preprocess(np.random.default_rng(0).integers(0, 256, (2, 1, 42, 32, 3), dtype=np.uint8))
    weights, saved = {p.untyped_storage().data_ptr() for p in vlm.model.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = tensor  # alive, so that its place is taken by no other
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = compute(vlm, images)
    size = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    loss.backward()
    gradients = {name: p.grad for name, p in vlm.model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, size


@pytest.mark.parametrize("compute", [pixels_loss, actions_loss])
def test_gradients_are_the_same_and_fewer_activations_are_saved(llava, compute):
    (loss, plain, size), (again, found, saved) = (measured(llava, compute, saving) for saving in (False, True))
    assert torch.allclose(loss, again, atol=1e-5)
    assert plain.keys() == found.keys()
    assert {name.split(".")[1] for name in found} >= {"vision_tower", "multi_modal_projector", "language_model"}
    scale = max(gradient.abs().max() for gradient in plain.values())
    assert max((plain[name] - found[name]).abs().max() for name in plain) < 1e-5 * scale
    assert saved < 0.5 * size


def test_play_between_steps_keeps_its_cache(llava):
    vlm = checkpoint.load(llava)
    vlm.model.gradient_checkpointing_enable()
    scorer = CandidateScorer(vlm, vlm.action_prompt("Pong", NAMES), NAMES, cache_prompt=True)
    images = vlm.preprocess(np.zeros((1, 1, 42, 32, 3), np.uint8))
    with torch.no_grad():
        expected = scorer.log_probs(vlm.encode_images(images))
        assert scorer._text_kv is not None
        vlm.model.train()
        assert torch.allclose(scorer.log_probs(vlm.encode_images(images)), expected, atol=1e-5)
