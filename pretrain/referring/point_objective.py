"""Masks as text as an objective: is this point part of the object that the expression names, 0 or 1?

Points are sampled as in Vision-CAIR's paint data: on the object, on other referred objects, on a ring around it, and
anywhere. Questions about a frame share one pass over it, and those about an expression one pass over its tokens
(`forward_packed_tree`); with attention supervision each question has its own.

Points sampled so are 1 far more often than those of a whole image. `calibrate_logit_bias` finds, after the training,
what the logits must be lowered by, on points sampled uniformly: the prior correction of a logistic regression on
selected cases (King & Zeng 2001, "Logistic Regression in Rare Events Data", section 4).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from scipy import ndimage, optimize, special
from torch import Tensor
from torch.nn import functional

from common.errors import UserError
from pretrain.answer_objective import IGNORE_INDEX, AnswerBatch, AnswerObjective, pad_answers
from pretrain.referring.referring_config import ReferringData
from pretrain.referring.samples import ReferringSource, pad_stack
from vlm.decoding.packing import forward_packed_tree, pad_token_lists
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM
from vlm.segmentation.point_prediction import PointPromptFormat, PointSampler
from vlm.training.attention_supervision import AttentionTargets
from vlm.training.objective import Losses, encode_frames

SAMPLING_WEIGHTS = (0.40, 0.30, 0.24, 0.06)  # of points on the object, on other objects, on the ring, and anywhere
RING_FRACTION = 8  # the ring is as wide as this part of the grid
COLUMN_OFFSET = 2  # tokens from a point's row to its column: the row and a comma
AREA_THRESHOLD = 0.5  # of a cell's area has to belong to the object


def grid_mask(mask: Bool[np.ndarray, "H W"], grid: int) -> Bool[np.ndarray, "grid grid"]:
    """Return the cells of a grid that belong to a mask by area.

    An object too small to fill half of any cell has the one that it fills most.
    """
    share = np.asarray(Image.fromarray(mask.astype(np.float32)).resize((grid, grid), Image.Resampling.BOX))
    cells = share >= AREA_THRESHOLD
    return cells if cells.any() or not mask.any() else share == share.max()


def sample_points(own: np.ndarray, others: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return int[count, 2], rows and columns of points to ask about.

    `own` bool[G, G] is the object and may be empty, `others` are all objects that expressions of the image refer to.
    """
    ring = ndimage.binary_dilation(own, iterations=max(1, len(own) // RING_FRACTION)) & ~own if own.any() else own
    groups = (own, others & ~own, ring, ~own & ~ring)
    weights = list(SAMPLING_WEIGHTS)
    if not groups[1].any():  # the ring takes the share of other objects where there are none
        weights[2] += weights[1]
    present = np.array([weight if group.any() else 0.0 for weight, group in zip(weights, groups, strict=True)])
    cells = [np.flatnonzero(group) for group in groups]
    chosen = rng.choice(len(groups), count, p=present / present.sum())
    points = np.array([cells[group][rng.integers(len(cells[group]))] for group in chosen])
    return np.stack(np.divmod(points, len(own)), axis=1)


@dataclass(frozen=True)
class PointBatch(AnswerBatch):
    """Frames with E expressions each and K points for each expression; `input_ids` and `labels` are int[B, E, K, L]."""

    prefix_ids: Int[Tensor, "B E T"]  # the expressions' tokens
    prefix_lengths: Int[Tensor, "B E"]
    coordinates: Float[Tensor, "B E K 2"]  # the points, as fractions of the height and width of `frames`


class PointQuestionSampler:
    """Samples the frames, expressions and points of a step."""

    def __init__(self, prompts: PointPromptFormat, source: ReferringSource, data: ReferringData):
        self.prompts, self.source, self.data = prompts, source, data

    def __call__(self, step: int, rng: np.random.Generator) -> PointBatch:
        """Return the batch of a step."""
        samples = [self.source.draw(rng, self.data.expressions) for _ in range(self.data.images)]
        frames = pad_stack([sample.frames for sample in samples])
        masks = [(mask, np.logical_or.reduce(sample.masks)) for sample in samples for mask in sample.masks]
        tokens, points = zip(*(self._questions(mask, union, rng) for mask, union in masks), strict=True)
        scale = np.array([mask.shape for mask, _ in masks]) / frames.shape[2:4]
        fractions = (np.stack(points) + 0.5) / self.data.grid * scale[:, None]
        expressions = [[self.prompts.expression_tokens(words) for words in sample.expressions] for sample in samples]
        shape = (self.data.images, self.data.expressions)
        input_ids, labels = (part.unflatten(0, shape) for part in pad_answers(tokens, self.prompts.pad))
        prefix_ids, prefix_lengths = pad_token_lists(expressions, self.prompts.pad)
        coordinates = torch.from_numpy(fractions.astype(np.float32)).unflatten(0, shape)
        return PointBatch(torch.from_numpy(frames), input_ids, labels, prefix_ids, prefix_lengths, coordinates)

    def _questions(self, mask: np.ndarray, union: np.ndarray, rng: np.random.Generator) -> tuple[list, np.ndarray]:
        own, others = grid_mask(mask, self.data.grid), grid_mask(union, self.data.grid)
        points = sample_points(own, others, self.data.points, rng)
        answers = self.prompts.answers[torch.from_numpy(own[tuple(points.T)]).long()].tolist()
        questions = [self.prompts.point_tokens(row, column) for row, column in points.tolist()]
        return [(tokens, [answer, self.prompts.end]) for tokens, answer in zip(questions, answers, strict=True)], points


class PointObjective(AnswerObjective[PointBatch]):
    """Points in text: cross-entropy on the answer and its end."""

    stream = (0x901,)

    def __init__(
        self, vlm: PixelVLM, sampler: PointQuestionSampler, prompts: PointPromptFormat, attention_supervision: float = 0
    ):
        super().__init__(vlm, sampler, attention_supervision)
        self.prompts = prompts
        if attention_supervision and len(prompts.point_tokens(0, 0)) != len(prompts.point_tokens(255, 255)):
            raise UserError("--attention-supervision-weight needs numbers that are single tokens")

    def loss(self, features: ImageFeatures, batch: PointBatch) -> Losses:
        """Return the loss, `accuracy` over all points and `recall` over those that are 1, and attention weights."""
        shared, labels = self.prompts.shared.to(batch.labels.device), batch.labels
        prefixes = batch.prefix_ids, batch.prefix_lengths
        attention_loss: Tensor | float = 0.0
        attention_metrics: dict[str, Tensor] = {}
        if self.attention_supervision:
            input_ids, labels = concat_prefix_suffix(*prefixes, batch.input_ids, labels)
            targets = self.attention_targets(batch, labels)
            states, attention_loss, attention_metrics = self.answer_states(features, shared, input_ids, labels, targets)
        else:
            hidden = forward_packed_tree(self.vlm, features, shared, *prefixes, batch.input_ids)
            states = hidden[labels != IGNORE_INDEX]
        logits, answers = self.answer_logits(states), labels[labels != IGNORE_INDEX]
        loss = functional.cross_entropy(logits, answers) + attention_loss
        return Losses(loss, {**self._metrics(logits.detach(), answers), **attention_metrics})

    def _metrics(self, logits: Tensor, answers: Tensor) -> dict[str, Tensor]:
        no, yes = self.prompts.answers.to(answers.device)
        is_answer = (answers == no) | (answers == yes)  # not an end token
        predicted, truth = logits[is_answer, yes] > logits[is_answer, no], answers[is_answer] == yes
        return {"accuracy": (predicted == truth).float().mean(), "recall": predicted[truth].float().mean()}

    def attention_targets(self, batch: PointBatch, labels: Tensor) -> AttentionTargets:
        """Return what the questions of `concat_prefix_suffix` and their answers should attend to."""
        row = batch.prefix_lengths.repeat_interleave(batch.coordinates.shape[2], dim=1)  # a point begins with its row
        coordinate_tokens = torch.stack([row, row + COLUMN_OFFSET], dim=-1)  # [B, E * K, 2]
        return self.answer_targets(batch.frames, labels, coordinate_tokens, batch.coordinates.flatten(1, 2))


@torch.no_grad()
def calibrate_logit_bias(
    vlm: PixelVLM, source: ReferringSource, grid: int, seed: int, images: int = 96, points: int = 256
) -> float:
    """Return what to add to the logits of points so that their mean probability is the true share of ones.

    It samples `points` points uniformly in each of `images` images of the training, with one expression each.
    """
    rng, prompts = np.random.default_rng([seed, 0x5F]), PointPromptFormat.of(vlm)
    logits, truth = [], []
    for _ in range(images):
        sample = source.draw(rng, 1)
        chosen = rng.integers(grid, size=(points, 2))
        features = encode_frames(vlm, torch.from_numpy(sample.frames[None]))
        predicted = PointSampler(vlm, features, prompts, sample.expressions[0]).point_logits(torch.from_numpy(chosen))
        logits.append(predicted.numpy().astype(np.float64))
        truth.append(grid_mask(sample.masks[0], grid)[chosen[:, 0], chosen[:, 1]])
    share, all_logits = np.clip(np.mean(truth), 1e-4, 1 - 1e-4), np.concatenate(logits)
    return float(optimize.brentq(lambda bias: special.expit(all_logits + bias).mean() - share, -50, 50))


def concat_prefix_suffix(
    prefix_ids: Tensor, prefix_lengths: Tensor, input_ids: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Return whole questions and their labels, int[B, E * K, T + L] each: every point behind its expression.

    Prefixes int[B, E, T] and `input_ids` int[B, E, K, L] are padded on the right.
    """
    count, prefix, suffix = input_ids.shape[2], prefix_ids.shape[2], input_ids.shape[3]
    position = torch.arange(prefix + suffix, device=input_ids.device)
    own = prefix_lengths[:, :, None, None]
    source = torch.where(position < own, position, position - own + prefix).clamp_max(prefix + suffix - 1)
    source = source.expand(*input_ids.shape[:3], -1)  # [B, E, K, T + L]
    padding = position >= own + suffix
    prefixes = prefix_ids[:, :, None].expand(-1, -1, count, -1)
    whole = torch.cat([prefixes, input_ids], dim=-1).gather(-1, source)
    targets = torch.cat([torch.full_like(prefixes, IGNORE_INDEX), labels], dim=-1).gather(-1, source)
    return whole.flatten(1, 2), targets.masked_fill(padding, IGNORE_INDEX).flatten(1, 2)
