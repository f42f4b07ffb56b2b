"""Attention of many rows to a prefix whose keys and values are stored once for all of them.

The rows of a prefix attend to its keys in one large product and to their own few tokens in small ones; one softmax over
both is exact (Juravsky et al. 2024, "Hydragen", arXiv 2402.05099, sec. 3). It is an attention function of transformers'
own interface, so that the decoder's class runs unchanged, gradients included.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, DynamicCache

from common.errors import UserError
from vlm.decoding.prefix import (
    Offsets,
    Prefix,
    SharedIds,
    deep_inputs,
    encode_prefix,
    forbids_cache,
    forward_with_cache,
)
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM

IMPLEMENTATION = "pvplay_shared_prefix"  # its name in transformers' attention interface


@dataclass(frozen=True)
class CachedPrefix:
    """B prefixes of P tokens with their keys and values, for any number of suffixes."""

    prefix: Prefix
    layers: tuple[tuple[Tensor, Tensor], ...]  # keys and values [B, heads, P, width] of each layer of the decoder
    # by the index of each recorded layer: the weights [R, T, heads, P + S] of the rows' last forward pass, to the
    # prefix, then to their own S tokens
    attention_weights: dict[int, Tensor | None] = field(default_factory=dict)

    @classmethod
    def encode(
        cls, vlm: PixelVLM, features: ImageFeatures, shared_ids: SharedIds, recorded_layers: Sequence[int] = ()
    ) -> "CachedPrefix":
        """Run the decoder over prefixes (`encode_prefix`); `UserError` where it would silently fill no cache."""
        if forbids_cache(vlm.model):
            reason = "activation checkpointing and FSDP forbid a cache; turn them off or pack by mask"
            raise UserError(f"expected {type(vlm.decoder).__name__} to keep keys and values: {reason}")
        prefix, cache = encode_prefix(vlm, features, shared_ids), DynamicCache(config=vlm.decoder.config)
        deep = deep_inputs(prefix.deep_tokens, prefix.is_image, prefix.length)
        forward_with_cache(vlm, cache, prefix.embeddings, prefix.position_ids, **deep)
        layers = tuple((layer.keys, layer.values) for layer in cache.layers)
        return cls(prefix, layers, dict.fromkeys(recorded_layers))


def forward_with_shared_prefix(
    vlm: PixelVLM,
    cached_prefix: CachedPrefix,
    cache: DynamicCache,
    embeddings: Float[Tensor, "R T D"],
    offsets: Offsets,
    attention_mask: Float[Tensor, "_ 1 T own"],
) -> Float[Tensor, "R T D"]:
    """Return the decoder's last hidden states of R rows after B prefixes, R / B rows for each in the prefixes' order.

    `cache` holds the rows' own tokens so far, without the prefix; the new ones are added. `offsets` count from the
    prefix's end. `attention_mask` is additive and over the rows' own tokens: all see the whole prefix.

    Raises:
        UserError: the decoder's class does not use transformers' attention interface.
    """
    prefix, batch = cached_prefix.prefix, len(cached_prefix.prefix.embeddings)
    rows = torch.arange(batch, device=embeddings.device).repeat_interleave(len(embeddings) // batch)
    embeddings, position_ids = embeddings.to(prefix.embeddings.dtype), prefix.position_ids_after(offsets, rows)
    with _shared_prefix_attention(vlm):
        return forward_with_cache(vlm, cache, embeddings, position_ids, attention_mask, cached_prefix=cached_prefix)


@contextmanager
def _shared_prefix_attention(vlm: PixelVLM) -> Iterator[None]:
    """Let the decoder compute attention by this module's function within the context."""
    if not getattr(vlm.decoder, "_supports_attention_backend", False):
        raise UserError(f"{type(vlm.decoder).__name__} does not use transformers' attention interface; pack by mask")
    config: Any = vlm.decoder.config
    before = config._attn_implementation
    config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: nn.Module,
    query: Float[Tensor, "R heads T width"],
    key: Float[Tensor, "R groups S width"],
    value: Float[Tensor, "R groups S width"],
    attention_mask: Float[Tensor, "_ 1 T S"],
    scaling: float,
    dropout: float = 0.0,
    cached_prefix: CachedPrefix | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "R T heads width"], None]:
    """Return the attention output, as transformers' attention functions do; `key` and `value` are the rows' own."""
    if cached_prefix is None:
        raise UserError(f"{type(module).__name__} does not pass the shared prefix to its attention; pack by mask")
    if unsupported := [name for name in ("softcap", "s_aux") if kwargs.get(name) is not None]:
        raise UserError(f"{type(module).__name__} needs attention options unsupported here: {', '.join(unsupported)}")
    layer: Any = module.layer_idx
    prefix_key, prefix_value = cached_prefix.layers[layer]
    batch, groups, prefix_length, _ = prefix_key.shape
    inner = (len(query) // batch, query.shape[1] // groups, query.shape[2])  # rows, heads of a group, tokens
    # queries and scores as [B, groups, rows, heads of a group, T, ...]
    query = (query * scaling).unflatten(0, (batch, inner[0])).unflatten(2, (groups, inner[1])).transpose(1, 2)
    prefix_scores = (query.flatten(2, 4) @ prefix_key.mT).unflatten(2, inner)
    key, value = (part.unflatten(0, (batch, inner[0])).transpose(1, 2)[:, :, :, None] for part in (key, value))
    mask = attention_mask.expand(batch * inner[0], -1, -1, -1).unflatten(0, (batch, inner[0]))[:, None]
    own_scores = query @ key.mT + mask
    weights = torch.cat([prefix_scores, own_scores], dim=-1).softmax(-1, dtype=torch.float32).to(query.dtype)
    if layer in cached_prefix.attention_weights:
        cached_prefix.attention_weights[layer] = weights.permute(0, 2, 4, 1, 3, 5).flatten(0, 1).flatten(2, 3)
    weights = functional.dropout(weights, dropout, module.training)
    prefix_output = (weights[..., :prefix_length].flatten(2, 4) @ prefix_value).unflatten(2, inner)
    output = prefix_output + weights[..., prefix_length:] @ value
    return output.permute(0, 2, 4, 1, 3, 5).flatten(0, 1).flatten(2, 3), None


AttentionInterface.register(IMPLEMENTATION, _attend)
