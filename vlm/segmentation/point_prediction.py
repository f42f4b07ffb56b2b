"""Masks as text: the decoder answers 0 or 1 at points of a grid.

    <image> [segmentation]
    the red ghost loc: [        encoded once for an expression
    12,                         encoded once for a row
    7] mask:            -> 1    encoded for each point

The paper's lab writes masks in this form (Vision-CAIR's paint data): no head, no parameters, the interface of pixel
value prediction. The logits of 1 against 0 are a soft mask. A prompt is tokenized part by part, so that prompts share
tokens with any tokenizer.

Every second row and column comes first. Of the points between, those where neighbors disagree or the model is uncertain
follow, the most uncertain ones, at most as many again; all others are interpolated (adaptive subdivision, Kirillov et
al. 2020, "PointRend", section 3.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from common.errors import UserError
from vlm.decoding.batched_generate import last_hidden_states
from vlm.decoding.packing import pad_token_lists
from vlm.decoding.prefix import SharedIds
from vlm.decoding.shared_prefix_attention import CachedPrefix
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM
from vlm.prompts import MASK_PREFIX, POINT_ANSWERS, POINT_END, point_prompt
from vlm.tokenizer import padding_id, token_ids

STRIDE = 2  # rows and columns between the points of the first step
CONFIDENT_LOGIT = 1.5  # absolute logit from which an answer is certain


@dataclass(frozen=True)
class PointPromptFormat:
    """Prompts and answers about points in the tokens of a model."""

    tokenizer: PreTrainedTokenizerFast
    shared: SharedIds  # between the image and every expression
    answers: Int[Tensor, "2"]  # 0 and 1
    end: int  # after an answer
    pad: int

    @classmethod
    def of(cls, vlm: PixelVLM) -> "PointPromptFormat":
        """Return the format of a model; `UserError` if 0 or 1 are several tokens of its tokenizer."""
        tokenizer = vlm.tokenizer
        answers = [token_ids(tokenizer, answer) for answer in POINT_ANSWERS]
        if any(len(tokens) != 1 for tokens in answers):
            raise UserError(f"expected a tokenizer whose 0 and 1 are single tokens, got {answers}")
        shared = torch.tensor(token_ids(tokenizer, MASK_PREFIX))
        return cls(tokenizer, shared, torch.tensor(answers).flatten(), tokenizer.eos_token_id, padding_id(tokenizer))

    def expression_tokens(self, expression: str) -> list[int]:
        """Return the tokens of a prompt's first part, up to the coordinates."""
        return list(token_ids(self.tokenizer, point_prompt(expression)))

    def point_tokens(self, row: int, column: int) -> list[int]:
        """Return the tokens of a prompt's second part: the coordinates and the end."""
        return [*token_ids(self.tokenizer, f"{row},"), *token_ids(self.tokenizer, f"{column}{POINT_END}")]


@torch.no_grad()
def predict_points(
    vlm: PixelVLM,
    features: ImageFeatures,
    expressions: Sequence[str],
    grid: int,
    stride: int = STRIDE,
    logit_bias: float = 0.0,
) -> Float[Tensor, "K grid grid"]:
    """Return the float32 logits of 1 against 0 at each point of a grid, for each of K expressions about one image.

    `stride` is the distance of the points of the first step; 1 predicts every point. `logit_bias` is added to all
    logits (`pretrain.referring.point_objective.calibrate_logit_bias`).
    """
    prompts = PointPromptFormat.of(vlm)
    samplers = (PointSampler(vlm, features, prompts, expression, logit_bias) for expression in expressions)
    return torch.stack([sampler.grid_logits(grid, stride) for sampler in samplers])


class PointSampler:
    """Logits at points for one expression about one image; both are encoded once. `logit_bias` is added to all."""

    def __init__(
        self,
        vlm: PixelVLM,
        features: ImageFeatures,
        prompts: PointPromptFormat,
        expression: str,
        logit_bias: float = 0.0,
    ):
        self.vlm, self.prompts, self.logit_bias = vlm, prompts, logit_bias
        shared = torch.cat([prompts.shared, torch.tensor(prompts.expression_tokens(expression))])
        self.prefix = CachedPrefix.encode(vlm, features, shared.to(vlm.device))

    def grid_logits(self, grid: int, stride: int) -> Float[Tensor, "grid grid"]:
        """Return the logits of a grid, in two steps (see the module's docstring)."""
        steps = torch.arange(0, grid, stride)
        coarse = self.point_logits(torch.cartesian_prod(steps, steps)).view(len(steps), len(steps))
        coarse_index = torch.arange(grid) // stride
        logits, candidates = interpolate(coarse, grid, stride), uncertain(coarse)[coarse_index][:, coarse_index]
        candidates[::stride, ::stride] = False
        chosen = logits[candidates].abs().argsort(stable=True)[: coarse.numel()]
        if len(chosen):
            points = candidates.nonzero()[chosen]
            logits[points[:, 0], points[:, 1]] = self.point_logits(points)
        return logits

    def point_logits(self, points: Int[Tensor, "N 2"]) -> Float[Tensor, " N"]:
        """Return the float32 logits at rows and columns of a grid, on the CPU."""
        vlm, prompts = self.vlm, self.prompts
        questions, lengths = pad_token_lists([[prompts.point_tokens(*point) for point in points.tolist()]], prompts.pad)
        states = last_hidden_states(vlm, self.prefix, questions.to(vlm.device), lengths)[0]
        head, answers = vlm.model.get_output_embeddings(), prompts.answers.to(vlm.device)
        bias = None if getattr(head, "bias", None) is None else head.bias[answers]
        logits = functional.linear(states, head.weight[answers], bias).float().cpu()  # [N, 2]
        return logits[:, 1] - logits[:, 0] + self.logit_bias


def interpolate(logits: Float[Tensor, "h w"], grid: int, stride: int) -> Float[Tensor, "grid grid"]:
    """Return the logits of a grid, given those of every `stride`-th point: bilinear between, constant beyond."""
    rows, columns = (stride * (n - 1) + 1 for n in logits.shape)
    between = functional.interpolate(logits[None, None], size=(rows, columns), mode="bilinear", align_corners=True)
    return functional.pad(between, (0, grid - columns, 0, grid - rows), mode="replicate")[0, 0]


def uncertain(logits: Float[Tensor, "h w"]) -> Bool[Tensor, "h w"]:
    """Return where a point and its eight neighbors are not all confident of the same answer."""
    batch = logits[None, None]
    highest, lowest = (sign * functional.max_pool2d(sign * batch, 3, 1, 1)[0, 0] for sign in (1, -1))
    return (highest > -CONFIDENT_LOGIT) & (lowest < CONFIDENT_LOGIT)
