"""CLIP's contrastive loss over frames of recorded games and captions (Radford et al. 2021)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn import functional

from common.command import require_at_least
from common.errors import UserError
from envs.episodes import EpisodeDataset
from envs.games import find_game
from pretrain.data.frame_captions import DetectedObject, describe_frame, write_caption
from pretrain.data.splits import split_rows
from vlm.clip import PixelClip, tokenize
from vlm.training.objective import Batch, Losses, Objective

NO_TITLE_PROB = 0.3  # of a caption that leaves the game out, so that the objects have to be seen


@dataclass(frozen=True)
class ContrastiveData:
    """Frames, captions and how many games a batch mixes."""

    data: tuple[Path, ...] = ()
    """Directories of recorded games, one or more a game; more games teach more."""
    grid: str = "32"
    """The grid whose rows and columns initialize a new tower's positions: 32, 64 or native."""
    images: int = 96
    """Frames of a batch, each with its caption; every other frame's caption is a negative."""
    games: int = 16
    """Datasets that the first batches draw frames from, or all there are."""
    games_at_end: int = 3
    """Datasets of the last batches: the fewer, the more the objects of a frame must tell it from the others."""
    val_episodes: int = 2
    """The last episodes of every dataset, held out for evaluation."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "images", "games", "games_at_end", "val_episodes")
        least = 2 * max(self.games, self.games_at_end)
        if self.images < least:
            raise UserError(f"--images must be at least twice --games, {least}; got {self.images}")

    def games_at(self, progress: float) -> int:
        """Return the number of games of a batch: from the first number to the last, by equal factors."""
        return round(self.games * (self.games_at_end / self.games) ** progress)


@dataclass(frozen=True)
class ContrastiveBatch(Batch):
    """Frames and the tokens of their captions."""

    frames: UInt8[Tensor, "B 1 H W 3"]
    tokens: Int[Tensor, "B L"]


def pad_to_square(frame: np.ndarray, size: int) -> np.ndarray:
    """Return a frame uint8[H, W, 3] in the upper left of a black square uint8[size, size, 3], as `preprocess` pads."""
    height, width, _ = frame.shape
    if max(height, width) > size:
        raise UserError(f"expected frames of at most {size} rows and columns, got {height} x {width}")
    square = np.zeros((size, size, 3), dtype=np.uint8)
    square[:height, :width] = frame
    return square


class ContrastiveSampler:
    """Samples frames with their captions, equally many of each of a batch's games, for a training of `steps`."""

    def __init__(self, datasets: list[EpisodeDataset], clip: PixelClip, data: ContrastiveData, steps: int):
        assert clip.image_config.square_size is not None
        self.datasets, self.size, self.data, self.steps = datasets, clip.image_config.square_size, data, steps
        self.tokenizer = clip.tokenizer
        self.rows = [split_rows(dataset, "train", data.val_episodes) for dataset in datasets]
        self.titles = [find_game(dataset.info.game).title for dataset in datasets]
        for dataset in datasets:
            try:
                pad_to_square(dataset.frame(0), self.size)
            except UserError as error:
                raise UserError(f"{dataset.path}: {error}") from error
        self._descriptions: dict[tuple[int, int], tuple[DetectedObject, ...]] = {}

    def __call__(self, step: int, rng: np.random.Generator) -> ContrastiveBatch:
        """Return the batch of a step."""
        count = self.data.games_at(step / max(1, self.steps - 1))
        games = rng.permutation(len(self.datasets))[:count]
        pairs = [self._pair(int(games[i % len(games)]), rng) for i in range(self.data.images)]
        frames, captions = zip(*pairs, strict=True)
        return ContrastiveBatch(torch.from_numpy(np.stack(frames)[:, None]), tokenize(self.tokenizer, captions))

    def _pair(self, game: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        dataset, row = self.datasets[game], int(rng.choice(self.rows[game]))
        frame = dataset.frame(row)
        if (game, row) not in self._descriptions:
            self._descriptions[game, row] = describe_frame(frame, dataset.info.game)
        title = None if rng.random() < NO_TITLE_PROB else self.titles[game]
        return pad_to_square(frame, self.size), write_caption(self._descriptions[game, row], title, rng)


class ContrastiveObjective(Objective[PixelClip, ContrastiveBatch]):
    """CLIP's loss: each frame's caption among the batch's captions, and each caption's frame among its frames.

    A caption that another frame of the batch shares, word for word, is no negative for it.
    """

    attention = "eager"

    def encode(self, batch: ContrastiveBatch) -> tuple[Tensor, Tensor]:
        """Return the unit vectors of images and texts, float32[B, S] each."""
        return self.vlm.image_vectors(batch.frames), self.vlm.text_vectors(batch.tokens)

    def loss(self, features: tuple[Tensor, Tensor], batch: ContrastiveBatch) -> Losses:
        """Return the loss, and `retrieval_accuracy`, the share of frames whose caption scores highest."""
        images, texts = features
        with torch.autocast(images.device.type, enabled=False):
            logits = self.vlm.model.logit_scale.exp().clamp(max=100) * images @ texts.t()  # [B, B]
        target = torch.arange(len(batch.tokens), device=images.device)
        duplicate = (batch.tokens[:, None] == batch.tokens[None]).all(-1) & (target[:, None] != target[None])
        logits = logits.masked_fill(duplicate, float("-inf"))
        loss = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.t(), target)) / 2
        return Losses(loss, {"retrieval_accuracy": (logits.argmax(1) == target).float().mean()})
