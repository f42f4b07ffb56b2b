"""Pixel value prediction as an objective: sampled questions, and the loss of their answers (Gou et al. 2024).

Two options depart from the paper. With `label_std` the target of a number is a Gaussian over its neighbors: the plain
cross-entropy counts 131 for 130 as wrong as 7. With `attention_supervision` the decoder's attention is supervised
(`vlm.training.attention_supervision`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn import functional

from common.errors import UserError
from pretrain.data.augmentation import augment, crop_or_resize
from pretrain.data.images import ImageSource
from pretrain.data.synthetic_images import synthetic_image
from pretrain.pvp_prompts import IGNORE_INDEX, PixelPromptFormat, downsample_grid, sample_coordinates
from vlm.decoding.packing import forward_packed, forward_packed_with_attention, pad_token_lists
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM
from vlm.training.attention_supervision import (
    SUPERVISED_LAYERS,
    AttentionTargets,
    attention_supervision_loss,
    patch_edges,
    require_attention_access,
    target_patch_index,
)
from vlm.training.objective import Batch, Losses, Objective, encode_frames

STATIC_PROB = 0.5  # of showing a model of several frames the same frame, as in a still image


class ImageSampler:
    """Samples an image at the size that all images of a batch share.

    Args:
        sources: where images come from, with equal probability.
        size: rows and columns.
        history: frames that the model sees; a still image is repeated, and so are some frames of games, since a
            user's file is one picture in which nothing moves.
        augmentation: the probability of each kind of change (`pretrain.data.augmentation`).
        synthetic: the share of synthetic images.
        curriculum_fraction: the share of the training over which augmentation and the fineness of synthetic images
            rise from zero; 0 for none.
    """

    def __init__(
        self,
        sources: Sequence[ImageSource],
        size: tuple[int, int],
        history: int = 1,
        augmentation: float = 0.0,
        synthetic: float = 0.0,
        curriculum_fraction: float = 0.0,
    ):
        if not sources and synthetic < 1:
            raise UserError("expected a source of images, or synthetic images alone; got neither")
        self.sources, self.size, self.history = sources, size, history
        self.augmentation, self.synthetic, self.curriculum_fraction = augmentation, synthetic, curriculum_fraction

    def __call__(self, rng: np.random.Generator, progress: float) -> np.ndarray:
        """Return uint8[history, H, W, 3]; `progress` is the share of the training that is done."""
        level = min(1.0, progress / self.curriculum_fraction) if self.curriculum_fraction else 1.0
        if rng.random() < self.synthetic:
            return np.stack([synthetic_image(rng, *self.size, level)] * self.history)
        source = self.sources[int(rng.integers(len(self.sources)))]
        stack = crop_or_resize(source.frame_stack(int(rng.integers(len(source))), self.history), *self.size, rng)
        if self.history > 1 and rng.random() < STATIC_PROB:
            stack = np.stack([stack[-1]] * self.history)
        return augment(stack, rng, self.augmentation * level)


@dataclass(frozen=True)
class PvpBatch(Batch):
    """Images with K questions each.

    input_ids: questions and answers; labels: the next token of each, `IGNORE_INDEX` within the question; coordinates:
    the places asked about, as fractions of the image's height and width.
    """

    frames: UInt8[Tensor, "B history H W 3"]
    input_ids: Int[Tensor, "B K L"]
    labels: Int[Tensor, "B K L"]
    coordinates: Float[Tensor, "B K 2"]


class PvpSampler:
    """Samples the images and questions of a step.

    Args:
        image_sampler: of the images.
        prompts: how the model's tokenizer writes questions and answers.
        grid: see `pretrain.pvp_prompts.parse_grid`.
        steps: of the training, for the curriculum.
        images: of a batch.
        questions: about each image.
        shuffle_targets: answer every image with the colors of the batch's next one: a control that teaches the format
            of questions and answers, coordinates included, and nothing that is seen.
    """

    def __init__(
        self,
        image_sampler: ImageSampler,
        prompts: PixelPromptFormat,
        grid: str,
        steps: int,
        images: int,
        questions: int,
        shuffle_targets: bool = False,
    ):
        self.image_sampler, self.prompts, self.grid = image_sampler, prompts, grid
        self.steps, self.images, self.questions, self.shuffle_targets = steps, images, questions, shuffle_targets
        downsample_grid(image_sampler(np.random.default_rng(0), 1.0)[-1], grid)  # refuses a grid that is too fine

    def __call__(self, step: int, rng: np.random.Generator) -> PvpBatch:
        """Return the batch of a step."""
        stacks = [self.image_sampler(rng, step / self.steps) for _ in range(self.images)]
        answered = [*stacks[1:], stacks[0]] if self.shuffle_targets else stacks
        input_ids, labels, coordinates = zip(*(self._questions(stack[-1], rng) for stack in answered), strict=True)
        return PvpBatch(
            frames=torch.from_numpy(np.stack(stacks)),
            input_ids=pad_token_lists(input_ids, self.prompts.pad_token_id)[0],
            labels=pad_token_lists(labels, IGNORE_INDEX)[0],
            coordinates=torch.from_numpy(np.stack(coordinates)),
        )

    def _questions(self, image: np.ndarray, rng: np.random.Generator) -> tuple[list, list, np.ndarray]:
        values = downsample_grid(image, self.grid)
        places = sample_coordinates(values, self.questions, rng)
        fractions = ((places + 0.5) / values.shape[:2]).astype(np.float32)
        return *self.prompts.training_sequences(places, values[places[:, 0], places[:, 1]]), fractions


def gaussian_targets(std: float) -> Float[Tensor, "256 256"]:
    """Return, for each number from 0 to 255, the distribution of the target over all numbers."""
    numbers = torch.arange(256.0)
    return torch.softmax(-((numbers[:, None] - numbers) ** 2) / (2 * std**2), dim=-1)


class PvpObjective(Objective[PixelVLM, PvpBatch]):
    """PVP: cross-entropy on the answers' tokens, their end included."""

    def __init__(
        self,
        vlm: PixelVLM,
        sampler: PvpSampler,
        prompts: PixelPromptFormat,
        label_std: float = 0.0,
        attention_supervision: float = 0.0,
    ):
        super().__init__(vlm, sampler)
        self.prompts, self.attention_supervision = prompts, attention_supervision
        self._edges: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # by the size of images
        if (attention_supervision or label_std) and prompts.number_token_ids is None:
            raise UserError("--label-std and --attention-supervision-weight need numbers that are single tokens")
        if attention_supervision:
            require_attention_access(vlm)
        self.targets = gaussian_targets(label_std) if label_std else None

    def encode(self, batch: PvpBatch) -> ImageFeatures:
        """Return the features of the images."""
        return encode_frames(self.vlm, batch.frames)

    def loss(self, features: ImageFeatures, batch: PvpBatch) -> Losses:
        """Return the loss with the metrics of `answer_metrics`, `feature_variation` and attention weights."""
        shared, labels = self.prompts.prefix_ids.to(batch.input_ids.device), batch.labels
        attention_loss, metrics = torch.zeros(()), {}
        if self.attention_supervision:
            hidden, weights = forward_packed_with_attention(
                self.vlm, features, shared, batch.input_ids, SUPERVISED_LAYERS
            )
            attention_loss, metrics = attention_supervision_loss(self.vlm, weights, self.attention_targets(batch))
        else:
            hidden = forward_packed(self.vlm, features, shared, batch.input_ids)  # [B, K, L, D]
        logits = self.vlm.model.get_output_embeddings()(hidden[labels != IGNORE_INDEX]).float()  # [A, V]
        answers = labels[labels != IGNORE_INDEX]  # [A]
        loss = self.answer_loss(logits, answers)
        if self.attention_supervision:
            loss = loss + self.attention_supervision * attention_loss
        metrics = {**self.answer_metrics(logits.detach(), answers, labels), **metrics}
        if len(batch.frames) > 1:
            metrics["feature_variation"] = feature_variation(features.tokens.detach())
        return Losses(loss, metrics)

    def attention_targets(self, batch: PvpBatch) -> AttentionTargets:
        """Return what the questions and answers of a batch should attend to."""
        assert self.prompts.number_token_ids is not None
        height, width = batch.frames.shape[2:4]
        if (height, width) not in self._edges:
            self._edges[height, width] = patch_edges(self.vlm, height, width)
        answers = batch.labels != IGNORE_INDEX
        ends = answers.int().argmax(-1)
        index = torch.arange(batch.input_ids.shape[2], device=ends.device)
        numbers = torch.isin(batch.input_ids, self.prompts.number_token_ids.to(ends.device)) & (
            index < ends[:, :, None]
        )
        last = (numbers * index).argmax(-1)
        return AttentionTargets(
            coordinates=torch.stack([numbers.int().argmax(-1), last], dim=-1),
            question_ends=ends,
            answer_mask=answers & (index > ends[:, :, None]),
            image_tokens=target_patch_index(self._edges[height, width], batch.coordinates, height, width),
        )

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
    return image_tokens.std(0).norm() / image_tokens.mean(0).norm().clamp_min(1e-9)
