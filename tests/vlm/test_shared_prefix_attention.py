"""Shared-prefix attention runs within the decoder's class, and refuses what it does not support.

The tests of `vlm.decoding.packing` and `vlm.decoding.batched_generate` compare its states, losses and gradients with
those of separate sequences.
"""

import pytest
import torch
from transformers import DynamicCache

from common.errors import UserError
from vlm.decoding.packing import forward_packed
from vlm.decoding.prefix import causal_mask
from vlm.decoding.shared_prefix_attention import IMPLEMENTATION, CachedPrefix, forward_with_shared_prefix


def forward(family, rows, tokens):
    """Run text tokens after the prefixes of a family."""
    vlm, cache = family.vlm, DynamicCache(config=family.vlm.decoder.config)
    cached_prefix = CachedPrefix.encode(vlm, family.features(), family.shared)
    embeddings = vlm.embed(torch.full((rows, tokens), 7))
    mask = causal_mask(torch.ones(1, tokens, dtype=torch.bool), torch.float32)
    return forward_with_shared_prefix(vlm, cached_prefix, cache, embeddings, torch.arange(tokens), mask), cache


@torch.no_grad()
def test_no_row_gets_a_copy_of_the_prefix(build_family):
    family = build_family("llava")
    given = []
    family.vlm.decoder.layers[0].self_attn.register_forward_pre_hook(
        lambda _, __, kwargs: given.append(kwargs.get("cached_prefix")), with_kwargs=True
    )
    states, cache = forward(family, rows=10, tokens=3)
    in_prefix, cached_prefix = given
    assert in_prefix is None
    assert states.shape[:2] == (10, 3)
    assert [keys.shape[0] for keys, _ in cached_prefix.layers] == [2, 2]
    assert cached_prefix.layers[0][0].shape[2] == cached_prefix.prefix.length
    assert cache.layers[0].keys.shape[:3] == (10, 2, 3)  # the rows' own


def test_the_decoders_own_attention_is_restored_afterwards(build_family):
    family = build_family("llava")
    config = family.vlm.decoder.config
    before = config._attn_implementation
    during = []
    family.vlm.decoder.layers[0].register_forward_pre_hook(lambda *_: during.append(config._attn_implementation))
    forward_packed(family.vlm, family.features(), family.shared, torch.full((2, 3, 4), 7), "cache")
    assert during == [before, IMPLEMENTATION]
    assert config._attn_implementation == before

    family.vlm.decoder.norm.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        forward_packed(family.vlm, family.features(), family.shared, torch.full((2, 3, 4), 7), "cache")
    assert config._attn_implementation == before


def test_attention_that_is_more_than_a_softmax_is_refused(build_family):
    family = build_family("llava")
    layer = family.vlm.decoder.layers[0].self_attn
    layer.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "softcap": 30.0} if "cached_prefix" in kwargs else kwargs),
        with_kwargs=True,
    )
    with pytest.raises(UserError, match="attention options unsupported here: softcap"):
        forward(family, 4, 3)


def test_a_decoder_with_its_own_attention_is_refused(build_family, monkeypatch):
    family = build_family("llava")
    monkeypatch.setattr(type(family.vlm.decoder), "_supports_attention_backend", False)
    with pytest.raises(UserError, match="does not use transformers' attention interface; pack by mask"):
        forward(family, 4, 3)


def test_a_decoder_that_does_not_pass_on_the_prefix_is_refused(build_family):
    family = build_family("llava")
    family.vlm.decoder.layers[0].self_attn.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {name: kwargs[name] for name in kwargs if name != "cached_prefix"}),
        with_kwargs=True,
    )
    with pytest.raises(UserError, match="does not pass the shared prefix to its attention; pack by mask"):
        forward(family, 4, 3)
