"""Greedy answers to many prompts about each image, decoded in parallel; what prompts share is computed once.

image, text                 once for an image
3 ,      4 ,      ...       once for all prompts that begin alike (here: coordinates of one row)
0 rgb:   1 rgb:   ...       for each prompt, and its answer after it
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from common.errors import UserError
from vlm.decoding.prefix import Offsets, SharedIds, causal_mask, embed_text
from vlm.decoding.shared_prefix_attention import CachedPrefix, forward_with_shared_prefix
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM

Lengths = Int[Tensor, "_ _"]


@torch.no_grad()
def generate_batch(
    vlm: PixelVLM,
    features: ImageFeatures,
    shared_ids: SharedIds,
    suffixes: Int[Tensor, "B K L"],
    max_new_tokens: int,
    lengths: Lengths | None = None,
    chunk: int = 512,
) -> Int[Tensor, "B K N"]:
    """Return the greedy answers to K prompts about each of B images, equal to those of `generate` for each alone.

    A prompt is `shared_ids` (`encode_prefix`) and a suffix, padded on the right, with `lengths` without padding. About
    `chunk` prompts are decoded at a time. An answer of fewer than `max_new_tokens` holds its end and is padded after
    it; the model's `generation_config` defines both.

    Raises:
        UserError: the class cannot share a prefix, or shapes do not fit.
    """
    if max_new_tokens < 1:
        raise UserError(f"expected max_new_tokens of at least 1, got {max_new_tokens}")
    state = DecodingState(vlm, CachedPrefix.encode(vlm, features, shared_ids), suffixes, lengths)
    answers = [state.generate(columns, max_new_tokens) for columns in state.split(chunk)]
    longest, (_, pad) = max(part.shape[-1] for part in answers), _end_and_pad_ids(vlm)
    return torch.cat([functional.pad(part, (0, longest - part.shape[-1]), value=pad) for part in answers], dim=1)


@torch.no_grad()
def fill_template(
    vlm: PixelVLM,
    cached_prefix: CachedPrefix,
    suffixes: Int[Tensor, "B K L"],
    allowed_ids: Int[Tensor, " C"],
    separators: Sequence[Int[Tensor, " _"]],
    lengths: Lengths | None = None,
    chunk: int = 128,
) -> Float[Tensor, "B K slots C"]:
    """Return the logits of the allowed tokens in each slot of answers of one form: slot, separator, slot, ...

    The likeliest allowed token fills a slot, and the separator after it is forced; the last slot ends the answer. So an
    answer takes one pass a slot, and equals the greedy one wherever that has this form.

    Raises:
        UserError: the class cannot share a prefix, or shapes do not fit.
    """
    state = DecodingState(vlm, cached_prefix, suffixes, lengths)
    parts = [state.fill_slots(columns, allowed_ids, separators) for columns in state.split(chunk)]
    return torch.cat(parts, dim=1)


@torch.no_grad()
def last_hidden_states(
    vlm: PixelVLM, cached_prefix: CachedPrefix, suffixes: Int[Tensor, "B K L"], lengths: Lengths
) -> Float[Tensor, "B K D"]:
    """Return the decoder's last hidden state of each prompt, which predicts the answer's first token."""
    state = DecodingState(vlm, cached_prefix, suffixes, lengths)
    hidden = [state.prefill(columns)[-1] for columns in state.split(chunk=256)]
    return torch.cat([part.unflatten(0, (len(suffixes), -1)) for part in hidden], dim=1)


class DecodingState:
    """K suffixes for each of B images.

    Their first `split_point` tokens are cached once for each group of suffixes that share them, in `group_cache`;
    `prefix_group` int[B, K] is each suffix's row in it.
    """

    def __init__(self, vlm: PixelVLM, cached_prefix: CachedPrefix, suffixes: Tensor, lengths: Tensor | None):
        lengths = torch.full(suffixes.shape[:2], suffixes.shape[-1]) if lengths is None else lengths
        if suffixes.ndim != 3 or lengths.shape != suffixes.shape[:2]:
            raise UserError(
                f"expected suffixes int[B, K, L], lengths int[B, K], got {list(suffixes.shape)}, {list(lengths.shape)}"
            )
        self.vlm, self.cached_prefix = vlm, cached_prefix
        self.suffixes, self.lengths = suffixes, lengths.to(suffixes.device)
        self.split_point, group_ids = self._cheapest_split()
        self.group_cache = DynamicCache(config=vlm.decoder.config)
        examples, self.prefix_group = pad_groups(group_ids)
        if self.split_point:
            ids = suffixes.flatten(0, 1)[examples, : self.split_point]  # [B * U, split_point]
            offsets = torch.arange(self.split_point, device=ids.device)
            self._forward(self.group_cache, embed_text(vlm, ids), offsets, torch.ones_like(ids, dtype=torch.bool))

    def _cheapest_split(self) -> tuple[int, Int[Tensor, "B K"]]:
        """Return the split point with the fewest tokens to compute, and each suffix's group, numbered across images.

        At least one token is left to each suffix.
        """
        batch, count, longest = self.suffixes.shape
        group_ids = torch.arange(batch, device=self.suffixes.device)[:, None].expand(batch, count)
        vocabulary = int(self.suffixes.max()) + 1
        costs, candidates = [], []
        for split_point in range(int(self.lengths.min())):
            groups, group_ids = group_ids.unique(return_inverse=True)
            costs.append(split_point * len(groups) + (longest - split_point) * batch * count)
            candidates.append(group_ids)
            group_ids = group_ids * vocabulary + self.suffixes[:, :, split_point]
        split_point = costs.index(min(costs))
        return split_point, candidates[split_point]

    def split(self, chunk: int) -> Sequence[Int[Tensor, " c"]]:
        """Return the suffixes' indices in parts of about `chunk` suffixes of all images together."""
        if chunk < 1:
            raise UserError(f"expected a chunk of at least 1, got {chunk}")
        columns = torch.arange(self.suffixes.shape[1], device=self.suffixes.device)
        return columns.split(max(1, chunk // len(self.suffixes)))

    def prefill(
        self, columns: Int[Tensor, " c"]
    ) -> tuple[DynamicCache, Bool[Tensor, "R L"], Int[Tensor, " R"], Float[Tensor, "R D"]]:
        """Run the decoder over these suffixes of every image.

        Returns:
            Of these R prompts, image by image: their cache, which tokens are no padding, lengths, last hidden states.
        """
        groups, lengths = self.prefix_group[:, columns].flatten(), self.lengths[:, columns].flatten()
        cache = DynamicCache(config=self.vlm.decoder.config)
        if self.split_point:
            for index, layer in enumerate(self.group_cache.layers):
                cache.update(layer.keys.index_select(0, groups), layer.values.index_select(0, groups), index)
        ids = self.suffixes[:, columns].flatten(0, 1)  # [R, L]
        valid = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        offsets = torch.arange(self.split_point, ids.shape[1], device=ids.device)
        states = self._forward(cache, embed_text(self.vlm, ids[:, self.split_point :]), offsets, valid)
        last = states[torch.arange(len(ids), device=ids.device), lengths - 1 - self.split_point]
        return cache, valid, lengths, last

    def generate(self, columns: Int[Tensor, " c"], max_new_tokens: int) -> Int[Tensor, "B c N"]:
        """Return the greedy answers to these prompts of every image."""
        cache, valid, lengths, hidden = self.prefill(columns)
        end_ids, pad = _end_and_pad_ids(self.vlm)
        ends = torch.tensor(end_ids, dtype=torch.long, device=hidden.device)
        done = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
        generated: list[Tensor] = []
        while True:
            token = self.vlm.model.get_output_embeddings()(hidden).float().argmax(-1)  # [R]
            generated.append(token.masked_fill(done, pad))
            done = done | torch.isin(token, ends)
            if len(generated) == max_new_tokens or done.all():
                return torch.stack(generated, dim=1).unflatten(0, (len(self.suffixes), -1))
            valid, hidden = self._append(cache, valid, lengths + len(generated) - 1, generated[-1][:, None])

    def fill_slots(
        self, columns: Int[Tensor, " c"], allowed_ids: Int[Tensor, " C"], separators: Sequence[Int[Tensor, " _"]]
    ) -> Float[Tensor, "B c slots C"]:
        """Return `fill_template` for these prompts of every image."""
        cache, valid, end, hidden = self.prefill(columns)
        head = self.vlm.model.get_output_embeddings()
        weight, bias = head.weight[allowed_ids], None if head.bias is None else head.bias[allowed_ids]
        logits = [functional.linear(hidden, weight, bias).float()]
        for separator in separators:
            filled = allowed_ids[logits[-1].argmax(-1)]
            tokens = torch.cat([filled[:, None], separator.expand(len(filled), -1)], dim=1)
            valid, hidden = self._append(cache, valid, end, tokens)
            end = end + tokens.shape[1]
            logits.append(functional.linear(hidden, weight, bias).float())
        return torch.stack(logits, dim=1).unflatten(0, (len(self.suffixes), -1))

    def _append(
        self, cache: DynamicCache, valid: Bool[Tensor, "R S"], end: Int[Tensor, " R"], tokens: Int[Tensor, "R T"]
    ) -> tuple[Bool[Tensor, "R S_and_T"], Float[Tensor, "R D"]]:
        """Run T more tokens after the rows' `end`; return which tokens are no padding, and the last hidden states."""
        valid = functional.pad(valid, (0, tokens.shape[1]), value=True)
        offsets = end[:, None] + torch.arange(tokens.shape[1], device=end.device)
        return valid, self._forward(cache, self.vlm.embed(tokens), offsets, valid)[:, -1]

    def _forward(
        self, cache: DynamicCache, embeddings: Float[Tensor, "R T D"], offsets: Offsets, valid: Bool[Tensor, "R S"]
    ) -> Float[Tensor, "R T D"]:
        """Return the last hidden states of the last T of S tokens, `offsets` after their images' prefixes."""
        mask = causal_mask(valid, self.cached_prefix.prefix.embeddings.dtype)[:, :, -embeddings.shape[1] :]
        return forward_with_shared_prefix(self.vlm, self.cached_prefix, cache, embeddings, offsets, mask)


def pad_groups(group_ids: Int[Tensor, "B K"]) -> tuple[Int[Tensor, " BU"], Int[Tensor, "B K"]]:
    """Return rows for groups of suffixes, numbered across images without a gap, and each suffix's row.

    A row is the flat index of one suffix of its group. Each image has the same number U of rows: the last group of an
    image with fewer is repeated.
    """
    batch, count = group_ids.shape
    first, last = group_ids.amin(1, keepdim=True), group_ids.amax(1, keepdim=True)
    most = int((last - first).max()) + 1
    example = torch.empty(int(last.max()) + 1, dtype=torch.long, device=group_ids.device)
    example[group_ids.flatten()] = torch.arange(batch * count, device=group_ids.device)
    groups = torch.minimum(first + torch.arange(most, device=group_ids.device), last)
    first_row = torch.arange(batch, device=group_ids.device)[:, None] * most
    return example[groups].flatten(), first_row + group_ids - first


def _end_and_pad_ids(vlm: PixelVLM) -> tuple[list[int], int]:
    """Return the tokens that end an answer in `generate`, and the one that it writes after the end."""
    config = vlm.model.generation_config
    ends = [config.eos_token_id] if isinstance(config.eos_token_id, int) else list(config.eos_token_id or [])
    return ends, (ends or [0])[0] if config.pad_token_id is None else config.pad_token_id
