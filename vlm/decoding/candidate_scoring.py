"""Exact scores of a set of answers after one prompt, in one pass; and free generation beside it.

The answers form a trie: "up" and "up right" share their first token. Behind [text, image, text] lie the trie's
nodes, each seeing the prompt, its ancestors and itself, at the position it would have if its answer stood alone:

    prompt          ...  action  :  | up  | right | left | fire
    position              n-1    n  | n+1 | n+2   | n+2  | n+1
    node sees                       | .   | up    | up   | .

The log-probability of an answer is the sum over its tokens and its end, exactly what the model gives it when asked
alone (tested against the plain forward). The mask is additive and of floats: a boolean one is silently misread by
the eager attention, and without a mask a jump of positions is read as the border of a packed sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig

from common.errors import UserError
from vlm.decoding.prefix import forward_with_cache
from vlm.hf_vlm import uses_mrope
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM
from vlm.prompts import IMAGE


@dataclass(frozen=True)
class CandidateTrie:
    """Answers as a trie, parents before children.

    tokens: the token of each of N nodes; parents: the node before it, -1 at the first token of an answer;
    depths: 1 at the first token; ends: for each answer, the node that it ends at.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def build(cls, answers: Sequence[Sequence[int]]) -> "CandidateTrie":
        """Build the trie of tokenised answers; empty and repeated ones are refused."""
        nodes: dict[tuple[int, ...], int] = {}
        for answer in answers:
            for length in range(1, len(answer) + 1):
                nodes.setdefault(tuple(answer[:length]), len(nodes))
        ends = [nodes.get(tuple(answer), -1) for answer in answers]
        if -1 in ends or len(set(ends)) != len(ends) or not ends:
            raise UserError("expected different answers of at least one token each")
        parents = tuple(nodes.get(path[:-1], -1) for path in nodes)
        return cls(tuple(path[-1] for path in nodes), parents, tuple(map(len, nodes)), tuple(ends))

    def sight(self) -> np.ndarray:
        """Return bool[N, N]: which node sees which, its ancestors and itself."""
        sees = np.eye(len(self.tokens), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                sees[node] |= sees[parent]
        return sees


class CandidateScorer:
    """Scores the same answers to the same prompt, frame after frame.

    The text before the image is the same for every row, so the decoder reads it once a batch. With `cache_prompt` it is
    read once for good: for play, where the weights stand still. Without it, gradients flow through it: for training.
    """

    def __init__(self, vlm: PixelVLM, prompt: str, choices: Sequence[str], cache_prompt: bool = False):
        before, image, after = prompt.partition(IMAGE)
        if not image:
            raise UserError(f"expected a prompt with {IMAGE} in it, got {prompt!r}")
        if uses_mrope(vlm.model):
            raise UserError(
                f"{type(vlm.model).__name__} counts time, rows and columns apart, which scores of answers do not yet; "
                "let it speak (--decode generate)"
            )
        self.vlm, self.choices, self.cache_prompt = vlm, tuple(choices), cache_prompt
        self._before, self._after = [*vlm.bos_ids, *self._tokens(before)], self._tokens(after)
        self.trie = CandidateTrie.build([self._tokens(choice) for choice in choices])
        self._layouts: dict[int, tuple[Tensor, Tensor]] = {}
        self._text: list[tuple[Tensor, Tensor]] | None = None

    def _tokens(self, text: str) -> list[int]:
        return self.vlm.tokenizer(text, add_special_tokens=False)["input_ids"]

    def log_probs(self, features: ImageFeatures) -> Tensor:
        """Return float32[B, C]: the log-probability of every answer about each of B images, its end included."""
        return self.forward(features)[0]

    def forward(self, features: ImageFeatures) -> tuple[Tensor, Tensor]:
        """Return what `log_probs` does, and the decoder's state at the prompt's end, [B, D]."""
        vlm = self.vlm
        image = features.with_markers(vlm.embed, vlm.model.config.image_token_id)  # [B, N, D]
        batch, device = len(image), image.device
        tail = torch.tensor([*self._after, *self.trie.tokens], device=device)
        embeddings = torch.cat([image, vlm.embed(tail).expand(batch, -1, -1).to(image.dtype)], dim=1)
        positions, mask = self._layout(image.shape[1], device)
        seen = mask.to(embeddings.dtype).expand(batch, -1, -1, -1)
        hidden = forward_with_cache(vlm, self._text_cache(batch), embeddings, positions.expand(batch, -1), seen)
        answers = hidden[:, -len(self.trie.tokens) - 1 :]  # the prompt's last token, then the nodes
        said = vlm.model.get_output_embeddings()(answers).float().log_softmax(-1)
        return self._sum(said), answers[:, 0]

    def _sum(self, log_probs: Tensor) -> Tensor:
        """Add up each answer's tokens: [B, 1 + nodes, vocabulary] to [B, C]."""
        total: list[Tensor] = []
        for node, (token, parent) in enumerate(zip(self.trie.tokens, self.trie.parents, strict=True)):
            own = log_probs[:, parent + 1, token]
            total.append(own if parent < 0 else total[parent] + own)
            assert len(total) == node + 1
        end = log_probs[:, :, self.vlm.tokenizer.eos_token_id]
        return torch.stack([total[node] + end[:, node + 1] for node in self.trie.ends], dim=1)

    def _layout(self, image_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return positions [1, T] and the additive mask [1, 1, T, all], of what comes after the kept text."""
        if image_tokens not in self._layouts:
            prompt = len(self._before) + image_tokens + len(self._after)
            length = prompt + len(self.trie.tokens)
            positions = torch.arange(length)
            positions[prompt:] = prompt - 1 + torch.tensor(self.trie.depths)
            sees = torch.ones(length, length, dtype=torch.bool).tril()
            sees[prompt:, prompt:] = torch.from_numpy(self.trie.sight())
            mask = torch.zeros(length, length).masked_fill(~sees, torch.finfo(torch.float32).min / 2)
            kept = len(self._before)
            self._layouts[image_tokens] = (positions[None, kept:].to(device), mask[None, None, kept:].to(device))
        return self._layouts[image_tokens]

    def _text_cache(self, batch: int) -> DynamicCache:
        """Return a cache that holds the text before the image, read once."""
        config = self.vlm.decoder.config
        text = self._text or self._read_text(config)
        if self.cache_prompt and not torch.is_grad_enabled():
            self._text = text
        cache = DynamicCache(config=config)
        for layer, (keys, values) in zip(cache.layers, text, strict=True):
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1)
        if cache.get_seq_length() != len(self._before):
            raise RuntimeError("the decoder kept no cache: is gradient checkpointing on?")
        return cache

    def _read_text(self, config: PretrainedConfig) -> list[tuple[Tensor, Tensor]]:
        """Return keys and values of the text before the image, a pair for each layer of the decoder."""
        ids = torch.tensor([self._before], device=self.vlm.device)
        read = DynamicCache(config=config)
        forward_with_cache(self.vlm, read, self.vlm.embed(ids), torch.arange(ids.shape[1], device=ids.device)[None])
        return [(layer.keys, layer.values) for layer in read.layers]


def prompt_ids(vlm: PixelVLM, prompt: str, image_ids: Sequence[int]) -> list[int]:
    """Return the token ids of a prompt as transformers' forward wants it; `image_ids` of `PixelVLM.image_ids`."""
    before, _, after = prompt.partition(IMAGE)
    encode = lambda text: vlm.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    return [*vlm.bos_ids, *encode(before), *image_ids, *encode(after)]


@torch.no_grad()
def generate_text(vlm: PixelVLM, pixels: Any, prompt: str, max_new_tokens: int = 8) -> list[str]:
    """Return what the model says, greedily and freely, to a prompt about each image."""
    prompted = torch.tensor(prompt_ids(vlm, prompt, vlm.image_ids(pixels)), device=vlm.device)
    ids = prompted.expand(len(pixels) if isinstance(pixels, Tensor) else pixels.num_images, -1)
    said = vlm.model.generate(**vlm.generate_inputs(ids, pixels), max_new_tokens=max_new_tokens, do_sample=False)
    return [vlm.tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True).strip() for row in said]
