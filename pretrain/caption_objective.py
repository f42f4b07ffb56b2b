"""Captions as an objective: frames of recorded games, written descriptions, and the loss of their tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn import functional

from common.command import require_at_least
from common.errors import UserError
from envs.games import find_game
from pretrain.data.augmentation import crop_or_resize
from pretrain.data.frame_captions import describe_frame, write_caption
from pretrain.data.images import EpisodeFrames
from pretrain.pvp_prompts import IGNORE_INDEX
from vlm.decoding.packing import forward_packed, pad_token_lists
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM
from vlm.prompts import CAPTION_PREFIX
from vlm.training.objective import Batch, Losses, Objective, encode_frames


@dataclass(frozen=True)
class CaptionData:
    """Frames and how many captions of each."""

    data: tuple[str, ...] = ()
    """Directories of recorded games."""
    val_episodes: int = 0
    """The last episodes of every recorded dataset, held out for evaluation."""
    size: tuple[int, int] = (210, 160)
    """Rows and columns of the frames."""
    images: int = 12
    """Frames of a batch."""
    captions: int = 4
    """Captions of each frame."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "images", "captions")


@dataclass(frozen=True)
class CaptionBatch(Batch):
    """Frames with K captions each.

    input_ids: the prompt's last token and a caption; labels: the next token of each, to the caption's end.
    """

    frames: UInt8[Tensor, "B history H W 3"]
    input_ids: Int[Tensor, "B K L"]
    labels: Int[Tensor, "B K L"]


class CaptionSampler:
    """Samples frames of recorded games and writes captions of what is in them.

    Args:
        vlm: the model, for its history and tokenizer.
        data: the settings.
    """

    def __init__(self, vlm: PixelVLM, data: CaptionData):
        if not data.data:
            raise UserError("expected directories of recorded games to describe, got none")
        split = "train" if data.val_episodes else "all"
        self.sources = [EpisodeFrames(Path(place), split, data.val_episodes) for place in data.data]
        self.data, self.tokenizer, self.history = data, vlm.tokenizer, vlm.history
        self.pad = vlm.tokenizer.eos_token_id if vlm.tokenizer.pad_token_id is None else vlm.tokenizer.pad_token_id

    def __call__(self, step: int, rng: np.random.Generator) -> CaptionBatch:
        """Return the batch of a step."""
        stacks, rows = [], []
        for _ in range(self.data.images):
            source = self.sources[int(rng.integers(len(self.sources)))]
            stack = source.frame_stack(int(rng.integers(len(source))), self.history)
            objects, title = describe_frame(stack[-1], source.name), find_game(source.name).title
            stacks.append(crop_or_resize(stack, *self.data.size))
            rows.append(self._tokens([write_caption(objects, title, rng) for _ in range(self.data.captions)]))
        return CaptionBatch(
            frames=torch.from_numpy(np.stack(stacks)),
            input_ids=pad_token_lists([[caption[:-1] for caption in captions] for captions in rows], self.pad)[0],
            labels=pad_token_lists([[caption[1:] for caption in captions] for captions in rows], IGNORE_INDEX)[0],
        )

    def _tokens(self, captions: Sequence[str]) -> list[list[int]]:
        """Return the prompt's last token, each caption's tokens and its end."""
        prompt = self.tokenizer(CAPTION_PREFIX, add_special_tokens=False)["input_ids"]
        found = self.tokenizer(list(captions), add_special_tokens=False)["input_ids"]
        return [[prompt[-1], *tokens, self.tokenizer.eos_token_id] for tokens in found]


class CaptionObjective(Objective[PixelVLM, CaptionBatch]):
    """Cross-entropy on every token of a caption, its end included."""

    stream = (0xCA,)

    def __init__(self, vlm: PixelVLM, data: CaptionData):
        super().__init__(vlm, CaptionSampler(vlm, data))
        self.shared = torch.tensor(vlm.tokenizer(CAPTION_PREFIX, add_special_tokens=False)["input_ids"][:-1])

    def encode(self, batch: CaptionBatch) -> ImageFeatures:
        """Return the features of the frames."""
        return encode_frames(self.vlm, batch.frames)

    def loss(self, features: ImageFeatures, batch: CaptionBatch) -> Losses:
        """Return the loss, and `token_accuracy`, the share of tokens that are the likeliest."""
        shared, kept = self.shared.to(batch.labels.device), batch.labels != IGNORE_INDEX
        hidden = forward_packed(self.vlm, features, shared, batch.input_ids)
        logits = self.vlm.model.get_output_embeddings()(hidden[kept]).float()  # [A, V]
        accuracy = (logits.detach().argmax(-1) == batch.labels[kept]).float().mean()
        return Losses(functional.cross_entropy(logits, batch.labels[kept]), {"token_accuracy": accuracy})
