"""Many suffixes of one image in one forward pass: each attends to the prefix and to itself, none to another.

    position   0 .. P-1      P  P+1  P+2      P  P+1  P+2      P ..
               image, text   suffix 0         suffix 1         ...

Losses and gradients equal those of separate sequences, by one of two methods:

    mask    one sequence. Every suffix restarts at position P, and the mask separates the suffixes. transformers reads
            jumps of positions as borders of packed samples unless it gets a 4D mask, so one is always passed. Works
            with gradient checkpointing; attention is quadratic in the number of suffixes.
    cache   the prefix once, then the suffixes as rows after its keys and values, through which gradients flow back
            (`vlm.decoding.shared_prefix_attention`). Linear in the number of suffixes, without copies of the prefix.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from common.errors import UserError
from vlm.decoding.fused_llama import fused_answer_states, supports_fused_llama
from vlm.decoding.prefix import (
    SharedIds,
    additive_mask,
    causal_mask,
    deep_inputs,
    embed_text,
    encode_prefix,
    forbids_cache,
)
from vlm.decoding.shared_prefix_attention import CachedPrefix, forward_with_shared_prefix
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM

Suffixes = Int[Tensor, "B K L"]
Lengths = Int[Tensor, "B K"]
Reads = Mapping[int, Int[Tensor, "B K L M"]]


def forward_packed(
    vlm: PixelVLM, features: ImageFeatures, shared_ids: SharedIds, suffixes: Suffixes, method: str | None = None
) -> Float[Tensor, "B K L D"]:
    """Return the decoder's last hidden states of K suffixes for each of B images; undefined at padding.

    `shared_ids` is the text before every suffix (`encode_prefix`). Suffixes are padded by `pad_token_lists`, and in
    training hold their answers. `method` is cache, or mask, which is slower; by default cache, and mask where a cache
    is forbidden, as under activation checkpointing.

    Raises:
        UserError: the class cannot share a prefix, image tokens and placeholders do not match, or `cache` was requested
            under gradient checkpointing.
    """
    if method is None:
        method = "mask" if forbids_cache(vlm.model) else "cache"
    if method == "cache":
        return _forward_suffixes(vlm, CachedPrefix.encode(vlm, features, shared_ids), suffixes)
    if method != "mask":
        raise UserError(f"expected a method (mask, cache), got {method!r}")
    no_tokens, no_length = suffixes.new_zeros(len(suffixes), 1, 0), suffixes.new_zeros(1, 1)  # one empty branch
    return forward_packed_tree(vlm, features, shared_ids, no_tokens, no_length, suffixes[:, None])[:, 0]


def forward_packed_with_attention(
    vlm: PixelVLM, features: ImageFeatures, shared_ids: SharedIds, suffixes: Suffixes, layers: Sequence[int]
) -> tuple[Float[Tensor, "B K L D"], dict[int, Float[Tensor, "B K L heads all"]]]:
    """Return the states of `forward_packed` by cache, and the attention weights of the suffixes' tokens in some layers.

    Weights are by layer index, over the prefix's P tokens and then the suffix's own L.
    """
    cached_prefix = CachedPrefix.encode(vlm, features, shared_ids, layers)
    states = _forward_suffixes(vlm, cached_prefix, suffixes)
    recorded = cached_prefix.attention_weights.items()
    return states, {layer: w.unflatten(0, suffixes.shape[:2]) for layer, w in recorded if w is not None}


def forward_packed_answers(
    vlm: PixelVLM,
    features: ImageFeatures,
    shared_ids: SharedIds,
    suffixes: Suffixes,
    labelled: Bool[Tensor, "B K L"],
    reads: Reads | None = None,
) -> tuple[Float[Tensor, "A D"], dict[int, Float[Tensor, "B K L heads M"]]]:
    """Return the states of `forward_packed` at labelled tokens alone, and attention weights of some layers.

    `reads` has, by layer, M tokens for each of the suffixes' own, which count from the prefix's first: the weights on
    these are returned. Those of the last layer are undefined before the first labelled token. A plain Llama that trains
    on a CPU takes `vlm.decoding.fused_llama`.
    """
    reads = reads or {}
    if supports_fused_llama(vlm.decoder):
        prefix, embeddings = encode_prefix(vlm, features, shared_ids), embed_text(vlm, suffixes)
        return fused_answer_states(vlm, prefix, embeddings, labelled, reads)
    if not reads:
        return forward_packed(vlm, features, shared_ids, suffixes)[labelled], {}
    states, weights = forward_packed_with_attention(vlm, features, shared_ids, suffixes, tuple(reads))
    return states[labelled], {layer: weights_on(weights[layer], tokens) for layer, tokens in reads.items()}


def weights_on(
    attention: Float[Tensor, "B K L heads all"], tokens: Int[Tensor, "B K L M"]
) -> Float[Tensor, "B K L heads M"]:
    """Return the weights of each token's heads on M tokens."""
    return attention.gather(-1, tokens[:, :, :, None].expand(*attention.shape[:-1], -1))


def pad_token_lists(rows: Sequence[Sequence[Sequence[int]]], pad: int) -> tuple[Suffixes, Lengths]:
    """Return token lists, K for each of B images, padded on the right, and their lengths; none may be empty."""
    counts = {len(row) for row in rows}
    if len(counts) != 1 or not all(tokens for row in rows for tokens in row):
        raise UserError(f"expected equally many token lists for each image, none empty; got {sorted(counts)} of them")
    lengths = torch.tensor([[len(tokens) for tokens in row] for row in rows])
    longest = int(lengths.max())
    padded = [[[*tokens, *[pad] * (longest - len(tokens))] for tokens in row] for row in rows]
    return torch.tensor(padded), lengths


