"""Log-probabilities of candidates are exact, however they are computed."""

import numpy as np
import pytest
import torch

from common.errors import UserError
from vlm.decoding import candidate_scoring
from vlm.decoding.candidate_scoring import CandidateScorer, CandidateTrie, generate_text, prompt_ids
from vlm.precision import autocast
from vlm.presets import build
from vlm.prompts import action_prompt

PACMAN = ("noop", "up", "right", "left", "down", "up right", "up left", "down right", "down left")
FULL = tuple(
    " ".join(filter(None, words))
    for words in [("noop",), ("fire",), ("up",), ("up", "right"), ("up", "right", "fire"), ("up", "fire")]
)
PROMPT = action_prompt("Ms. Pac-Man", PACMAN)


def images(vlm, count, seed=0):
    frames = np.random.default_rng(seed).integers(0, 256, (count, 2, 210, 160, 3), dtype=np.uint8)
    return vlm.preprocess(frames)


@torch.no_grad()
def score_alone(vlm, pixels, prompt, candidate):
    """The log-probability by transformers' own forward over prompt and one answer."""
    prompt_tokens = prompt_ids(vlm, prompt, vlm.image_ids(pixels))
    answer = [*vlm.tokenizer(candidate)["input_ids"], vlm.tokenizer.eos_token_id]
    ids = torch.tensor([prompt_tokens + answer]).expand(len(pixels), -1)
    logits = vlm.model(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits
    log_probs = logits.log_softmax(-1)
    return sum(log_probs[:, len(prompt_tokens) - 1 + i, token] for i, token in enumerate(answer))


@pytest.mark.parametrize("preset", ["tiny", "nano"])
@pytest.mark.parametrize("candidates", [PACMAN, FULL], ids=["pacman", "full"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_one_pass_equals_scoring_each_candidate_alone(preset, candidates, attention):
    vlm = build(preset, seed=1)
    pixels = images(vlm, 2)
    alone = torch.stack([score_alone(vlm, pixels, PROMPT, candidate) for candidate in candidates], dim=1)
    vlm.set_attn_implementation(attention)
    with torch.no_grad():
        together = CandidateScorer(vlm, PROMPT, candidates).log_probs(vlm.encode_images(pixels))
    assert (together - alone).abs().max() < 1e-4


@torch.no_grad()
def test_caching_the_prompt_changes_nothing():
    vlm = build("nano", seed=2)
    features = vlm.encode_images(images(vlm, 3))
    cached = CandidateScorer(vlm, PROMPT, PACMAN, cache_prompt=True)
    uncached = CandidateScorer(vlm, PROMPT, PACMAN).log_probs(features)
    for _ in range(2):
        assert (cached.log_probs(features) - uncached).abs().max() < 1e-4


@torch.no_grad()
def test_scores_agree_between_batch_sizes():
    vlm = build("nano", seed=3)
    pixels = images(vlm, 16)
    scorer = CandidateScorer(vlm, PROMPT, PACMAN, cache_prompt=True)
    at_once = scorer.log_probs(vlm.encode_images(pixels))
    for size in (1, 4):
        parts = torch.cat([scorer.log_probs(vlm.encode_images(part)) for part in pixels.split(size)])
        assert (parts - at_once).abs().max() < 1e-3


def test_gradients_reach_every_role():
    vlm = build("tiny")
    features = vlm.encode_images(images(vlm, 1))
    CandidateScorer(vlm, PROMPT, PACMAN, cache_prompt=True).log_probs(features)[0, 0].backward()
    for role in (vlm.encoder, vlm.connector, vlm.decoder):
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in role.parameters())


@pytest.mark.slow
def test_overfitting_four_frames_brings_the_loss_near_zero():
    vlm = build("tiny", seed=0)
    pixels, answers = images(vlm, 4), torch.tensor([0, 3, 5, 8])
    scorer = CandidateScorer(vlm, PROMPT, PACMAN)
    optimizer = torch.optim.Adam(vlm.model.parameters(), lr=3e-3)
    for _ in range(200):
        loss = -scorer.log_probs(vlm.encode_images(pixels))[torch.arange(4), answers].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    assert generate_text(vlm, pixels, PROMPT) == [PACMAN[i] for i in answers]


def test_candidates_share_the_nodes_of_a_common_prefix():
    trie = CandidateTrie.build([(1,), (1, 2), (1, 2, 3), (4,)])
    assert trie.tokens == (1, 2, 3, 4)
    assert trie.parents == (-1, 0, 1, -1)
    assert trie.ends == (0, 1, 2, 3)
    assert trie.ancestor_mask().sum(1).tolist() == [1, 2, 3, 1]


@pytest.mark.parametrize("answers", [[], [()], [(1,), (1,)]])
def test_candidates_that_are_empty_or_repeated_are_refused(answers):
    with pytest.raises(UserError, match="expected different answers"):
        CandidateTrie.build(answers)


def test_a_prompt_without_an_image_is_refused():
    with pytest.raises(UserError, match="<image>"):
        CandidateScorer(build("tiny"), "action :", PACMAN)


def trained(preset, prompt, bf16=False):
    """Log-probabilities and gradients of a model in training, which is fixed by its preset."""
    vlm = build(preset)
    frames = np.random.default_rng(0).integers(0, 256, (3, vlm.history, 210, 160, 3), dtype=np.uint8)
    vlm.set_attn_implementation("eager")
    vlm.model.train()
    with autocast(vlm.device, bf16):
        scores, state = CandidateScorer(vlm, prompt, FULL).forward(vlm.encode_images(vlm.preprocess(frames)))
    (scores[:, ::2].sum() + state.float().square().sum()).backward()
    return scores.detach(), {name: p.grad for name, p in vlm.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("prompt", [PROMPT, "<image> action :"])
@pytest.mark.parametrize("preset", ["tiny-clip", "micro"])
def test_a_llama_that_trains_on_a_cpu_is_computed_otherwise_to_the_same_scores_and_gradients(
    preset, prompt, monkeypatch
):
    monkeypatch.setattr(CandidateScorer, "_forward_decoder", None)  # is not called
    scores, gradients = trained(preset, prompt)
    monkeypatch.undo()
    monkeypatch.setattr(candidate_scoring, "supports_fused_llama", lambda _: False)
    expected_scores, expected = trained(preset, prompt)
    assert (scores - expected_scores).abs().max() < 1e-4
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert float((gradient - expected[name]).norm()) <= 1e-4 * float(expected[name].norm()) + 1e-6, name


def test_in_bfloat16_scores_are_as_near_to_those_of_float32_as_the_classes_own(monkeypatch):
    exact, _ = trained("micro", PROMPT)
    fused, _ = trained("micro", PROMPT, bf16=True)
    monkeypatch.setattr(candidate_scoring, "supports_fused_llama", lambda _: False)
    plain, _ = trained("micro", PROMPT, bf16=True)
    assert not torch.equal(fused, exact)  # it did compute in bfloat16
    assert (fused - exact).abs().max() < max(0.05, 2 * (plain - exact).abs().max())


def test_a_prompt_may_begin_with_the_image():
    vlm = build("tiny", seed=1)
    pixels, prompt = images(vlm, 2), "<image> action :"
    with torch.no_grad():
        scores = CandidateScorer(vlm, prompt, PACMAN).log_probs(vlm.encode_images(pixels))
    assert (scores[:, 1] - score_alone(vlm, pixels, prompt, PACMAN[1])).abs().max() < 1e-4
