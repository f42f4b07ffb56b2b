"""Captions are found by what a captioner says of their frame, the same as plain forwards say."""

import numpy as np
import pytest
import torch

from pretrain.caption_retrieval import caption_log_likelihoods, measure_caption_retrieval, with_encoder
from pretrain.data.frame_captions import caption_tokenizer
from vlm.presets import build
from vlm.prompts import CAPTION_PREFIX
from vlm.training.objective import encode_frames

CAPTIONS = np.array(["a frame of pong with a ball", "two ducks in carnival", "a game with nothing in it"])


@pytest.fixture
def captioner():
    return build("tiny", 0, caption_tokenizer())


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 256, (3, 210, 160, 3), dtype=np.uint8)


@torch.no_grad()
def test_log_likelihoods_are_those_of_a_plain_forward(captioner, frames):
    features = encode_frames(captioner, torch.from_numpy(np.repeat(frames[:2, None], captioner.history, 1)))
    found = caption_log_likelihoods(captioner, features, CAPTIONS)
    tokenizer, embed = captioner.tokenizer, captioner.model.get_input_embeddings()
    prompt = tokenizer(CAPTION_PREFIX, add_special_tokens=False)["input_ids"]
    for row, (tokens, caption) in enumerate(zip(features.tokens, CAPTIONS, strict=False)):
        words = [*tokenizer(caption, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        inputs = torch.cat([tokens, embed(torch.tensor(prompt + words))])[None]
        states = captioner.decoder(inputs_embeds=inputs).last_hidden_state[0, -len(words) - 1 : -1]
        logits = captioner.model.get_output_embeddings()(states).log_softmax(-1)
        assert found[row, row] == pytest.approx(float(logits[range(len(words)), words].sum()), abs=1e-3)


def test_equal_captions_count_as_one(captioner, frames):
    scores = measure_caption_retrieval(captioner, frames, CAPTIONS[[0, 1, 0]])
    assert scores["different"] == 2
    assert 0 <= scores["top1"] <= scores["top5"] == 1


def test_frames_and_encoders_change_the_scores(captioner, frames):
    features = encode_frames(captioner, torch.from_numpy(np.repeat(frames[:, None], captioner.history, 1)))
    other = with_encoder(captioner, build("tiny", 1).encoder)
    changed = encode_frames(other, torch.from_numpy(np.repeat(frames[:, None], captioner.history, 1)))
    with torch.no_grad():
        own, swapped = (caption_log_likelihoods(captioner, one, CAPTIONS) for one in (features, changed))
    assert not torch.allclose(own[0], own[1])
    assert not torch.allclose(own, swapped)
    assert all(
        torch.equal(a, b)
        for a, b in zip(captioner.encoder.parameters(), build("tiny", 0).encoder.parameters(), strict=True)
    )
