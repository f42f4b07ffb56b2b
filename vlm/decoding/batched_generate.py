"""Many questions behind one image, answered together: what they share is read once, then all are decoded in step.

image, text                 read once for an image
3 ,      4 ,      ...       read once for all questions that begin so (here: about places of one row)
0 rgb:   1 rgb:   ...       read for each question, and its answer after it
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from common.errors import UserError
from vlm.decoding.prefix import Prefix, embed_text, encode_prefix, gather_cache_rows
from vlm.decoding.shared_prefix_attention import SharedPrefixKV, causal_mask, forward_with_shared_prefix
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM


@torch.no_grad()
def generate_batch(
    vlm: PixelVLM,
    features: ImageFeatures,
    shared: Tensor,
    questions: Tensor,
    max_new_tokens: int,
    lengths: Tensor | None = None,
    chunk: int = 512,
) -> Tensor:
    """Answer K questions about each of B images greedily, as the library's `generate` answers each alone.

    Args:
        vlm: the model.
        features: of B images, by `PixelVLM.encode_images`.
        shared: int[S] or int[B, S], what comes before every question; see `encode_prefix`.
        questions: int[B, K, L], padded on the right.
        max_new_tokens: where an answer is cut that has not ended; it ends as `generation_config` says.
        lengths: int[B, K], the questions' lengths; all L by default.
        chunk: about how many questions are decoded at a time.

    Returns:
        int[B, K, N] on the questions' device, with N at most `max_new_tokens`: the answers, their end included, and
        padding behind it.

    Raises:
        UserError: the class cannot share a prefix, or shapes do not fit.
    """
    if max_new_tokens < 1:
        raise UserError(f"expected answers of at least 1 token, got {max_new_tokens}")
    asked = _Asked(vlm, CachedPrefix.of(vlm, features, shared), questions, lengths)
    answers = [asked.answer(columns, max_new_tokens) for columns in asked.split(chunk)]
    longest = max(part.shape[-1] for part in answers)
    padded = [functional.pad(part, (0, longest - part.shape[-1]), value=_padding(vlm)) for part in answers]
    return torch.cat(padded, dim=1)


@dataclass(frozen=True)
class CachedPrefix:
    """Prefixes of B images that have been read once, for as many rounds of questions as there are to be."""

    prefix: Prefix
    trunk: SharedPrefixKV

    @classmethod
    def of(cls, vlm: PixelVLM, features: ImageFeatures, shared: Tensor) -> "CachedPrefix":
        """Read what stands before every question; see `encode_prefix`."""
        prefix = encode_prefix(vlm, features, shared)
        return cls(prefix, SharedPrefixKV.of(prefix.cache(vlm)))


@torch.no_grad()
def last_hidden_states(
    vlm: PixelVLM, begun: CachedPrefix, questions: Tensor, lengths: Tensor | None = None, chunk: int = 256
) -> Tensor:
    """Return the decoder's states [B, K, D] that the first tokens of the answers come from; see `generate_batch`."""
    asked = _Asked(vlm, begun, questions, lengths)
    states = [asked.begin(columns).state for columns in asked.split(chunk)]
    return torch.cat([part.unflatten(0, (len(questions), -1)) for part in states], dim=1)


@dataclass(frozen=True)
class _Begun:
    """R questions that have been read, image by image.

    cache: of their own tokens; seen: bool[R, L], False at padding; lengths: int[R]; state: [R, D], at the last of each.
    """

    cache: DynamicCache
    seen: Tensor
    lengths: Tensor
    state: Tensor


