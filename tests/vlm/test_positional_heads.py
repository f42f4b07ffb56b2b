"""Place heads: at first they look where they should, whatever is shown; presets without them have no biases."""

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
    """Return what each head of a new `micro` gives to the image tokens from the prompt's end, [2, layers, heads, N]."""
    vlm = build("micro", seed=3)
    vlm.set_attn_implementation("eager")
    frames = torch.randint(0, 256, (2, vlm.history, 210, 160, 3), dtype=torch.uint8)
    frames[1] //= 4
    pixels = vlm.preprocess(frames)
    ids = torch.tensor(prompt_ids(vlm, PROMPT, vlm.image_ids(pixels)))
    with torch.no_grad():
        found = vlm.model(**vlm.generate_inputs(ids.expand(2, -1), pixels), output_attentions=True)
    image = ids == vlm.model.config.image_token_id
    assert int(image.sum()) == IMAGE_TOKENS
    return torch.stack(found.attentions, dim=1)[:, :, :, -1][..., image]


def test_each_looks_at_its_own_place(attention):
    """The places that they look at first span the whole image, in steps of one or two, over all layers together."""
    count = attention.shape[2] // 2
    seen = attention[:, :, :count].argmax(-1)  # [2, layers, count]
    assert (attention[:, :, :count].max(-1).values > 0.2).all()  # 0.03 if all were alike
    assert torch.equal(seen[0], seen[1])  # of whatever image
    places = sorted(set(seen[0].flatten().tolist()))
    assert (places[0], places[-1]) == (0, IMAGE_TOKENS - 1)
    assert max(b - a for a, b in pairwise(places)) <= 2


def test_the_others_do_not(attention):
    """The other half is as a decoder's heads are."""
    assert attention[:, :, attention.shape[2] // 2 :].max() < 0.2


def test_presets_without():
    """A model without place heads has no biases in its attention, and all its heads are free."""
    attention = build("tiny").decoder.layers[0].self_attn
    assert num_positional_heads(attention) == 0
    assert num_positional_heads(build("micro").decoder.layers[0].self_attn) == 8


def test_biases_of_another_kind_mark_none():
    """A Qwen's queries have biases as well, and none of its heads is a place head."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    other = Qwen2Model(Qwen2Config(vocab_size=8, num_key_value_heads=2, **sizes)).layers[0].self_attn
    assert other.q_proj.bias is not None
    assert num_positional_heads(other) == 0
