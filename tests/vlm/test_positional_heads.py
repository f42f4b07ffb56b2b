"""Positional heads start at their offsets whatever the image; presets without them have no biases."""

from itertools import pairwise

import pytest
import torch
from transformers import Qwen2Config, Qwen2Model

from vlm.decoding.candidate_scoring import prompt_ids
from vlm.positional_heads import num_positional_heads
from vlm.presets import IMAGE_TOKENS, build
from vlm.prompts import action_prompt

PROMPT = action_prompt("Pong", ("noop", "right", "left"))


@pytest.fixture(scope="module")
def attention():
    """The attention weights of a new `micro` from the prompt's end to the image tokens, [2, layers, heads, N]."""
    vlm = build("micro", seed=3)
    vlm.set_attn_implementation("eager")
    frames = torch.randint(0, 256, (2, vlm.history, 210, 160, 3), dtype=torch.uint8)
    frames[1] //= 4
    pixels = vlm.preprocess(frames)
    ids = torch.tensor(prompt_ids(vlm, PROMPT, vlm.image_ids(pixels)))
    with torch.no_grad():
        output = vlm.model(**vlm.forward_inputs(ids.expand(2, -1), pixels), output_attentions=True)
    image = ids == vlm.model.config.image_token_id
    assert int(image.sum()) == IMAGE_TOKENS
    return torch.stack(output.attentions, dim=1)[:, :, :, -1][..., image]


def test_each_positional_head_attends_at_its_own_offset(attention):
    """The positions that they attend to span the whole image, in steps of one or two, over all layers together."""
    count = attention.shape[2] // 2
    peaks = attention[:, :, :count].argmax(-1)  # [2, layers, count]
    assert (attention[:, :, :count].max(-1).values > 0.2).all()  # 0.03 if all were alike
    assert torch.equal(peaks[0], peaks[1])  # of whatever image
    positions = sorted(set(peaks[0].flatten().tolist()))
    assert (positions[0], positions[-1]) == (0, IMAGE_TOKENS - 1)
    assert max(b - a for a, b in pairwise(positions)) <= 2


def test_the_other_heads_do_not(attention):
    """The other half starts as usual."""
    assert attention[:, :, attention.shape[2] // 2 :].max() < 0.2


def test_other_presets_have_no_positional_heads():
    """Their attention has no biases."""
    attention = build("tiny").decoder.layers[0].self_attn
    assert num_positional_heads(attention) == 0
    assert num_positional_heads(build("micro").decoder.layers[0].self_attn) == 8


def test_other_biases_mark_no_positional_heads():
    """Qwen's queries have biases too."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    other = Qwen2Model(Qwen2Config(vocab_size=8, num_key_value_heads=2, **sizes)).layers[0].self_attn
    assert other.q_proj.bias is not None
    assert num_positional_heads(other) == 0
