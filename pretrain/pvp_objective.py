"""Pixel value prediction as a lesson: what is asked in a step, and the loss of the answers.

Numbers are words to a language model: to the plain cross-entropy an answer of 131 for 130 is as wrong as one of 7.
With `soft` above 0 the target of a number is spread over its neighbours, a normal distribution of that standard
deviation in units of 255; all other tokens keep the plain loss. With `gaze` above 0 the decoder is told where to look
(`vlm.training.attention_supervision`). Both are options and departures from the paper.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from common.errors import UserError
from pretrain.data.augmentation import augment, crop_or_resize
from pretrain.data.images import ImageSource
from pretrain.data.synthetic_images import synthetic_image
from pretrain.pvp_prompts import IGNORE_INDEX, PixelPromptFormat, downsample_grid, sample_coordinates
from vlm.decoding.packing import forward_packed, forward_packed_with_attention, pad_token_lists
from vlm.model import PixelVLM
from vlm.training.attention_supervision import (
    ANSWER_LAYER,
    COORDINATE_LAYER,
    PATCH_LAYER,
    AttentionTargets,
    attention_supervision_loss,
    patch_edges,
    require_attention_access,
    target_patch_index,
)
from vlm.training.trainer import Objective

STILL = 0.5  # of the frames of games that are shown to a model of several frames


class ImageSampler:
    """Draws an image, made strange or not, at the size that all images of a batch share.

    Args:
        sources: where images come from, each as likely as another.
        size: rows and columns of what is drawn.
        history: how many frames a model sees; a still picture is repeated, and so is every second frame of a game,
            since who asks about a file shows one picture in which nothing moves.
        augmentation: the probability of each kind of change, see `pretrain.data.augmentation`.
        synthetic: share of images of the generator.
        ramp: share of the training over which augmentation and fineness rise from nothing; 0 for none.
    """

    def __init__(
        self,
        sources: Sequence[ImageSource],
        size: tuple[int, int],
        history: int = 1,
        augmentation: float = 0.0,
        synthetic: float = 0.0,
        ramp: float = 0.0,
    ):
        if not sources and synthetic < 1:
            raise UserError("expected a source of images, or synthetic images alone; got neither")
        self.sources, self.size, self.history = sources, size, history
        self.augmentation, self.synthetic, self.ramp = augmentation, synthetic, ramp

    def __call__(self, rng: np.random.Generator, done: float) -> np.ndarray:
        """Return uint8[history, H, W, 3]; `done` is the share of the training done."""
        level = min(1.0, done / self.ramp) if self.ramp else 1.0
        if rng.random() < self.synthetic:
            return np.stack([synthetic_image(rng, *self.size, level)] * self.history)
        source = self.sources[int(rng.integers(len(self.sources)))]
        stack = crop_or_resize(source.frame_stack(int(rng.integers(len(source))), self.history), *self.size, rng)
        if self.history > 1 and rng.random() < STILL:
            stack = np.stack([stack[-1]] * self.history)
        return augment(stack, rng, self.augmentation * level)


class PixelQADataset(Dataset):
    """Step i's images and questions, drawn from the seed and i alone.

    With `shuffled` every image is answered for with the colours of the next one of its step: a control, which teaches
    the form of questions and answers, coordinates included, and nothing of what is seen.

    An item is `frames` uint8[B, history, H, W, 3], `read` int[B, K, L], question and answer, `said` int[B, K, L], what
    shall be said next at each token of it (`IGNORE_INDEX` within the question), and `places` float32[B, K, 2], what is asked
    about, as shares of the image's height and width.
    """

    def __init__(
        self,
        draw: ImageSampler,
        language: PixelPromptFormat,
        grid: str,
        steps: int,
        images: int,
        count: int,
        seed: int,
        shuffled: bool = False,
    ):
        self.draw, self.language, self.grid, self.shuffled = draw, language, grid, shuffled
        self.steps, self.images, self.count, self.seed = steps, images, count, seed
        downsample_grid(draw(np.random.default_rng(seed), 1.0)[-1], grid)  # a grid that is too fine is refused here

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, step])
        stacks = [self.draw(rng, step / self.steps) for _ in range(self.images)]
        answering = [*stacks[1:], stacks[0]] if self.shuffled else stacks
        asked = [self._ask(stack[-1], self.count, rng) for stack in answering]
        return {
            "frames": torch.from_numpy(np.stack(stacks)),
            "read": pad_token_lists([read for read, _, _ in asked], self.language.pad_token_id)[0],
            "said": pad_token_lists([said for _, said, _ in asked], IGNORE_INDEX)[0],
            "places": torch.from_numpy(np.stack([places for _, _, places in asked])),
        }

    def _ask(
        self, image: np.ndarray, count: int, rng: np.random.Generator
    ) -> tuple[list[list[int]], list[list[int]], np.ndarray]:
        values = downsample_grid(image, self.grid)
        places = sample_coordinates(values, count, rng)
        shares = ((places + 0.5) / values.shape[:2]).astype(np.float32)
        return *self.language.training_sequences(places, values[places[:, 0], places[:, 1]]), shares


def soft_targets(spread: float) -> Tensor:
    """Return float32[256, 256]: for each number, how much of the target every number gets; rows add up to 1."""
    numbers = torch.arange(256.0)
    return torch.softmax(-((numbers[:, None] - numbers) ** 2) / (2 * spread**2), dim=-1)


class PvpObjective(Objective):
    """PVP as a lesson: cross-entropy on the tokens of the answer, its end included."""

    vlm: PixelVLM

    def __init__(
        self,
        vlm: PixelVLM,
        bf16: bool | None,
        language: PixelPromptFormat,
        soft: float = 0.0,
        attention: str = "sdpa",
        gaze: float = 0.0,
    ):
        super().__init__(vlm, bf16, attention)
        self.language, self.gaze = language, gaze
        self._grids: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # by the size of images
        if gaze:
            require_attention_access(vlm)
            if language.number_token_ids is None:
                raise UserError("a gaze asks for a tokenizer whose numbers from 0 to 255 are single tokens")
        if soft and language.number_token_ids is None:
            raise UserError("soft targets ask for a tokenizer whose numbers from 0 to 255 are single tokens")
        self.targets = soft_targets(soft) if soft else None

    def forward(self, frames: Tensor, read: Tensor, said: Tensor, places: Tensor) -> dict[str, Tensor]:
        """Return the loss and the figures of `figures`, and `variation` of the batch's image tokens.

        With a gaze, its loss is part of the loss, and what its heads give is among the figures.

        Args:
            frames: uint8[B, history, H, W, 3].
            read: int[B, K, L], question and answer.
            said: int[B, K, L], what shall be said next.
            places: float[B, K, 2], what is asked about, as shares of the image's height and width.
        """
        looking: dict[str, Tensor] = {}
        with self.autocast():
            shared = self.language.prefix_ids.to(read.device)
            features = self.vlm.encode_images(self.vlm.preprocess(frames))
            if self.gaze:
                hidden, looks = forward_packed_with_attention(
                    self.vlm, features, shared, read, (COORDINATE_LAYER, PATCH_LAYER, ANSWER_LAYER)
                )
                looking = attention_supervision_loss(self.vlm, looks, self.sights(read, said, places, frames))
            else:
                hidden = forward_packed(self.vlm, features, shared, read)  # [B, K, L, D]
            logits = self.vlm.model.get_output_embeddings()(hidden[said != IGNORE_INDEX]).float()  # [A, V]
        wanted = said[
            said != IGNORE_INDEX
        ]  # [A], the same number of answer tokens in every step where numbers are single
        out = {"loss": self.loss(logits, wanted), **self.figures(logits.detach(), wanted, said)}
        if looking:
            out["loss"] = out["loss"] + self.gaze * looking.pop("loss")
            out |= looking
        if len(frames) > 1:
            out["variation"] = feature_variation(features.tokens.detach())
        return out

    def sights(self, read: Tensor, said: Tensor, places: Tensor, frames: Tensor) -> AttentionTargets:
        """Return what the questions and answers of a step shall look at."""
        assert self.language.number_token_ids is not None
        height, width = frames.shape[2:4]
        if (height, width) not in self._grids:
            self._grids[height, width] = patch_edges(self.vlm, height, width)
        answers = said != IGNORE_INDEX
        ends = answers.int().argmax(-1)
        index = torch.arange(read.shape[2], device=read.device)
        numbers = torch.isin(read, self.language.number_token_ids.to(read.device)) & (index < ends[:, :, None])
        last = (numbers * index).argmax(-1)
        return AttentionTargets(
            coordinates=torch.stack([numbers.int().argmax(-1), last], dim=-1),
            ends=ends,
            later=answers & (index > ends[:, :, None]),
            tokens=target_patch_index(self._grids[height, width], places, height, width),
        )

    def loss(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """Return the mean over answer tokens of the cross-entropy, against soft targets where numbers are wanted."""
        if self.targets is None or self.language.number_token_ids is None:
            return functional.cross_entropy(logits, wanted)
        numbers = self.language.number_token_ids.to(wanted.device)
        values = number_values(numbers, wanted, logits.shape[-1])  # [A], -1: no number
        log_probs = logits.log_softmax(-1)
        plain = -log_probs[values < 0].gather(1, wanted[values < 0, None])
        number_log_probs = log_probs[values >= 0][:, numbers]  # [N, 256]
        soft = -(self.targets.to(wanted.device)[values[values >= 0]] * number_log_probs).sum(-1)
        return (plain.sum() + soft.sum()) / len(wanted)

    def figures(self, logits: Tensor, wanted: Tensor, said: Tensor) -> dict[str, Tensor]:
        """Return `exact`, the share of answers right token by token given what came before; and, where numbers are
        single tokens, `mae` of the likeliest number and `mae_expected` of the expected one, of 255.
        """
        right = torch.ones(said.shape, dtype=torch.bool, device=said.device)
        right[said != IGNORE_INDEX] = logits.argmax(-1) == wanted
        out = {"exact": right.all(-1).float().mean()}
        if self.language.number_token_ids is not None:
            table = self.language.number_token_ids.to(wanted.device)
            values = number_values(table, wanted, logits.shape[-1])
            among = logits[values >= 0][:, table].softmax(-1)  # [N, 256]
            truth = values[values >= 0]
            out["mae_expected"] = (among @ torch.arange(256.0, device=among.device) - truth).abs().mean()
            out["mae"] = (among.argmax(-1) - truth).abs().float().mean()
        return out


def number_values(numbers: Tensor, tokens: Tensor, vocabulary: int) -> Tensor:
    """Return int of the tokens' shape: the number that each stands for, -1 where it is none."""
    values = torch.full((vocabulary,), -1, device=tokens.device)
    values[numbers] = torch.arange(256, device=tokens.device)
    return values[tokens]


def feature_variation(image_tokens: Tensor) -> Tensor:
    """Return what a decoder can tell images [B, ..., D] apart by: norm of the deviation over them by that of the mean.

    Near 0 the image tokens have become one constant vector (`docs/log/`, why cloning stayed at the prior).
    """
    image_tokens = image_tokens.float()
    return image_tokens.std(0).norm() / image_tokens.mean(0).norm().clamp_min(1e-9)
