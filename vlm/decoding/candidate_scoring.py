"""Exact log-probabilities of a set of answers to one prompt, in one forward pass; and free generation.

The answers form a trie: "up" and "up right" share their first token. The trie's nodes follow [text, image, text], each
attending to the prompt, its ancestors and itself, at the position it would have in its answer alone:

    prompt             ...  action  :  | up  | right | left | fire
    position                 n-1    n  | n+1 | n+2   | n+2  | n+1
    node attends to                    | .   | up    | up   | .

An answer's log-probability is the sum over its tokens and its end, exactly that of a separate forward pass.
transformers reads the jumps of positions as borders of packed samples unless it gets a 4D mask, so one is passed.

Classes whose prompts cannot be shared (`vlm.decoding.prefix`), since they attend in both directions or not to all
earlier tokens, take one forward pass of their own for each answer: as exact, and as much slower as there are answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from common.errors import UserError
from vlm.decoding.fused_llama import fused_last_states, supports_fused_llama
from vlm.decoding.prefix import (
    additive_mask,
    deep_inputs,
    forbids_cache,
    forward_with_cache,
    prompt_position_ids,
    reason_against_sharing,
)
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM, uses_mrope
from vlm.tokenizer import token_ids


@dataclass(frozen=True)
class CandidateTrie:
    """Tokenized candidates as a trie of N nodes, parents before children."""

    tokens: tuple[int, ...]  # of each node
    parents: tuple[int, ...]  # of each node, -1 at the first token of a candidate
    depths: tuple[int, ...]  # of each node, 1 at the first token
    ends: tuple[int, ...]  # the last node of each candidate

    @classmethod
    def build(cls, candidates: Sequence[Sequence[int]]) -> "CandidateTrie":
        """Return the trie of tokenized candidates; `UserError` if one is empty or repeated."""
        nodes: dict[tuple[int, ...], int] = {}
        for candidate in candidates:
            for length in range(1, len(candidate) + 1):
                nodes.setdefault(tuple(candidate[:length]), len(nodes))
        ends = [nodes.get(tuple(candidate), -1) for candidate in candidates]
        if -1 in ends or len(set(ends)) != len(ends) or not ends:
            raise UserError("expected different answers of at least one token each")
        parents = tuple(nodes.get(path[:-1], -1) for path in nodes)
        return cls(tuple(path[-1] for path in nodes), parents, tuple(map(len, nodes)), tuple(ends))

    def ancestor_mask(self) -> Bool[np.ndarray, "N N"]:
        """Return whether each node attends to each other one: to its ancestors and itself."""
        mask = np.eye(len(self.tokens), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                mask[node] |= mask[parent]
        return mask


class CandidateScorer:
    """Scores the same candidate answers to the same prompt for many images.

    The text before the image is computed once a batch, or with `cache_prompt` once, while the weights are fixed; in
    trainings that forbid a cache, as under activation checkpointing, for each image anew.
    """

    def __init__(self, vlm: PixelVLM, prompt: str, candidates: Sequence[str], cache_prompt: bool = False):
        self.vlm, self.cache_prompt = vlm, cache_prompt
        self._before, self._after = vlm.prompt_ids(prompt)
        self.candidates = [token_ids(vlm.tokenizer, candidate) for candidate in candidates]
        self.trie = CandidateTrie.build(self.candidates)
        self.shares_prompt = reason_against_sharing(vlm.model) is None
        self._layouts: dict[int, tuple[Tensor, Tensor]] = {}
        self._text_kv: list[tuple[Tensor, Tensor]] | None = None

    def log_probs(self, features: ImageFeatures) -> Float[Tensor, "B C"]:
        """Return the log-probability of every candidate for each image, its end included."""
        return self.forward(features)[0]

    def forward(self, features: ImageFeatures) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B D"]]:
        """Return `log_probs` and the decoder's last hidden state at the prompt's end."""
        if not self.shares_prompt:
            return self._forward_each(features)
        vlm = self.vlm
        image = features.with_markers(vlm.embed, vlm.model.config.image_token_id)  # [B, P, D]
        batch, device = len(image), image.device
        ids = torch.tensor([*self._after, *self.trie.tokens], device=device)
        embeddings = torch.cat([image, vlm.embed(ids).expand(batch, -1, -1).to(image.dtype)], dim=1)
        position_ids, mask = self._layout(features, int(image.shape[1]), device)
        read = len(self.trie.tokens) + 1  # the prompt's last token and the nodes
        if not forbids_cache(vlm.model) and supports_fused_llama(vlm.decoder):
            before, rows = vlm.embed(self._ids_before(device)), mask[0, 0]
            states = fused_last_states(vlm, before, embeddings, position_ids[0], rows[len(before) :], read)
        else:
            states = self._forward_decoder(features, embeddings, position_ids, mask)[:, -read:]
        log_probs = vlm.model.get_output_embeddings()(states).float().log_softmax(-1)
        return self._sum(log_probs), states[:, 0]

    def _forward_decoder(
        self,
        features: ImageFeatures,
        embeddings: Float[Tensor, "B T D"],
        position_ids: Int[Tensor, "*_ P"],
        mask: Float[Tensor, "_ _ P P"],
    ) -> Float[Tensor, "B _ D"]:
        """Return the last hidden states of sequences after the text before the image, by the class's own decoder."""
        vlm, batch, device = self.vlm, len(embeddings), embeddings.device
        mask = mask.to(embeddings.dtype).expand(batch, -1, -1, -1)
        position_ids = position_ids.expand(*position_ids.shape[:-2], batch, -1)
        start = len(self._before)
        if forbids_cache(vlm.model):
            before = vlm.embed(self._ids_before(device)).expand(batch, -1, -1)
            embeddings = torch.cat([before.to(embeddings.dtype), embeddings], dim=1)
            deep = self._deep_inputs(features, 0, int(embeddings.shape[1]))
            return vlm.decoder(
                inputs_embeds=embeddings, position_ids=position_ids, attention_mask=mask, use_cache=False, **deep
            ).last_hidden_state
        deep = self._deep_inputs(features, start, int(embeddings.shape[1]))
        cache, mask, position_ids = self._text_cache(batch), mask[:, :, start:], position_ids[..., start:]
        return forward_with_cache(vlm, cache, embeddings, position_ids, mask, **deep)

    def _ids_before(self, device: torch.device) -> Int[Tensor, " S"]:
        """Return the token ids of the text before the image, of which there may be none."""
        return torch.tensor(self._before, dtype=torch.long, device=device)

    def _deep_inputs(self, features: ImageFeatures, start: int, length: int) -> dict[str, Any]:
        """Return `deep_inputs` of `length` embeddings from one of the prompt's tokens on."""
        if not features.deep_tokens:
            return {}
        is_image = self._prompt(features)[:1, start:] == self.vlm.model.config.image_token_id
        return deep_inputs(features.deep_tokens, is_image, length)

    def _prompt(self, features: ImageFeatures) -> Int[Tensor, "B P"]:
        """Return the token ids of the prompt about each image."""
        batch, count = map(int, features.tokens.shape[:2])
        image = features.image_ids
        image_ids = [self.vlm.model.config.image_token_id] * count if image is None else image.tolist()
        ids = torch.tensor([*self._before, *image_ids, *self._after], device=features.tokens.device)
        return ids.expand(batch, -1)

    def _forward_each(self, features: ImageFeatures) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B D"]]:
        """Return `forward` by a pass of the class's own for each candidate."""
        prompt, totals, hidden = self._prompt(features), [], torch.empty(0)
        for candidate in self.candidates:
            answer = torch.tensor(candidate, device=prompt.device)
            ids = torch.cat([prompt, answer.expand(len(prompt), -1)], dim=1)
            inputs = self.vlm.forward_inputs(ids, features.inputs, len(candidate))
            output = self.vlm.model(**inputs, use_cache=False, output_hidden_states=True)
            log_probs = output.logits[:, prompt.shape[1] - 1 :].float().log_softmax(-1)  # [B, answer and end, V]
            tokens = answer.expand(len(prompt), -1)[..., None]
            totals.append(log_probs[:, :-1].gather(-1, tokens).sum((1, 2)) + self._end(log_probs)[:, -1])
            hidden = output.hidden_states[-1][:, prompt.shape[1] - 1]
        return torch.stack(totals, dim=1), hidden

    def _end(self, log_probs: Float[Tensor, "B T V"]) -> Float[Tensor, "B T"]:
        """Return the log-probability of an end after each token."""
        return log_probs[:, :, self.vlm.end_ids].logsumexp(-1)

    def _sum(self, log_probs: Float[Tensor, "B nodes_and_1 V"]) -> Float[Tensor, "B C"]:
        """Return the sum over each candidate's tokens and its end."""
        totals: list[Tensor] = []  # of the path to each node
        for token, parent in zip(self.trie.tokens, self.trie.parents, strict=True):
            own = log_probs[:, parent + 1, token]
            totals.append(own if parent < 0 else totals[parent] + own)
        end = self._end(log_probs)
        return torch.stack([totals[node] + end[:, node + 1] for node in self.trie.ends], dim=1)

    def _layout(self, features: ImageFeatures, image_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return position ids and the additive mask, float[1, 1, T, T], of prompt and nodes."""
        if image_tokens not in self._layouts:
            prompt = len(self._before) + image_tokens + len(self._after)
            length = prompt + len(self.trie.tokens)
            visible = torch.ones(length, length, dtype=torch.bool).tril()
            visible[prompt:, prompt:] = torch.from_numpy(self.trie.ancestor_mask())
            before = torch.arange(prompt, device=device)[None]
            self._layouts[image_tokens] = (
                self._with_nodes(before),
                additive_mask(visible)[None, None].to(device),
            )
        position_ids, mask = self._layouts[image_tokens]
        if uses_mrope(self.vlm.model):  # images of other sides may have as many tokens
            position_ids = self._with_nodes(prompt_position_ids(self.vlm, features, self._prompt(features)))
        return position_ids, mask

    def _with_nodes(self, prompt: Int[Tensor, "*dims P"]) -> Int[Tensor, "*dims T"]:
        """Return the position ids of prompt and nodes, given the prompt's."""
        nodes = prompt.amax(-1, keepdim=True) + torch.tensor(self.trie.depths, device=prompt.device)
        return torch.cat([prompt, nodes], dim=-1)

    def _text_cache(self, batch: int) -> DynamicCache:
        """Return a cache of the text before the image for each row of a batch."""
        cache = DynamicCache(config=self.vlm.decoder.config)
        if not self._before:
            return cache
        text_kv = self._text_kv
        if text_kv is None:
            ids = self._ids_before(self.vlm.device)[None]
            text = DynamicCache(config=self.vlm.decoder.config)
            position_ids = torch.arange(ids.shape[1], device=ids.device)[None]
            forward_with_cache(self.vlm, text, self.vlm.embed(ids), position_ids)
            text_kv = [(layer.keys, layer.values) for layer in text.layers]
        if self.cache_prompt and not torch.is_grad_enabled():
            self._text_kv = text_kv
        for layer, (keys, values) in zip(cache.layers, text_kv, strict=True):
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1)
        return cache


def prompt_ids(vlm: PixelVLM, prompt: str, image_ids: Sequence[int]) -> list[int]:
    """Return the token ids of a prompt for transformers' own forward; `image_ids` from `PixelVLM.image_ids`."""
    before, after = vlm.prompt_ids(prompt)
    return [*before, *image_ids, *after]


@torch.no_grad()
def generate_text(vlm: PixelVLM, images: Any, prompt: str, max_new_tokens: int = 8) -> list[str]:
    """Return the model's greedy answer to a prompt about each of the images of `PixelVLM.preprocess`."""
    batch = len(images) if isinstance(images, Tensor) else images.num_images
    ids = torch.tensor(prompt_ids(vlm, prompt, vlm.image_ids(images)), device=vlm.device).expand(batch, -1)
    output = vlm.model.generate(**vlm.forward_inputs(ids, images), max_new_tokens=max_new_tokens, do_sample=False)
    return [vlm.tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True).strip() for row in output]
