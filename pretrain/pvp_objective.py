"""Pixel value prediction as an objective: sampled questions, and the loss of their answers (Gou et al. 2024).

Three options depart from the paper: with `label_std` the target of a number is a Gaussian over its neighbors,
`attention_supervision` weighs a loss on the decoder's attention (`vlm.training.attention_supervision`), and a dense
head reads colors off the image tokens in the first steps (`pretrain.dense_colors`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from common.errors import UserError
from pretrain.answer_objective import IGNORE_INDEX, AnswerBatch, AnswerObjective, pad_answers
from pretrain.data.augmentation import augment, crop_or_resize
from pretrain.data.images import ImageSource
from pretrain.data.synthetic_images import synthetic_image
from pretrain.dense_colors import DenseColorHead
from pretrain.pvp_config import PvpData
from pretrain.pvp_questions import PixelPromptFormat, cell_centers, downsample_grid, sample_coordinates
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM
from vlm.training.attention_supervision import AttentionTargets
from vlm.training.objective import Losses, images_of

STATIC_PROB = 0.5  # of showing a model of several frames the same frame, as in a still image


class ImageSampler:
    """Samples an image of a random source at the size that all images of a batch share.

    A model of several frames sees a still image repeated, and so it sees some frames of games: a user's file is one
    picture in which nothing moves.
    """

    def __init__(self, sources: Sequence[ImageSource], data: PvpData, history: int = 1):
        self.sources, self.data, self.history = sources, data, history

    def __call__(self, rng: np.random.Generator, progress: float) -> np.ndarray:
        """Return uint8[history, H, W, 3]; `progress` is the share of the training that is done."""
        data = self.data
        level = min(1.0, progress / data.curriculum_fraction) if data.curriculum_fraction else 1.0
        if rng.random() < data.synthetic:
            return np.stack([synthetic_image(rng, *data.size, level)] * self.history)
        source = self.sources[int(rng.integers(len(self.sources)))]
        stack = crop_or_resize(source.frame_stack(int(rng.integers(len(source))), self.history), *data.size, rng)
        if self.history > 1 and rng.random() < STATIC_PROB:
            stack = np.stack([stack[-1]] * self.history)
        return augment(stack, rng, data.augmentation * level)


@dataclass(frozen=True)
class PvpBatch(AnswerBatch):
    """Images with K questions each, and the places asked about."""

    coordinates: Float[Tensor, "B K 2"]  # as fractions of the image's height and width
    dense_weight: float = 0.0  # of the dense color loss in this step
    colors: UInt8[Tensor, "B rows columns 3"] | None = None  # of every cell, where that loss has a weight


class PvpSampler:
    """Samples the images and questions of a step; the curriculum is of a training of so many `steps`."""

    def __init__(self, image_sampler: ImageSampler, prompts: PixelPromptFormat, data: PvpData, steps: int):
        self.image_sampler, self.prompts, self.data, self.steps = image_sampler, prompts, data, steps
        downsample_grid(image_sampler(np.random.default_rng(0), 1.0)[-1], data.grid)  # refuses a grid that is too fine

    def __call__(self, step: int, rng: np.random.Generator) -> PvpBatch:
        """Return the batch of a step."""
        stacks = [self.image_sampler(rng, step / self.steps) for _ in range(self.data.images)]
        answered = [*stacks[1:], stacks[0]] if self.data.shuffle_targets else stacks
        tokens, coordinates = zip(*(self._questions(stack[-1], rng) for stack in answered), strict=True)
        frames, places = torch.from_numpy(np.stack(stacks)), torch.from_numpy(np.stack(coordinates))
        weight, colors = self._dense_weight(step), None
        if weight:
            colors = torch.from_numpy(np.stack([downsample_grid(stack[-1], self.data.grid) for stack in answered]))
        return PvpBatch(frames, *pad_answers(tokens, self.prompts.pad_token_id), places, weight, colors)

    def _dense_weight(self, step: int) -> float:
        """Return the dense color loss's weight in a step, which falls linearly to 0."""
        steps = self.data.dense_loss_fraction * self.steps
        return self.data.dense_loss_weight * max(0.0, 1 - step / steps) if steps else 0.0

    def _questions(self, image: np.ndarray, rng: np.random.Generator) -> tuple[list, np.ndarray]:
        values = downsample_grid(image, self.data.grid)
        places = sample_coordinates(values, self.data.questions, rng)
        fractions = cell_centers(places, self.data.grid, *image.shape[:2])
        return self.prompts.questions_with_answers(places, values[places[:, 0], places[:, 1]]), fractions


def gaussian_targets(std: float) -> Float[Tensor, "256 256"]:
    """Return, for each number from 0 to 255, the distribution of the target over all numbers."""
    numbers = torch.arange(256.0)
    return torch.softmax(-((numbers[:, None] - numbers) ** 2) / (2 * std**2), dim=-1)


