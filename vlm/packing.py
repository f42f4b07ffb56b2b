"""Many questions behind one image: each sees the image and itself, none sees another.

    position   0 .. P-1      P  P+1  P+2      P  P+1  P+2      P ..
               image, text   question 0       question 1       ...

One reading gives what separate sequences give, in loss and gradient, for every class of transformers that
`vlm.prefix` admits. There are two ways:

    mask    all in one sequence. Every question restarts at position P, and the mask (additive, of floats: a boolean
            one is misread by eager attention) cuts the questions off from each other. The positions jump, which the
            library reads as the border of a packed sample unless a 4D mask is passed: it always is. Works with
            gradient checkpointing; attention costs the square of the number of questions.
    cache   the prefix once, then the questions as rows behind its keys and values, through which the gradient flows
            back. Needs no mask, so that any attention will do; costs grow with the number of questions alone.

Questions of differing lengths are padded on the right: what is causal never looks there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from vlm.errors import VlmError
from vlm.model import PixelVLM
from vlm.prefix import Images, Prefix, embed_words, read_behind, take_rows


@dataclass(frozen=True)
class Packing:
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


def read_questions(vlm: PixelVLM, images: Images, shared: Tensor, questions: Tensor, method: str = "mask") -> Tensor:
    """Read K questions behind each of B images, with each image read once.

    Args:
        vlm: the model; `vlm.prefix.check_sharable` tells which classes will do.
        images: of `PixelVLM.pixels`, or the class's own image inputs by name; see `Prefix.of`.
        shared: int[S] or int[B, S], what comes before every question; see `Prefix.of`.
        questions: int[B, K, L], the questions' tokens, and their answers' in training; see `pad_questions`.
        method: mask or cache; the same states at another cost.

    Returns:
        The decoder's last states of the questions' tokens, [B, K, L, D]; those of padding mean nothing and must be
        left out of a loss.

    Raises:
        VlmError: the class cannot share a prefix, images and placeholders do not match, or `cache` was asked for
            under gradient checkpointing.
    """
    if questions.ndim != 3:
        raise VlmError(f"expected questions int[B, K, L], got {list(questions.shape)}")
    if method not in _METHODS:
        raise VlmError(f"expected a method ({', '.join(_METHODS)}), got {method!r}")
    return _METHODS[method](vlm, Prefix.of(vlm, images, shared, len(questions)), questions)


def pad_questions(questions: Sequence[Sequence[Sequence[int]]], pad: int) -> tuple[Tensor, Tensor]:
    """Return token lists, K for each of B images, as int[B, K, L] padded on the right, and their lengths int[B, K]."""
    counts = {len(asked) for asked in questions}
    if len(counts) != 1 or not all(tokens for asked in questions for tokens in asked):
        raise VlmError(f"expected equally many questions of each image, none empty; got {sorted(counts)} of them")
    lengths = torch.tensor([[len(tokens) for tokens in asked] for asked in questions])
    longest = int(lengths.max())
    padded = [[[*tokens, *[pad] * (longest - len(tokens))] for tokens in asked] for asked in questions]
    return torch.tensor(padded), lengths


def _read_by_mask(vlm: PixelVLM, prefix: Prefix, questions: Tensor) -> Tensor:
    batch, count, length = questions.shape
    own = embed_words(vlm, questions.flatten(1)).to(prefix.embeddings.dtype)
    embeddings = torch.cat([prefix.embeddings, own], dim=1)  # [B, T, D]
    layout = Packing(prefix.length, count, length)
    hidden = vlm.decoder(
        inputs_embeds=embeddings,
        position_ids=torch.cat([prefix.positions, prefix.positions_behind(layout.steps(own.device))], dim=-1),
        attention_mask=layout.mask(embeddings.dtype, own.device).expand(batch, -1, -1, -1),
        use_cache=False,
    ).last_hidden_state
    return hidden[:, prefix.length :].unflatten(1, (count, length))


def _read_by_cache(vlm: PixelVLM, prefix: Prefix, questions: Tensor) -> Tensor:
    batch, count, length = questions.shape
    rows = torch.arange(batch, device=questions.device).repeat_interleave(count)
    positions = prefix.positions_behind(torch.arange(length, device=questions.device), rows)
    own = embed_words(vlm, questions.flatten(0, 1)).to(prefix.embeddings.dtype)  # [B * K, L, D]
    cache = take_rows(prefix.cache(vlm), rows, into=DynamicCache(config=vlm.decoder.config))
    hidden = read_behind(vlm, cache, own, positions)
    return hidden.unflatten(0, (batch, count))


_METHODS = {"mask": _read_by_mask, "cache": _read_by_cache}
