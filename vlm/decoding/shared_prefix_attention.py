"""Attention of many rows behind one prefix whose keys and values lie in memory once, for all of them.

A row that has its own copy of an image's keys and values reads a megabyte of them for every token it decodes. Here
the rows of a prefix meet its keys as one large product, and their own few tokens as small ones; one softmax over both
makes it exact (Juravsky et al. 2024, "Hydragen", arXiv 2402.05099, sec. 3). It is an attention function of the
library's own interface, so that the decoder's class runs as it is, gradients included.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, DynamicCache

from common.errors import UserError
from vlm.decoding.prefix import forward_with_cache
from vlm.model import PixelVLM

NAME = "pvplay_cascade"


@dataclass(frozen=True)
class SharedPrefixKV:
    """Keys and values of B prefixes of P tokens, a pair [B, heads, P, width] for each layer of the decoder.

    looks: by the index of each layer that is watched, what rows look at, [R, T, heads, P + S] of the attention's
    weights, their prefix first and then their own S tokens, once they have been read.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    looks: dict[int, Tensor | None] = field(default_factory=dict)

    @classmethod
    def of(cls, cache: DynamicCache, watched: Sequence[int] = ()) -> "SharedPrefixKV":
        """Return what a cache that has read the prefixes holds; some layers may be watched."""
        return cls(tuple((layer.keys, layer.values) for layer in cache.layers), dict.fromkeys(watched))


def forward_with_shared_prefix(
    vlm: PixelVLM, trunk: SharedPrefixKV, cache: DynamicCache, embeddings: Tensor, positions: Tensor, mask: Tensor
) -> Tensor:
    """Read tokens of R rows that stand behind B prefixes, R / B rows behind each, in the prefixes' order.

    Args:
        vlm: the model.
        trunk: the prefixes.
        cache: the rows' own C tokens so far, without the prefix; takes in those that are read.
        embeddings: [R, T, D].
        positions: int[R, T] or int[3, R, T], counted from the prefix's beginning.
        mask: additive, [R or 1, 1, T, C + T], of the rows' own tokens; the prefix is seen by all.

    Returns:
        The decoder's last states, [R, T, D].

    Raises:
        UserError: the decoder's class computes attention in a way of its own.
    """
    with _attending(vlm):
        return forward_with_cache(vlm, cache, embeddings, positions, mask, trunk=trunk)


def causal_mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the additive mask [R, 1, S, S] of rows' own tokens, `seen` bool[R, S], False at padding."""
    size = seen.shape[1]
    sees = torch.ones(size, size, dtype=torch.bool, device=seen.device).tril() & seen[:, None]
    blind = torch.finfo(dtype).min / 2
    return torch.zeros(sees.shape, dtype=dtype, device=seen.device).masked_fill(~sees, blind)[:, None]


@contextmanager
def _attending(vlm: PixelVLM) -> Iterator[None]:
    """Let the decoder attend by this module's function for a while."""
    if not getattr(vlm.decoder, "_supports_attention_backend", False):
        raise UserError(f"{type(vlm.decoder).__name__} computes attention in a way of its own; pack by mask instead")
    config: Any = vlm.decoder.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    dropout: float = 0.0,
    trunk: SharedPrefixKV | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Return [R, T, heads, width] for queries [R, heads, T, width] and own keys and values [R, groups, S, width]."""
    odd = [name for name in ("softcap", "s_aux") if more.get(name) is not None]
    if trunk is None:
        raise UserError(f"{type(module).__name__} was not told of the prefix that its rows share; pack by mask instead")
    if odd:
        raise UserError(f"{type(module).__name__} asks of attention what sharing a prefix cannot do: {', '.join(odd)}")
    index: Any = module.layer_idx
    keys, values = trunk.layers[index]
    batch, groups, common, _ = keys.shape
    each = (len(query) // batch, query.shape[1] // groups, query.shape[2])  # rows, heads of a group, tokens
    # queries and scores as [B, groups, rows, heads of a group, T, ...]
    asked = (query * scaling).unflatten(0, (batch, each[0])).unflatten(2, (groups, each[1])).transpose(1, 2)
    ahead = (asked.flatten(2, 4) @ keys.mT).unflatten(2, each)
    own_key, own_value = (part.unflatten(0, (batch, each[0])).transpose(1, 2)[:, :, :, None] for part in (key, value))
    own = asked @ own_key.mT
    own = own + attention_mask.expand(len(query), -1, -1, -1).unflatten(0, (batch, each[0]))[:, None]
    weights = torch.cat([ahead, own], dim=-1).softmax(-1, dtype=torch.float32).to(query.dtype)
    if index in trunk.looks:
        trunk.looks[index] = weights.permute(0, 2, 4, 1, 3, 5).flatten(0, 1).flatten(2, 3)
    weights = functional.dropout(weights, dropout, module.training)
    seen = (weights[..., :common].flatten(2, 4) @ values).unflatten(2, each) + weights[..., common:] @ own_value
    # [B, groups, rows, heads of a group, T, width] to [R, T, heads, width]
    return seen.permute(0, 2, 4, 1, 3, 5).flatten(0, 1).flatten(2, 3), None


AttentionInterface.register(NAME, _attend)