class PvpObjective(AnswerObjective[PvpBatch]):
    """PVP: cross-entropy on the answers' tokens, their end included."""

    reads_cells = True

    def __init__(
        self,
        vlm: PixelVLM,
        sampler: PvpSampler,
        prompts: PixelPromptFormat,
        label_std: float = 0.0,
        attention_supervision: float = 0.0,
        dense_head: DenseColorHead | None = None,
        heads_by_number: bool = False,
    ):
        if (attention_supervision or label_std) and prompts.number_token_ids is None:
            raise UserError("--label-std and --attention-supervision-weight need numbers that are single tokens")
        super().__init__(vlm, sampler, attention_supervision)
        self.prompts, self.targets = prompts, gaussian_targets(label_std) if label_std else None
        self.dense_head, self.heads_by_number = dense_head, heads_by_number

    def modules(self) -> Mapping[str, nn.Module]:
        """Return the dense head."""
        return {"dense_head": self.dense_head} if self.dense_head else {}

    def encode(self, batch: PvpBatch) -> ImageFeatures:
        """Return the features of the frames, with a token for each cell where the model expands its tokens."""
        return self.vlm.encode_cells(images_of(self.vlm, batch))

    def loss(self, features: ImageFeatures, batch: PvpBatch) -> Losses:
        """Return the loss with the metrics of `answer_metrics`, `feature_variation` and attention weights."""
        shared, input_ids = self.prompts.prefix_ids.to(batch.input_ids.device), batch.input_ids
        targets = self.attention_targets(batch) if self.attention_supervision else None
        states, attention_loss, attention_metrics = self.answer_states(
            features, shared, input_ids, batch.labels, targets
        )
        logits, answers = self.answer_logits(states), batch.labels[batch.labels != IGNORE_INDEX]
        metrics = {**self.answer_metrics(logits.detach(), answers, batch.labels), **attention_metrics}
        if len(batch.frames) > 1:
            metrics["feature_variation"] = feature_variation(features.tokens.detach())
        loss = self.answer_loss(logits, answers) + attention_loss
        if self.dense_head and batch.colors is not None:
            dense = self.dense_head.loss(features.tokens, batch.colors)
            loss, metrics["dense_mae"] = loss + batch.dense_weight * dense, 255 * dense.detach()
        return Losses(loss, metrics)

    def attention_targets(self, batch: PvpBatch) -> AttentionTargets:
        """Return what the questions and answers of a batch should attend to."""
        assert self.prompts.number_token_ids is not None
        index = torch.arange(batch.labels.shape[2], device=batch.labels.device)
        before_answer = (batch.labels != IGNORE_INDEX).cumsum(-1) == 0
        numbers = torch.isin(batch.input_ids, self.prompts.number_token_ids.to(index.device)) & before_answer
        coordinate_tokens = torch.stack([numbers.int().argmax(-1), (numbers * index).argmax(-1)], dim=-1)
        targets = self.answer_targets(batch.frames, batch.labels, coordinate_tokens, batch.coordinates)
        if not self.heads_by_number:
            return targets
        is_number = torch.isin(batch.labels, self.prompts.number_token_ids.to(index.device))
        following = (is_number.cumsum(-1) - 1).clip(0) * is_number  # 0 for the first number, at the question's end
        return dataclasses.replace(targets, answer_mask=following > 0, numbers=following)

    def answer_loss(self, logits: Float[Tensor, "A V"], answers: Int[Tensor, " A"]) -> Tensor:
        """Return the mean cross-entropy of answer tokens, against Gaussian targets for numbers where asked for."""
        if self.targets is None or self.prompts.number_token_ids is None:
            return functional.cross_entropy(logits, answers)
        tokens = self.prompts.number_token_ids.to(answers.device)
        values = number_values(tokens, answers, logits.shape[-1])  # [A], -1: not a number
        log_probs = logits.log_softmax(-1)
        plain = -log_probs[values < 0].gather(1, answers[values < 0, None])
        numbers = log_probs[values >= 0][:, tokens]  # [N, 256]
        smoothed = -(self.targets.to(answers.device)[values[values >= 0]] * numbers).sum(-1)
        return (plain.sum() + smoothed.sum()) / len(answers)

    def answer_metrics(self, logits: Tensor, answers: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return `exact_match`, the share of answers whose every token is the likeliest given those before it; and,
        where numbers are single tokens, `mae` of the likeliest and `mae_expected` of the expected number, of 255.
        """
        correct = torch.ones(labels.shape, dtype=torch.bool, device=labels.device)
        correct[labels != IGNORE_INDEX] = logits.argmax(-1) == answers
        metrics = {"exact_match": correct.all(-1).float().mean()}
        if self.prompts.number_token_ids is not None:
            tokens = self.prompts.number_token_ids.to(answers.device)
            values = number_values(tokens, answers, logits.shape[-1])
            number_logits, truth = logits[values >= 0][:, tokens].float(), values[values >= 0]
            expected = (number_logits.softmax(-1) * torch.arange(256.0, device=truth.device)).sum(-1)
            metrics["mae_expected"] = (expected - truth).abs().mean()
            metrics["mae"] = (number_logits.argmax(-1) - truth).abs().float().mean()
        return metrics


def number_values(number_tokens: Int[Tensor, " 256"], tokens: Tensor, vocab_size: int) -> Tensor:
    """Return int of the tokens' shape: the number that each token stands for, -1 where it is none."""
    values = torch.full((vocab_size,), -1, device=tokens.device)
    values[number_tokens] = torch.arange(256, device=tokens.device)
    return values[tokens]


def feature_variation(image_tokens: Tensor) -> Tensor:
    """Return how much image tokens [B, ..., D] differ over the batch: norm of the deviation by norm of the mean.

    Near 0 the encoder has collapsed: its tokens are one constant vector.
    """
    image_tokens = image_tokens.float()
    mean = image_tokens.mean(0)
    variance = (image_tokens - mean).square_().sum(0) / (len(image_tokens) - 1)  # `std(0)` takes 30 times as long
    return variance.sqrt().norm() / mean.norm().clamp_min(1e-9)
