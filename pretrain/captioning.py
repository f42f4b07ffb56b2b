"""Captions as a lesson for a VLM: what is said of a frame, in the words of `pretrain.captions`.

    <image> [caption]                   ->  a frame of pong with two paddles and a ball , a ball in the centre

It is the task of meaning beside the task of detail in a mixture (`pretrain.mixture`): Gou et al. 2024 teach pixel
values as one of the tasks of pre-training, among captions. Several captions of a frame share one pass over it
(`vlm.packing`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from envs.games import find_game
from pretrain.augment import to_size
from pretrain.captions import see_things, write_caption
from pretrain.images import EpisodeFrames
from pretrain.questions import IGNORED, pad_rows
from vlm.errors import VlmError
from vlm.model import PixelVLM
from vlm.packing import read_questions
from vlm.prompts import CAPTION_PREFIX
from vlm.trainer import Lesson


class Descriptions(Dataset):
    """Step i's frames and captions, drawn from the seed and i alone.

    An item is `frames` uint8[B, history, H, W, 3], `read` int[B, K, L], a caption without its end, and `said`
    int[B, K, L], the caption from its first word to its end: what shall be said next at each token.

    Args:
        vlm: the model, for its history and tokenizer.
        data: directories of recorded games.
        held_out: the last games of every directory, which are never drawn.
        size: rows and columns that frames are brought to.
        steps, images, count: number of steps; frames a step; captions a frame.
        seed: of all drawing.
    """

    def __init__(
        self,
        vlm: PixelVLM,
        data: Sequence[str],
        held_out: int,
        size: tuple[int, int],
        steps: int,
        images: int,
        count: int,
        seed: int,
    ):
        if not data:
            raise VlmError("expected directories of recorded games to describe, got none")
        which = "training" if held_out else "all"
        self.sources = [EpisodeFrames(Path(place), held_out, which) for place in data]
        self.tokenizer, self.history, self.size = vlm.tokenizer, vlm.history, size
        self.pad = vlm.tokenizer.eos_token_id if vlm.tokenizer.pad_token_id is None else vlm.tokenizer.pad_token_id
        self.steps, self.images, self.count, self.seed = steps, images, count, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, step, 0xCA])
        stacks, rows = [], []
        for _ in range(self.images):
            source = self.sources[int(rng.integers(len(self.sources)))]
            stack = source.stack(int(rng.integers(len(source))), self.history)
            things, title = see_things(stack[-1], source.name), find_game(source.name).title
            stacks.append(to_size(stack, *self.size))
            rows.append(self._tokens([write_caption(things, title, rng) for _ in range(self.count)]))
        return {
            "frames": torch.from_numpy(np.stack(stacks)),
            "read": pad_rows([[caption[:-1] for caption in captions] for captions in rows], self.pad),
            "said": pad_rows([[caption[1:] for caption in captions] for captions in rows], IGNORED),
        }

    def _tokens(self, captions: list[str]) -> list[list[int]]:
        """Return each caption's tokens behind the last one of the prompt, its end included."""
        prompt = self.tokenizer(CAPTION_PREFIX, add_special_tokens=False)["input_ids"]
        found = self.tokenizer(captions, add_special_tokens=False)["input_ids"]
        return [[prompt[-1], *tokens, self.tokenizer.eos_token_id] for tokens in found]


class Captioning(Lesson):
    """Captions as a lesson: cross-entropy on every word, the end included."""

    vlm: PixelVLM

    def __init__(self, vlm: PixelVLM, bf16: bool, attention: str = "sdpa"):
        super().__init__(vlm, bf16, attention)
        prompt = vlm.tokenizer(CAPTION_PREFIX, add_special_tokens=False)["input_ids"]
        self.shared = torch.tensor(prompt[:-1])

    def forward(self, frames: Tensor, read: Tensor, said: Tensor) -> dict[str, Tensor]:
        """Return the loss, and `exact`, the share of words that would be said as they are.

        Args:
            frames: uint8[B, history, H, W, 3].
            read: int[B, K, L], the prompt's last token and a caption.
            said: int[B, K, L], what shall be said next.
        """
        with self.autocast():
            hidden = read_questions(self.vlm, self.vlm.pixels(frames), self.shared.to(read.device), read)
            logits = self.vlm.model.get_output_embeddings()(hidden[said != IGNORED]).float()  # [A, V]
        wanted = said[said != IGNORED]
        exact = (logits.detach().argmax(-1) == wanted).float().mean()
        return {"loss": functional.cross_entropy(logits, wanted), "exact": exact}
