"""Captions as an objective: frames of recorded games, written descriptions, and the loss of their tokens."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from common.command import require_at_least
from common.errors import UserError
from envs.games import find_game
from pretrain.answer_objective import IGNORE_INDEX, AnswerBatch, AnswerObjective, pad_answers
from pretrain.data.augmentation import crop_or_resize
from pretrain.data.frame_captions import describe_frame, write_caption
from pretrain.data.images import EpisodeFrames
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM
from vlm.prompts import CAPTION_PREFIX
from vlm.training.objective import Losses


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


class CaptionSampler:
    """Samples frames of recorded games and writes captions of what is in them."""

    def __init__(self, vlm: PixelVLM, data: CaptionData):
        if not data.data:
            raise UserError("expected directories of recorded games to describe, got none")
        split = "train" if data.val_episodes else "all"
        self.sources = [EpisodeFrames(Path(place), split, data.val_episodes) for place in data.data]
        self.data, self.tokenizer, self.history = data, vlm.tokenizer, vlm.history
        self.pad = vlm.tokenizer.eos_token_id if vlm.tokenizer.pad_token_id is None else vlm.tokenizer.pad_token_id

    def __call__(self, step: int, rng: np.random.Generator) -> AnswerBatch:
        """Return the batch of a step."""
        stacks, rows = [], []
        for _ in range(self.data.images):
            source = self.sources[int(rng.integers(len(self.sources)))]
            stack = source.frame_stack(int(rng.integers(len(source))), self.history)
            objects, title = describe_frame(stack[-1], source.name), find_game(source.name).title
            stacks.append(crop_or_resize(stack, *self.data.size))
            captions = [write_caption(objects, title, rng) for _ in range(self.data.captions)]
            prompt, *tokens = self.tokenizer([CAPTION_PREFIX, *captions], add_special_tokens=False)["input_ids"]
            rows.append([(prompt[-1:], [*caption, self.tokenizer.eos_token_id]) for caption in tokens])
        return AnswerBatch(torch.from_numpy(np.stack(stacks)), *pad_answers(rows, self.pad))


class CaptionObjective(AnswerObjective[AnswerBatch]):
    """Cross-entropy on every token of a caption, its end included."""

    stream = (0xCA,)

    def __init__(self, vlm: PixelVLM, data: CaptionData):
        super().__init__(vlm, CaptionSampler(vlm, data))
        self.shared = torch.tensor(vlm.tokenizer(CAPTION_PREFIX, add_special_tokens=False)["input_ids"][:-1])

    def loss(self, features: ImageFeatures, batch: AnswerBatch) -> Losses:
        """Return the loss, and `token_accuracy`, the share of tokens that are the likeliest."""
        shared = self.shared.to(batch.labels.device)
        states, *_ = self.answer_states(features, shared, batch.input_ids, batch.labels)
        logits, labels = self.answer_logits(states), batch.labels[batch.labels != IGNORE_INDEX]
        accuracy = (logits.detach().argmax(-1) == labels).float().mean()
        return Losses(functional.cross_entropy(logits, labels), {"token_accuracy": accuracy})
