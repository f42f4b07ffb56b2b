"""Many questions behind one image, answered together: the image is read once, then all are decoded in step."""

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from vlm.errors import VlmError
from vlm.model import PixelVLM
from vlm.prefix import Images, Prefix, embed_words, read_behind, repeat_cache


@torch.no_grad()
def answer_questions(
    vlm: PixelVLM,
    images: Images,
    shared: Tensor,
    questions: Tensor,
    max_new_tokens: int,
    lengths: Tensor | None = None,
    chunk: int = 512,
) -> Tensor:
    """Answer K questions about each of B images greedily, as the library's `generate` answers each alone.

    Args:
        vlm: the model.
        images: of `PixelVLM.pixels`, or the class's own image inputs by name; see `Prefix.of`.
        shared: int[S] or int[B, S], what comes before every question; see `Prefix.of`.
        questions: int[B, K, L], padded on the right.
        max_new_tokens: where an answer is cut that has not ended; it ends as `generation_config` says.
        lengths: int[B, K], the questions' lengths; all L by default.
        chunk: questions about each image decoded at a time, each with a copy of its image's keys and values.

    Returns:
        int[B, K, N] on the questions' device, with N at most `max_new_tokens`: the answers, their end included, and
        padding behind it.

    Raises:
        VlmError: the class cannot share a prefix, or shapes do not fit.
    """
    lengths = torch.full(questions.shape[:2], questions.shape[-1]) if lengths is None else lengths
    if questions.ndim != 3 or lengths.shape != questions.shape[:2] or chunk < 1 or max_new_tokens < 1:
        raise VlmError(
            f"expected questions int[B, K, L], lengths int[B, K], a chunk and answers of at least 1, got "
            f"{list(questions.shape)}, {list(lengths.shape)}, {chunk} and {max_new_tokens}"
        )
    prefix = Prefix.of(vlm, images, shared, len(questions))
    cache = prefix.cache(vlm)
    parts = zip(questions.split(chunk, 1), lengths.to(questions.device).split(chunk, 1), strict=True)
    answers = [_Decoding(vlm, prefix, cache, *part).run(max_new_tokens) for part in parts]
    longest = max(part.shape[-1] for part in answers)
    pad = _padding(vlm)
    return torch.cat([functional.pad(part, (0, longest - part.shape[-1]), value=pad) for part in answers], 1)


class _Decoding:
    """One chunk of questions, a row each, R = B * K rows, decoded token by token."""

    def __init__(self, vlm: PixelVLM, prefix: Prefix, cache: DynamicCache, questions: Tensor, lengths: Tensor):
        self.vlm, self.prefix, self.shape, self.lengths = vlm, prefix, questions.shape[:2], lengths
        self.cache = repeat_cache(vlm, cache, questions.shape[1])
        self.questions = questions.flatten(0, 1)  # [R, L]
        before = torch.ones(len(self.questions), prefix.length, dtype=torch.long, device=questions.device)
        steps = torch.arange(questions.shape[2], device=questions.device)
        self.seen = torch.cat([before, (steps < lengths.flatten()[:, None]).long()], dim=1)  # [R, P + L], 0: padding

    def run(self, max_new_tokens: int) -> Tensor:
        """Return the answers, int[B, K, N]."""
        ends = torch.tensor(_ends(self.vlm), dtype=torch.long, device=self.questions.device)
        done = torch.zeros(len(self.questions), dtype=torch.bool, device=self.questions.device)
        state = self._read_questions()
        said: list[Tensor] = []
        while True:
            token = self.vlm.model.get_output_embeddings()(state).float().argmax(-1)  # [R]
            said.append(token.masked_fill(done, _padding(self.vlm)))
            done = done | torch.isin(token, ends)
            if len(said) == max_new_tokens or done.all():
                return torch.stack(said, dim=1).unflatten(0, self.shape)
            state = self._read(self.vlm.embed(said[-1])[:, None], self.lengths[..., None] + len(said) - 1)[:, -1]

    def _read_questions(self) -> Tensor:
        """Return the states of the questions' last tokens, [R, D]."""
        steps = torch.arange(self.questions.shape[1], device=self.questions.device)
        states = self._read(embed_words(self.vlm, self.questions), steps.expand(*self.shape, -1))
        return states[torch.arange(len(states), device=states.device), self.lengths.flatten() - 1]

    def _read(self, embeddings: Tensor, steps: Tensor) -> Tensor:
        """Read tokens [R, T, D] that stand `steps` int[B, K, T] behind the prefix; return their states [R, T, D]."""
        rows, length, _ = embeddings.shape
        unread = self.cache.get_seq_length() + length - self.seen.shape[1]
        self.seen = functional.pad(self.seen, (0, unread), value=1)
        positions = self.prefix.positions_behind(steps.flatten(1))  # [.., B, K * T]
        positions = positions.reshape(*positions.shape[:-2], rows, length)
        own = embeddings.to(self.prefix.embeddings.dtype)
        return read_behind(self.vlm, self.cache, own, positions, self.seen)


def _ends(vlm: PixelVLM) -> list[int]:
    """Return the tokens that end an answer in `generate`."""
    ends = vlm.model.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _padding(vlm: PixelVLM) -> int:
    """Return what `generate` writes behind an answer's end."""
    pad = vlm.model.generation_config.pad_token_id
    return int((_ends(vlm) or [0])[0] if pad is None else pad)
