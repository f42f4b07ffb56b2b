"""Many questions behind one image: each sees the image and itself, none sees another.

    position   0 .. P-1      P  P+1  P+2      P  P+1  P+2      P ..
               image, text   question 0       question 1       ...

One reading gives what separate sequences give, in loss and gradient, for every class of transformers that
`vlm.decoding.prefix` admits. There are two ways:

    mask    all in one sequence. Every question restarts at position P, and the mask (additive, of floats: a boolean
            one is misread by eager attention) cuts the questions off from each other. The positions jump, which the
            library reads as the border of a packed sample unless a 4D mask is passed: it always is. Works with
            gradient checkpointing; attention costs the square of the number of questions.
    cache   the prefix once, then the questions as rows behind its keys and values, through which the gradient flows
            back (`vlm.decoding.shared_prefix_attention`). Costs grow with the number of questions alone, and no copy of the prefix is made.

Questions of differing lengths are padded on the right: what is causal never looks there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from common.errors import UserError
from vlm.decoding.prefix import Prefix, embed_text, encode_prefix
from vlm.decoding.shared_prefix_attention import SharedPrefixKV, causal_mask, forward_with_shared_prefix
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM


@dataclass(frozen=True)
class PackedLayout:
    """A layout: `prefix` shared tokens, then `questions` runs of `length` tokens each."""

    prefix: int
    questions: int
    length: int

    def steps(self, device: torch.device | None = None) -> Tensor:
        """Return int[K * L]: how far behind the prefix each token of a question stands."""
        return torch.arange(self.length, device=device).repeat(self.questions)

    def mask(self, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
        """Return the additive mask [1, 1, T, T]."""
        total = self.prefix + self.questions * self.length
        own = torch.arange(self.questions, device=device).repeat_interleave(self.length)
        owner = torch.cat([torch.full((self.prefix,), -1, device=device), own])
        sees = torch.ones(total, total, dtype=torch.bool, device=device).tril()
        sees &= (owner[None] == -1) | (owner[None] == owner[:, None])
        blind = torch.finfo(dtype).min / 2
        return torch.zeros(total, total, dtype=dtype, device=device).masked_fill(~sees, blind)[None, None]


def forward_packed(
    vlm: PixelVLM, features: ImageFeatures, shared: Tensor, questions: Tensor, method: str = "cache"
) -> Tensor:
    """Read K questions behind each of B images, with each image read once.

    Args:
        vlm: the model; `vlm.decoding.prefix.check_sharable` tells which classes will do.
        features: of B images, by `PixelVLM.encode_images`.
        shared: int[S] or int[B, S], what comes before every question; see `encode_prefix`.
        questions: int[B, K, L], the questions' tokens, and their answers' in training; see `pad_token_lists`.
        method: cache, the faster one, or mask, which gradient checkpointing asks for; the same states.

    Returns:
        The decoder's last states of the questions' tokens, [B, K, L, D]; those of padding mean nothing and must be
        left out of a loss.

    Raises:
        UserError: the class cannot share a prefix, images and placeholders do not match, or `cache` was asked for
            under gradient checkpointing.
    """
    if questions.ndim != 3:
        raise UserError(f"expected questions int[B, K, L], got {list(questions.shape)}")
    if method not in _METHODS:
        raise UserError(f"expected a method ({', '.join(_METHODS)}), got {method!r}")
    return _METHODS[method](vlm, encode_prefix(vlm, features, shared), questions)


def forward_packed_with_attention(
    vlm: PixelVLM, features: ImageFeatures, shared: Tensor, questions: Tensor, layers: Sequence[int]
) -> tuple[Tensor, dict[int, Tensor]]:
    """Return what `forward_packed` does, by cache, and what the questions' tokens look at in some layers.

    Returns:
        States [B, K, L, D], and by the index of each layer weights of the attention [B, K, L, heads, P + L]: of the
        image's tokens and `shared`'s, then of the question's own.
    """
    prefix = encode_prefix(vlm, features, shared)
    trunk = SharedPrefixKV.of(prefix.cache(vlm), layers)
    states = _read_behind(vlm, prefix, trunk, questions)
    return states, {
        layer: looks.unflatten(0, questions.shape[:2]) for layer, looks in trunk.looks.items() if looks is not None
    }


def pad_token_lists(questions: Sequence[Sequence[Sequence[int]]], pad: int) -> tuple[Tensor, Tensor]:
    """Return token lists, K for each of B images, as int[B, K, L] padded on the right, and their lengths int[B, K]."""
    counts = {len(asked) for asked in questions}
    if len(counts) != 1 or not all(tokens for asked in questions for tokens in asked):
        raise UserError(f"expected equally many questions of each image, none empty; got {sorted(counts)} of them")
    lengths = torch.tensor([[len(tokens) for tokens in asked] for asked in questions])
    longest = int(lengths.max())
    padded = [[[*tokens, *[pad] * (longest - len(tokens))] for tokens in asked] for asked in questions]
    return torch.tensor(padded), lengths


def _read_by_mask(vlm: PixelVLM, prefix: Prefix, questions: Tensor) -> Tensor:
    batch, count, length = questions.shape
    own = embed_text(vlm, questions.flatten(1)).to(prefix.embeddings.dtype)
    embeddings = torch.cat([prefix.embeddings, own], dim=1)  # [B, T, D]
    layout = PackedLayout(prefix.length, count, length)
    hidden = vlm.decoder(
        inputs_embeds=embeddings,
        position_ids=torch.cat([prefix.positions, prefix.position_ids_after(layout.steps(own.device))], dim=-1),
        attention_mask=layout.mask(embeddings.dtype, own.device).expand(batch, -1, -1, -1),
        use_cache=False,
    ).last_hidden_state
    return hidden[:, prefix.length :].unflatten(1, (count, length))


def _read_by_cache(vlm: PixelVLM, prefix: Prefix, questions: Tensor) -> Tensor:
    return _read_behind(vlm, prefix, SharedPrefixKV.of(prefix.cache(vlm)), questions)


def _read_behind(vlm: PixelVLM, prefix: Prefix, trunk: SharedPrefixKV, questions: Tensor) -> Tensor:
    batch, count, length = questions.shape
    rows = torch.arange(batch, device=questions.device).repeat_interleave(count)
    positions = prefix.position_ids_after(torch.arange(length, device=questions.device), rows)
    own = embed_text(vlm, questions.flatten(0, 1)).to(prefix.embeddings.dtype)  # [B * K, L, D]
    mask = causal_mask(torch.ones(1, length, dtype=torch.bool, device=own.device), own.dtype)
    cache = DynamicCache(config=vlm.decoder.config)
    hidden = forward_with_shared_prefix(vlm, trunk, cache, own, positions, mask)
    return hidden.unflatten(0, (batch, count))


def forward_packed_tree(
    vlm: PixelVLM, features: ImageFeatures, shared: Tensor, trunks: Tensor, lengths: Tensor, leaves: Tensor
) -> Tensor:
    """Read K leaves behind each of E trunks behind each of B images, equal to reading each path by itself.

        image, shared       [segmentation]
        trunk 0             the red ghost loc: [            trunk 1     the gun loc: [
        leaves              12,7] mask:   3,9] mask: ...    leaves      12,7] mask: ...

    Args:
        vlm: the model; `vlm.decoding.prefix.check_sharable` tells which classes will do.
        features: of B images, by `PixelVLM.encode_images`.
        shared: int[S] or int[B, S], what comes before every trunk; see `encode_prefix`.
        trunks: int[B, E, T], padded on the right.
        lengths: int[B, E], the trunks' lengths.
        leaves: int[B, E, K, L], padded on the right.

    Returns:
        The decoder's last states of the leaves' tokens, [B, E, K, L, D]; those of padding mean nothing.
    """
    prefix = encode_prefix(vlm, features, shared)
    layout = PackedTreeLayout(prefix.length, lengths, trunks.shape[2], leaves.shape[2], leaves.shape[3])
    words = torch.cat([trunks.flatten(1), leaves.flatten(1)], dim=1)
    embeddings = torch.cat([prefix.embeddings, embed_text(vlm, words).to(prefix.embeddings.dtype)], dim=1)
    rows = torch.arange(len(trunks), device=trunks.device)
    hidden = vlm.decoder(
        inputs_embeds=embeddings,
        position_ids=torch.cat([prefix.positions, prefix.position_ids_after(layout.steps(), rows)], dim=-1),
        attention_mask=layout.mask(embeddings.dtype),
        use_cache=False,
    ).last_hidden_state
    return hidden[:, prefix.length + trunks[0].numel() :].unflatten(1, leaves.shape[1:])


@dataclass(frozen=True)
class PackedTreeLayout:
    """A layout: `prefix` shared tokens, then E trunks of up to `trunk` tokens, then for each `leaves` of `leaf` tokens.

    lengths: int[B, E], the trunks' own lengths; leaves begin where their trunk ends, whatever the padding.
    """

    prefix: int
    lengths: Tensor
    trunk: int
    leaves: int
    leaf: int

    def steps(self) -> Tensor:
        """Return int[B, E * T + E * K * L]: how far behind the prefix each token stands."""
        (batch, trunks), device = self.lengths.shape, self.lengths.device
        own = torch.arange(self.trunk, device=device).repeat(batch, trunks)
        behind = self.lengths[..., None, None] + torch.arange(self.leaf, device=device).repeat(self.leaves, 1)
        return torch.cat([own, behind.flatten(1)], dim=1)

    def mask(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the additive mask [B, 1, T, T] of all tokens."""
        (batch, trunks), device = self.lengths.shape, self.lengths.device
        trunk = torch.arange(trunks, device=device)
        owner = torch.cat(  # the trunk of each token, -1 in the prefix
            [
                torch.full((self.prefix,), -1, device=device),
                trunk.repeat_interleave(self.trunk),
                trunk.repeat_interleave(self.leaves * self.leaf),
            ]
        )
        leaf = torch.full_like(owner, -1)  # the leaf of each token, -1 in prefix and trunks
        first = self.prefix + trunks * self.trunk
        leaf[first:] = torch.arange(trunks * self.leaves, device=device).repeat_interleave(self.leaf)
        sees = torch.ones(len(owner), len(owner), dtype=torch.bool, device=device).tril()
        sees &= (owner[None] == -1) | (owner[None] == owner[:, None])
        sees &= (leaf[None] == -1) | (leaf[None] == leaf[:, None])
        there = torch.ones(batch, len(owner), dtype=torch.bool, device=device)
        there[:, self.prefix : first] = (torch.arange(self.trunk, device=device) < self.lengths[..., None]).flatten(1)
        seen = sees & there[:, None] | torch.eye(len(owner), dtype=torch.bool, device=device)
        blind = torch.finfo(dtype).min / 2
        return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, blind)[:, None]


_METHODS = {"mask": _read_by_mask, "cache": _read_by_cache}
