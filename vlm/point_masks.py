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
from transformers import DynamicCache, PreTrainedTokenizerFast

from vlm.errors import VlmError
from vlm.model import PixelVLM
from vlm.packing import Packing, pad_questions
from vlm.prefix import Prefix, embed_words, read_behind, take_rows
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

    def row(self, row: int) -> list[int]:
        """Return the tokens of a row."""
        return self._tokens(f"{row},")

    def column(self, column: int) -> list[int]:
        """Return the tokens of a column and of the question's end."""
        return self._tokens(f"{column}{POINT_END}")

    def leaf(self, row: int, column: int) -> list[int]:
        """Return the tokens of a place and of the question's end."""
        return [*self.row(row), *self.column(column)]

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
    language = PointLanguage.of(vlm)
    rows, row_lengths = pad_questions([[language.row(row) for row in range(grid)]], language.pad)
    columns, column_lengths = pad_questions([[language.column(column) for column in range(grid)]], language.pad)
    found = []
    for expression in expressions:
        shared = torch.cat([language.shared, torch.tensor(language.trunk(expression))])
        prefix = Prefix.of(vlm, pixels, shared.to(vlm.device), 1)
        logits = _read_grid(vlm, prefix, rows[0], row_lengths[0], columns[0], column_lengths[0], language.answers)
        found.append(logits[..., 1] - logits[..., 0])
    return torch.stack(found)


def _read_grid(
    vlm: PixelVLM, prefix: Prefix, rows: Tensor, row_lengths: Tensor, columns: Tensor, lengths: Tensor, answers: Tensor
) -> Tensor:
    """Return logits float32[G, G, 2] of 0 and 1 at every place.

    Rows int[G, R] are read as a batch behind the prefix, and behind each the columns int[G, C], packed: none sees
    another.
    """
    device, count = vlm.device, len(rows)
    rows, row_lengths, columns, lengths = (part.to(device) for part in (rows, row_lengths, columns, lengths))
    one = torch.zeros(count, dtype=torch.long, device=device)  # all rows are behind the one prefix
    cache = take_rows(prefix.cache(vlm), one, into=DynamicCache(config=vlm.decoder.config))
    own = embed_words(vlm, rows).to(prefix.embeddings.dtype)
    read_behind(vlm, cache, own, prefix.positions_behind(torch.arange(rows.shape[1], device=device), one))
    layout = Packing(prefix.length + rows.shape[1], *columns.shape)
    mask = layout.mask(prefix.embeddings.dtype, device)[:, :, layout.prefix :].repeat(count, 1, 1, 1)
    padding = torch.arange(rows.shape[1], device=device) >= row_lengths[:, None]  # [G, R]
    blind = torch.finfo(mask.dtype).min / 2
    mask[:, :, :, prefix.length : layout.prefix].masked_fill_(padding[:, None, None], blind)
    steps = row_lengths[:, None] + layout.steps(device)  # [G, G * C]
    words = embed_words(vlm, columns.flatten()).to(prefix.embeddings.dtype).expand(count, -1, -1)
    states = read_behind(vlm, cache, words, prefix.positions_behind(steps, one), mask)
    states = states.unflatten(1, columns.shape)  # [G, G, C, D]
    last = states[:, torch.arange(count, device=device), lengths - 1]  # [G, G, D]
    head = vlm.model.get_output_embeddings()
    bias = None if getattr(head, "bias", None) is None else head.bias[answers]
    return torch.nn.functional.linear(last, head.weight[answers.to(device)], bias).float()