class _Asked:
    """K questions about each of B images, whose first tokens have been read.

    cut: how many tokens were read once for all questions that begin with them; begun: the cache of those tokens;
    stem: int[B, K], each question's row in it.
    """

    def __init__(self, vlm: PixelVLM, read: CachedPrefix, questions: Tensor, lengths: Tensor | None):
        lengths = torch.full(questions.shape[:2], questions.shape[-1]) if lengths is None else lengths
        if questions.ndim != 3 or lengths.shape != questions.shape[:2]:
            raise UserError(
                f"expected questions int[B, K, L], lengths int[B, K], got {list(questions.shape)}, "
                f"{list(lengths.shape)}"
            )
        self.vlm, self.questions, self.lengths = vlm, questions, lengths.to(questions.device)
        self.prefix, self.trunk = read.prefix, read.trunk
        self.cut, alike = self._cheapest_cut()
        self.begun = DynamicCache(config=vlm.decoder.config)
        stems, self.stem = _spread(alike)
        if self.cut:
            words = questions.flatten(0, 1)[stems, : self.cut]  # [B * U, cut]
            steps = torch.arange(self.cut, device=words.device).expand(len(words), -1)
            self._read(self.begun, embed_text(vlm, words), steps, torch.ones_like(words, dtype=torch.bool))

    def _cheapest_cut(self) -> tuple[int, Tensor]:
        """Return how many first tokens to read once for all that begin so, and int[B, K], which questions do.

        At least one token is left to each question. Numbers rise from image to image.
        """
        batch, count, longest = self.questions.shape
        alike = torch.arange(batch, device=self.questions.device)[:, None].expand(batch, count)
        vocabulary = int(self.questions.max()) + 1
        costs, found = [], []
        for cut in range(int(self.lengths.min())):
            kinds, alike = alike.unique(return_inverse=True)
            costs.append(cut * len(kinds) + (longest - cut) * batch * count)
            found.append(alike)
            alike = alike * vocabulary + self.questions[:, :, cut]
        cut = costs.index(min(costs))
        return cut, found[cut]

    def split(self, chunk: int) -> Sequence[Tensor]:
        """Return the questions' numbers in parts of about `chunk` questions of all images together."""
        if chunk < 1:
            raise UserError(f"expected a chunk of at least 1, got {chunk}")
        columns = torch.arange(self.questions.shape[1], device=self.questions.device)
        return columns.split(max(1, chunk // len(self.questions)))

    def begin(self, columns: Tensor) -> _Begun:
        """Read the questions int[c] of every image."""
        stems, lengths = self.stem[:, columns].flatten(), self.lengths[:, columns].flatten()  # [R]
        cache = DynamicCache(config=self.vlm.decoder.config)
        if self.cut:
            gather_cache_rows(self.begun, stems, into=cache)
        words = self.questions[:, columns].flatten(0, 1)  # [R, L]
        seen = torch.arange(words.shape[1], device=words.device) < lengths[:, None]
        steps = torch.arange(self.cut, words.shape[1], device=words.device).expand(len(words), -1)
        states = self._read(cache, embed_text(self.vlm, words[:, self.cut :]), steps, seen)
        last = states[torch.arange(len(words), device=words.device), lengths - 1 - self.cut]
        return _Begun(cache, seen, lengths, last)

    def answer(self, columns: Tensor, max_new_tokens: int) -> Tensor:
        """Answer the questions int[c] of every image; return int[B, c, N]."""
        begun = self.begin(columns)
        state, seen, device = begun.state, begun.seen, begun.state.device
        ends = torch.tensor(_ends(self.vlm), dtype=torch.long, device=device)
        done = torch.zeros(len(state), dtype=torch.bool, device=device)
        said: list[Tensor] = []
        while True:
            token = self.vlm.model.get_output_embeddings()(state).float().argmax(-1)  # [R]
            said.append(token.masked_fill(done, _padding(self.vlm)))
            done = done | torch.isin(token, ends)
            if len(said) == max_new_tokens or done.all():
                return torch.stack(said, dim=1).unflatten(0, (len(self.questions), -1))
            seen = functional.pad(seen, (0, 1), value=True)
            steps = (begun.lengths + len(said) - 1)[:, None]
            state = self._read(begun.cache, self.vlm.embed(said[-1])[:, None], steps, seen)[:, -1]

    def _read(self, cache: DynamicCache, own: Tensor, steps: Tensor, seen: Tensor) -> Tensor:
        """Read tokens [R, T, D], the last of `seen` bool[R, S], `steps` behind their images; return their states."""
        owners = torch.arange(len(self.questions), device=own.device).repeat_interleave(len(own) // len(self.questions))
        own, positions = own.to(self.prefix.embeddings.dtype), self.prefix.position_ids_after(steps, owners)
        mask = causal_mask(seen, own.dtype)[:, :, -own.shape[1] :]
        return forward_with_shared_prefix(self.vlm, self.trunk, cache, own, positions, mask)


def _spread(alike: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows for the kinds of questions, equally many for each image, and each question's row.

    Args:
        alike: int[B, K], the kinds of an image's questions, numbered from image to image without a gap.

    Returns:
        int[B * U], a question (of B * K) of the kind in each row, kinds of an image with fewer than U repeated; and
        int[B, K], each question's row.
    """
    batch, count = alike.shape
    first, last = alike.amin(1, keepdim=True), alike.amax(1, keepdim=True)
    most = int((last - first).max()) + 1
    example = torch.empty(int(last.max()) + 1, dtype=torch.long, device=alike.device)
    example[alike.flatten()] = torch.arange(batch * count, device=alike.device)
    rows = torch.minimum(first + torch.arange(most, device=alike.device), last)
    own = torch.arange(batch, device=alike.device)[:, None] * most
    return example[rows].flatten(), own + alike - first


def _ends(vlm: PixelVLM) -> list[int]:
    """Return the tokens that end an answer in `generate`."""
    ends = vlm.model.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _padding(vlm: PixelVLM) -> int:
    """Return what `generate` writes behind an answer's end."""
    pad = vlm.model.generation_config.pad_token_id
    return int((_ends(vlm) or [0])[0] if pad is None else pad)
