"""Masks for words as text: 0 or 1 at every place of a grid, all places behind one look at the image.

    <image> [segmentation]
    the red ghost loc: [        read once for an expression
    12,                         read once for a row
    7] mask:            -> 1    read for each place

The paper's lab asks for masks in this way (Vision-CAIR's paint data): no head, no parameters, the same interface as
pixel value prediction. The odds of 1 against 0 are a soft mask. A question is tokenised part by part, so that
what is shared is the same tokens for any tokenizer.

Most of a picture is far from what is meant. So every second row and column is asked first, and of the places between,
where neighbours disagree or the model is in doubt, as many again at most, the most doubtful ones; all others are
interpolated. A grid so takes at most half of its questions whatever the model knows (adaptive subdivision, with as many
points a step as the first; Kirillov et al. 2020, "PointRend", sec. 3.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from common.errors import UserError
from vlm.decoding.batched_generate import CachedPrefix, last_hidden_states
from vlm.decoding.packing import pad_token_lists
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM
from vlm.prompts import MASK_PREFIX, POINT_ANSWERS, POINT_END, point_prompt

SPACING = 2  # rows and columns from one place that is asked first to the next
SURE = 1.5  # log-odds from which an answer is not doubted


@dataclass(frozen=True)
class PointPromptFormat:
    """How a model's tokenizer writes questions about places and their answers.

    shared: int[S], the tokens between the image and every expression; answers: int[2], the tokens of 0 and 1; end: the
    token that closes an answer.
    """

    tokenizer: PreTrainedTokenizerFast
    shared: Tensor
    answers: Tensor
    end: int
    pad: int
    _places: dict[str, list[int]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, vlm: PixelVLM) -> "PointPromptFormat":
        """Return the language of a model; `UserError` if its tokenizer takes several tokens for a 0 or a 1."""
        tokenizer = vlm.tokenizer
        answers = tokenizer(list(POINT_ANSWERS), add_special_tokens=False)["input_ids"]
        if any(len(tokens) != 1 for tokens in answers):
            raise UserError(f"expected a tokenizer whose 0 and 1 are single tokens, got {answers}")
        shared = torch.tensor(tokenizer(MASK_PREFIX, add_special_tokens=False)["input_ids"])
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        return cls(tokenizer, shared, torch.tensor(answers).flatten(), tokenizer.eos_token_id, pad)

    def trunk(self, expression: str) -> list[int]:
        """Return the tokens of an expression, up to the coordinates."""
        return self._tokens(point_prompt(expression))

    def leaf(self, row: int, column: int) -> list[int]:
        """Return the tokens of a place and of the question's end, part by part."""
        return [*self._coordinate(f"{row},"), *self._coordinate(f"{column}{POINT_END}")]

    def _coordinate(self, text: str) -> list[int]:
        """Return its tokens, found once: a grid has thousands of places and few coordinates."""
        if text not in self._places:
            self._places[text] = self._tokens(text)
        return self._places[text]

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def predict_points(
    vlm: PixelVLM,
    features: ImageFeatures,
    expressions: Sequence[str],
    grid: int,
    spacing: int = SPACING,
    shift: float = 0.0,
) -> Tensor:
    """Return float32[K, grid, grid]: the log-odds of 1 against 0 at each place, for each expression.

    Args:
        vlm: the model.
        features: of one image, by `PixelVLM.encode_images`.
        expressions: K of them.
        grid: places along each side.
        spacing: from one place that is asked to the next; what lies between is asked where it is least clear, and else
            interpolated. 1 asks everywhere.
        shift: what is added to all log-odds, of `pretrain.referring.point_objective.fit_shift`.
    """
    language = PointPromptFormat.of(vlm)
    samplers = (PointSampler(vlm, features, language, words, shift) for words in expressions)
    return torch.stack([sampler.mask(grid, spacing) for sampler in samplers])


class PointSampler:
    """Places asked about for one expression; image and expression are read once.

    Args:
        vlm: the model.
        features: of one image, by `PixelVLM.encode_images`.
        language: the model's.
        words: the expression.
        shift: what is added to all log-odds.
    """

    def __init__(
        self, vlm: PixelVLM, features: ImageFeatures, language: PointPromptFormat, words: str, shift: float = 0.0
    ):
        self.vlm, self.language, self.shift = vlm, language, shift
        shared = torch.cat([language.shared, torch.tensor(language.trunk(words))])
        self.read = CachedPrefix.encode(vlm, features, shared.to(vlm.device))

    def mask(self, grid: int, spacing: int) -> Tensor:
        """Return the log-odds float32[grid, grid]."""
        first = torch.arange(0, grid, spacing)
        odds = self.ask(torch.cartesian_prod(first, first)).view(len(first), len(first))
        every = torch.arange(grid) // spacing
        found, between = interpolate(odds, grid, spacing), unclear(odds)[every][:, every]
        between[::spacing, ::spacing] = False
        doubted = found[between].abs().argsort(stable=True)[: odds.numel()]
        if len(doubted):
            places = between.nonzero()[doubted]
            found[places[:, 0], places[:, 1]] = self.ask(places)
        return found

    def ask(self, places: Tensor) -> Tensor:
        """Return the log-odds float32[N] at places int[N, 2], on the CPU."""
        vlm, language = self.vlm, self.language
        leaves = [language.leaf(row, column) for row, column in places.tolist()]
        questions, lengths = pad_token_lists([leaves], language.pad)
        states = last_hidden_states(vlm, self.read, questions.to(vlm.device), lengths)[0]
        head, answers = vlm.model.get_output_embeddings(), language.answers.to(vlm.device)
        bias = None if getattr(head, "bias", None) is None else head.bias[answers]
        logits = functional.linear(states, head.weight[answers], bias).float().cpu()  # [N, 2]
        return logits[:, 1] - logits[:, 0] + self.shift


def interpolate(odds: Tensor, grid: int, spacing: int) -> Tensor:
    """Return float[grid, grid] of log-odds [h, w] at every `spacing`-th place, linear between them and level beyond."""
    rows, columns = (spacing * (n - 1) + 1 for n in odds.shape)
    between = functional.interpolate(odds[None, None], size=(rows, columns), mode="bilinear", align_corners=True)
    return functional.pad(between, (0, grid - columns, 0, grid - rows), mode="replicate")[0, 0]


def unclear(odds: Tensor) -> Tensor:
    """Return bool[h, w]: where log-odds [h, w] and those of the eight places around are not all sure of one answer."""
    around = odds[None, None]
    most, least = (sign * functional.max_pool2d(sign * around, 3, 1, 1)[0, 0] for sign in (1, -1))
    return (most > -SURE) & (least < SURE)
