"""Many questions behind one image, answered together: what they share is read once, then all are decoded in step.

image, text                 read once for an image
3 ,      4 ,      ...       read once for all questions that begin so (here: about places of one row)
0 rgb:   1 rgb:   ...       read for each question, and its answer after it
"""

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, StaticCache

from vlm.errors import VlmError
from vlm.model import PixelVLM
from vlm.prefix import Images, Prefix, embed_words, read_behind, take_rows


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
        chunk: questions decoded at a time, each with keys and values of its own.

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
    batch = _Batch(vlm, Prefix.of(vlm, images, shared, len(questions)), questions, lengths.to(questions.device))
    rows = torch.arange(questions.shape[0] * questions.shape[1], device=questions.device)
    answers = [batch.answer(part, max_new_tokens) for part in rows.split(chunk)]
    longest = max(part.shape[1] for part in answers)
    padded = [functional.pad(part, (0, longest - part.shape[1]), value=_padding(vlm)) for part in answers]
    return torch.cat(padded).unflatten(0, questions.shape[:2])


class _Batch:
    """R = B * K questions, a row each, whose first tokens have been read."""

    def __init__(self, vlm: PixelVLM, prefix: Prefix, questions: Tensor, lengths: Tensor):
        self.vlm, self.prefix, self.lengths = vlm, prefix, lengths.flatten()
        batch, count, _ = questions.shape
        self.image = torch.arange(batch, device=questions.device).repeat_interleave(count)  # [R]
        self.questions = questions.flatten(0, 1)  # [R, L]
        self.cut = self._cheapest_cut()
        rows = torch.cat([self.image[:, None], self.questions[:, : self.cut]], dim=1)
        stems, self.stem = rows.unique(dim=0, return_inverse=True)  # [U, 1 + cut], [R]
        self.cache = take_rows(prefix.cache(vlm), stems[:, 0], into=DynamicCache(config=vlm.decoder.config))
        if self.cut:
            steps = torch.arange(self.cut, device=questions.device)
            self._read(self.cache, embed_words(vlm, stems[:, 1:]), steps, stems[:, 0])

    def _cheapest_cut(self) -> int:
        """Return how many first tokens to read once for all that begin so; at least one is left to each question."""
        rows = torch.cat([self.image[:, None], self.questions], dim=1)
        costs = [
            cut * len(rows[:, : cut + 1].unique(dim=0)) + (self.questions.shape[1] - cut) * len(rows)
            for cut in range(int(self.lengths.min()))
        ]
        return costs.index(min(costs))

    def answer(self, rows: Tensor, max_new_tokens: int) -> Tensor:
        """Answer rows int[C]; return int[C, N].

        Keys and values lie in a cache of fixed size, since one that grows is copied whole for every token.
        """
        size = self.prefix.length + self.questions.shape[1] + max_new_tokens
        cache = take_rows(
            self.cache, self.stem[rows], into=StaticCache(config=self.vlm.decoder.config, max_cache_len=size)
        )
        state, seen = self._read_questions(cache, rows)
        ends = torch.tensor(_ends(self.vlm), dtype=torch.long, device=rows.device)
        done = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        said: list[Tensor] = []
        while True:
            token = self.vlm.model.get_output_embeddings()(state).float().argmax(-1)  # [C]
            said.append(token.masked_fill(done, _padding(self.vlm)))
            done = done | torch.isin(token, ends)
            if len(said) == max_new_tokens or done.all():
                return torch.stack(said, dim=1)
            seen = functional.pad(seen, (0, 1), value=1)
            steps = (self.lengths[rows] + len(said) - 1)[:, None]
            state = self._read(cache, self.vlm.embed(said[-1])[:, None], steps, self.image[rows], seen)[:, -1]

    def _read_questions(self, cache: StaticCache, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Read the rest of questions; return their last tokens' states [C, D], and int[C, P + L], 0 at padding."""
        steps = torch.arange(self.questions.shape[1], device=rows.device)
        own = (steps < self.lengths[rows][:, None]).long()
        seen = functional.pad(own, (self.prefix.length, 0), value=1)
        embeddings = embed_words(self.vlm, self.questions[rows, self.cut :])
        states = self._read(cache, embeddings, steps[self.cut :], self.image[rows], seen)
        last = self.lengths[rows] - 1 - self.cut
        return states[torch.arange(len(rows), device=rows.device), last], seen

    def _read(
        self, cache: DynamicCache | StaticCache, own: Tensor, steps: Tensor, image: Tensor, seen: Tensor | None = None
    ) -> Tensor:
        """Read tokens [C, T, D] that stand `steps` behind the prefixes of `image` int[C]; return states [C, T, D]."""
        positions = self.prefix.positions_behind(steps, image)
        return read_behind(self.vlm, cache, own.to(self.prefix.embeddings.dtype), positions, seen)


def _ends(vlm: PixelVLM) -> list[int]:
    """Return the tokens that end an answer in `generate`."""
    ends = vlm.model.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _padding(vlm: PixelVLM) -> int:
    """Return what `generate` writes behind an answer's end."""
    pad = vlm.model.generation_config.pad_token_id
    return int((_ends(vlm) or [0])[0] if pad is None else pad)
