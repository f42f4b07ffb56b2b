"""Masks for words as text: 0 or 1 at every place of a grid, all places behind one look at the image.

    <image> [segmentation]
    the red ghost loc: [        read once for an expression
    12,                         read once for a row
    7] mask:            -> 1    read for each place

The paper's lab asks for masks in this way (Vision-CAIR's paint data): no head, no parameters, the same interface as
pixel value prediction. The odds of 1 against 0 are a soft mask. A question is tokenised part by part, so that
what is shared is the same tokens for any tokenizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from vlm.answers import read_to_answers
from vlm.errors import VlmError
from vlm.model import PixelVLM
from vlm.packing import pad_questions
from vlm.prompts import MASK_PREFIX, POINT_ANSWERS, POINT_END, point_prompt


@dataclass(frozen=True)
class PointLanguage:
    """How a model's tokenizer writes questions about places and their answers.

    shared: int[S], the tokens between the image and every expression; answers: int[2], the tokens of 0 and 1; end: the
    token that closes an answer.
    """

    tokenizer: PreTrainedTokenizerFast
    shared: Tensor
    answers: Tensor
    end: int
    pad: int

    @classmethod
    def of(cls, vlm: PixelVLM) -> "PointLanguage":
        """Return the language of a model; `VlmError` if its tokenizer takes several tokens for a 0 or a 1."""
        tokenizer = vlm.tokenizer
        answers = tokenizer(list(POINT_ANSWERS), add_special_tokens=False)["input_ids"]
        if any(len(tokens) != 1 for tokens in answers):
            raise VlmError(f"expected a tokenizer whose 0 and 1 are single tokens, got {answers}")
        shared = torch.tensor(tokenizer(MASK_PREFIX, add_special_tokens=False)["input_ids"])
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        return cls(tokenizer, shared, torch.tensor(answers).flatten(), tokenizer.eos_token_id, pad)

    def trunk(self, expression: str) -> list[int]:
        """Return the tokens of an expression, up to the coordinates."""
        return self._tokens(point_prompt(expression))

    def leaf(self, row: int, column: int) -> list[int]:
        """Return the tokens of a place and of the question's end, part by part."""
        return [*self._tokens(f"{row},"), *self._tokens(f"{column}{POINT_END}")]

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def read_points(vlm: PixelVLM, pixels: Tensor, expressions: Sequence[str], grid: int) -> Tensor:
    """Return float32[K, grid, grid]: the log-odds of 1 against 0 at each place, for each expression.

    Args:
        vlm: the model.
        pixels: of `PixelVLM.pixels`, of one image.
        expressions: K of them.
        grid: places along each side.
    """
    language, head = PointLanguage.of(vlm), vlm.model.get_output_embeddings()
    places = [language.leaf(row, column) for row in range(grid) for column in range(grid)]
    questions, lengths = pad_questions([places], language.pad)
    answers = language.answers.to(vlm.device)
    bias = None if getattr(head, "bias", None) is None else head.bias[answers]
    found = []
    for expression in expressions:
        shared = torch.cat([language.shared, torch.tensor(language.trunk(expression))])
        states = read_to_answers(vlm, pixels, shared.to(vlm.device), questions.to(vlm.device), lengths)[0]
        logits = torch.nn.functional.linear(states, head.weight[answers], bias).float()  # [G * G, 2]
        found.append((logits[:, 1] - logits[:, 0]).view(grid, grid))
    return torch.stack(found)