def _forward_suffixes(vlm: PixelVLM, cached_prefix: CachedPrefix, suffixes: Tensor) -> Tensor:
    embeddings, length = embed_text(vlm, suffixes.flatten(0, 1)), suffixes.shape[2]  # [B * K, L, D]
    valid, offsets = torch.ones_like(suffixes[0, :1], dtype=torch.bool), torch.arange(length, device=suffixes.device)
    mask = causal_mask(valid, cached_prefix.prefix.embeddings.dtype)
    cache = DynamicCache(config=vlm.decoder.config)
    states = forward_with_shared_prefix(vlm, cached_prefix, cache, embeddings, offsets, mask)
    return states.unflatten(0, suffixes.shape[:2])


def forward_packed_tree(
    vlm: PixelVLM,
    features: ImageFeatures,
    shared_ids: SharedIds,
    prefixes: Int[Tensor, "B E T"],
    lengths: Int[Tensor, "_ E"],
    suffixes: Int[Tensor, "B E K L"],
) -> Float[Tensor, "B E K L D"]:
    """Return the last hidden states of K suffixes of each of E prefixes of each of B images, as of separate sequences.

        image, shared       [segmentation]
        prefix 0            the red ghost loc: [            prefix 1    the gun loc: [
        suffixes            12,7] mask:   3,9] mask: ...    suffixes    12,7] mask: ...

    Prefixes and suffixes are padded on the right, and the states of padding are meaningless. `lengths` are those of the
    prefixes, of each image or of all. The other arguments are those of `forward_packed`.
    """
    root = encode_prefix(vlm, features, shared_ids)
    layout = PackedTreeLayout(root.length, lengths, prefixes.shape[2], suffixes.shape[2], suffixes.shape[3])
    ids = torch.cat([prefixes.flatten(1), suffixes.flatten(1)], dim=1)
    embeddings = torch.cat([root.embeddings, embed_text(vlm, ids).to(root.embeddings.dtype)], dim=1)
    states = vlm.decoder(
        inputs_embeds=embeddings,
        position_ids=torch.cat([root.position_ids, root.position_ids_after(layout.offsets())], dim=-1),
        attention_mask=layout.mask(embeddings.dtype).expand(len(embeddings), -1, -1, -1),
        use_cache=False,
        **deep_inputs(root.deep_tokens, root.is_image, embeddings.shape[1]),
    ).last_hidden_state
    return states[:, root.length + prefixes[0].numel() :].unflatten(1, suffixes.shape[1:])


@dataclass(frozen=True)
class PackedTreeLayout:
    """A sequence of a root, E prefixes of up to `prefix_length` tokens, and `num_suffixes` suffixes of each prefix.

    lengths: of the prefixes without padding, where the positions of suffixes continue; B is 1 if all images share them.
    """

    root_length: int
    lengths: Int[Tensor, "B E"]
    prefix_length: int
    num_suffixes: int
    suffix_length: int

    def offsets(self) -> Int[Tensor, "B T"]:
        """Return the offset of each prefix and suffix token from the root's end."""
        (batch, num_prefixes), device = self.lengths.shape, self.lengths.device
        in_prefixes = torch.arange(self.prefix_length, device=device).repeat(batch, num_prefixes)
        in_suffix = torch.arange(self.suffix_length, device=device).repeat(self.num_suffixes, 1)
        return torch.cat([in_prefixes, (self.lengths[..., None, None] + in_suffix).flatten(1)], dim=1)

    def mask(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "B 1 T T"]:
        """Return the additive mask of the whole sequence."""
        (batch, num_prefixes), device = self.lengths.shape, self.lengths.device
        branch = torch.arange(num_prefixes, device=device)
        suffix = torch.arange(num_prefixes * self.num_suffixes, device=device).repeat_interleave(self.suffix_length)
        in_prefixes = branch.repeat_interleave(self.prefix_length)
        in_suffixes = branch.repeat_interleave(self.num_suffixes * self.suffix_length)
        root, end = torch.full((self.root_length,), -1, device=device), self.root_length + len(in_prefixes)
        prefix_ids = torch.cat([root, in_prefixes, in_suffixes])  # the prefix of each token, -1 in the root
        suffix_ids = torch.cat([root, torch.full_like(in_prefixes, -1), suffix])  # -1 in root and prefixes
        valid = torch.ones(batch, len(prefix_ids), dtype=torch.bool, device=device)
        unpadded = torch.arange(self.prefix_length, device=device) < self.lengths[..., None]  # [B, E, T]
        valid[:, self.root_length : end] = unpadded.flatten(1)
        visible = torch.ones(len(prefix_ids), len(prefix_ids), dtype=torch.bool, device=device).tril()
        for segment_ids in (prefix_ids, suffix_ids):  # tokens attend to segment -1 and to their own
            visible &= (segment_ids[None] == -1) | (segment_ids[None] == segment_ids[:, None])
        diagonal = torch.eye(len(prefix_ids), dtype=torch.bool, device=device)  # padding too attends to something
        return additive_mask(visible & valid[:, None] | diagonal, dtype)[:, None]
