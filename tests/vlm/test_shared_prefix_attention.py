"""Attention behind a shared prefix is the library's own, and what it cannot do is refused.

That states, losses and gradients are those of separate sequences is tested through `vlm.decoding.packing` and `vlm.decoding.batched_generate`.
"""

import pytest
import torch
from transformers import DynamicCache

from common.errors import UserError
from vlm.decoding.masks import causal_mask
from vlm.decoding.packing import forward_packed
from vlm.decoding.prefix import encode_prefix
from vlm.decoding.shared_prefix_attention import IMPLEMENTATION, SharedPrefixKV, forward_with_shared_prefix


def read(vlm, prefix, rows, tokens):
    """Read words behind the prefixes of a family."""
    words = torch.full((rows, tokens), 7)
    mask = causal_mask(torch.ones(1, tokens, dtype=torch.bool), torch.float32)
    owners = torch.arange(len(prefix.embeddings)).repeat_interleave(rows // len(prefix.embeddings))
    positions = prefix.position_ids_after(torch.arange(tokens), owners)
    cache = DynamicCache(config=vlm.decoder.config)
    states = forward_with_shared_prefix(
        vlm, SharedPrefixKV.from_cache(prefix.cache(vlm)), cache, vlm.embed(words), positions, mask
    )
    return states, cache


@torch.no_grad()
def test_no_row_gets_a_copy_of_the_prefix(build_family):
    family = build_family("llava")
    prefix, given = encode_prefix(family.vlm, family.features(), family.shared), []
    family.vlm.decoder.layers[0].self_attn.register_forward_pre_hook(
        lambda _, __, kwargs: given.append(kwargs.get("shared_prefix")), with_kwargs=True
    )
    states, cache = read(family.vlm, prefix, rows=10, tokens=3)
    alone, shared_prefix = given
    assert alone is None
    assert states.shape[:2] == (10, 3)
    assert [keys.shape[0] for keys, _ in shared_prefix.layers] == [2, 2]
    assert shared_prefix.layers[0][0].shape[2] == prefix.length
    assert cache.layers[0].keys.shape[:3] == (10, 2, 3)  # the rows' own


def test_the_decoders_own_attention_is_back_afterwards(build_family):
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
    prefix = encode_prefix(family.vlm, family.features(), family.shared)
    layer = family.vlm.decoder.layers[0].self_attn
    layer.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "softcap": 30.0} if "shared_prefix" in kwargs else kwargs),
        with_kwargs=True,
    )
    with pytest.raises(UserError, match="attention options unsupported here: softcap"):
        read(family.vlm, prefix, 4, 3)


def test_a_decoder_that_attends_in_its_own_way_is_refused(build_family, monkeypatch):
    family = build_family("llava")
    prefix = encode_prefix(family.vlm, family.features(), family.shared)
    monkeypatch.setattr(type(family.vlm.decoder), "_supports_attention_backend", False)
    with pytest.raises(UserError, match="does not use transformers' attention interface; pack by mask"):
        read(family.vlm, prefix, 4, 3)


def test_a_decoder_that_keeps_the_prefix_from_its_attention_is_refused(build_family):
    family = build_family("llava")
    prefix = encode_prefix(family.vlm, family.features(), family.shared)
    family.vlm.decoder.layers[0].self_attn.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {name: kwargs[name] for name in kwargs if name != "shared_prefix"}),
        with_kwargs=True,
    )
    with pytest.raises(UserError, match="does not pass the shared prefix to its attention; pack by mask"):
        read(family.vlm, prefix, 4, 3)
