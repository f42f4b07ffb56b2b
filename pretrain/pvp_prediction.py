"""Pixel value prediction at inference: a model's answers for many grid cells from one pass over the image.

`predict_pixels` decodes greedily, whatever the model answers; the published metrics use it. `predict_grid` decodes by
the form of an answer, `R,G,B]`: commas are forced and numbers chosen among 0 to 255, so that three passes of the
decoder answer a cell and give its expected values as well. Both give the same numbers where a greedy answer parses.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from pretrain.pvp_questions import MAX_ANSWER_TOKENS, PixelPromptFormat
from vlm.decoding.batched_generate import fill_template, generate_batch
from vlm.decoding.packing import forward_packed, pad_token_lists
from vlm.decoding.shared_prefix_attention import CachedPrefix
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM
from vlm.prompts import parse_pixel
from vlm.tokenizer import token_ids

TOKENS_BEFORE_BLUE = 4  # red, comma, green, comma
QUESTIONS_AT_A_TIME = 280  # of `predict_cells`: their scores over an image's tokens fit a CPU's cache


@dataclass(frozen=True)
class PixelPrediction:
    """A model's answers for K cells of an image.

    `expected` holds the means of the model's distribution over each number, given the numbers before it.
    """

    greedy: Int[np.ndarray, "K 3"]  # colors by greedy decoding, -1 where the answer cannot be parsed
    expected: Float[np.ndarray, "K 3"] | None  # None where numbers are not single tokens

    @property
    def colors(self) -> Int[np.ndarray, "K 3"]:
        """The greedy colors, black where the answer cannot be parsed."""
        return self.greedy.clip(0)


def grid_coordinates(rows: int, columns: int) -> Int[np.ndarray, "cells 2"]:
    """Return the row and column of every cell, row by row."""
    return np.stack(np.divmod(np.arange(rows * columns), columns), axis=1)


@torch.no_grad()
def predict_pixels(
    vlm: PixelVLM,
    frames: UInt8[np.ndarray, "history H W 3"],
    coordinates: Int[np.ndarray, "K 2"],
    prompt_format: PixelPromptFormat,
    chunk: int,
) -> PixelPrediction:
    """Return a model's colors of cells, as rows and columns on its grid; `chunk` questions are decoded at a time."""
    features = vlm.encode_cells(vlm.preprocess(frames[None]))
    return _predict_unconstrained(vlm, features, coordinates, prompt_format, chunk)


def _predict_unconstrained(
    vlm: PixelVLM,
    features: ImageFeatures,
    coordinates: Int[np.ndarray, "K 2"],
    prompt_format: PixelPromptFormat,
    chunk: int,
) -> PixelPrediction:
    prefix_ids = prompt_format.prefix_ids.to(vlm.device)
    questions = prompt_format.question_ids(coordinates)
    ids, lengths = pad_token_lists([questions], prompt_format.pad_token_id)
    answers = generate_batch(vlm, features, prefix_ids, ids.to(vlm.device), MAX_ANSWER_TOKENS, lengths, chunk)[0].cpu()
    texts = vlm.tokenizer.batch_decode(answers, skip_special_tokens=True)
    greedy = np.array([parse_pixel(text) or (-1, -1, -1) for text in texts])
    same_length = len({len(question) for question in questions}) == 1
    if prompt_format.number_token_ids is None or not same_length or answers.shape[1] < TOKENS_BEFORE_BLUE:
        return PixelPrediction(greedy, None)
    input_ids = torch.cat([ids[0], answers[:, :TOKENS_BEFORE_BLUE]], dim=1)  # [K, L + 4]
    parts = [_expected_colors(vlm, features, part, prompt_format) for part in input_ids.split(chunk)]
    return PixelPrediction(greedy, torch.cat(parts).numpy())


def _expected_colors(
    vlm: PixelVLM, features: ImageFeatures, input_ids: Int[Tensor, "K L"], prompt_format: PixelPromptFormat
) -> Float[Tensor, "K 3"]:
    """Return the means of the number distributions, for questions with answers up to the comma before blue."""
    assert prompt_format.number_token_ids is not None
    prefix_ids = prompt_format.prefix_ids.to(vlm.device)
    hidden = forward_packed(vlm, features, prefix_ids, input_ids[None].to(vlm.device), "cache")[0]  # [K, L, D]
    before_numbers = hidden[:, [-5, -3, -1]]  # the question's end, and the commas after red and green
    logits = vlm.model.get_output_embeddings()(before_numbers)[..., prompt_format.number_token_ids.to(vlm.device)]
    return _mean_numbers(logits.float()).cpu()


def _mean_numbers(logits: Float[Tensor, "... 256"]) -> Float[Tensor, "..."]:
    return logits.softmax(-1) @ torch.arange(256.0, device=logits.device)


def predict_grid(
    vlm: PixelVLM,
    frames: UInt8[np.ndarray, "history H W 3"],
    rows: int,
    columns: int,
    prompt_format: PixelPromptFormat,
) -> PixelPrediction:
    """Return a model's colors of every cell of a grid over the last frame, row by row, as of `predict_cells`."""
    features = vlm.encode_cells(vlm.preprocess(frames[None]))
    return predict_cells(vlm, features, grid_coordinates(rows, columns), prompt_format)


@torch.no_grad()
def predict_cells(
    vlm: PixelVLM,
    features: ImageFeatures,
    coordinates: Int[np.ndarray, "K 2"],
    prompt_format: PixelPromptFormat,
    chunk: int = QUESTIONS_AT_A_TIME,
) -> PixelPrediction:
    """Return a model's colors of cells of one encoded image, each decoded as `R,G,B]`; `chunk` at a time.

    `features` are those of `PixelVLM.encode_cells`.

    Where the tokenizer splits numbers, it decodes freely, as `predict_pixels` does.
    """
    if prompt_format.number_token_ids is None:
        return _predict_unconstrained(vlm, features, coordinates, prompt_format, chunk)
    ids, lengths = pad_token_lists([prompt_format.question_ids(coordinates)], prompt_format.pad_token_id)
    cached_prefix = CachedPrefix.encode(vlm, features, prompt_format.prefix_ids.to(vlm.device))
    numbers = prompt_format.number_token_ids.to(vlm.device)
    comma = torch.tensor(token_ids(vlm.tokenizer, ","), device=vlm.device)
    logits = fill_template(vlm, cached_prefix, ids.to(vlm.device), numbers, [comma, comma], lengths, chunk)[0]
    return PixelPrediction(logits.argmax(-1).cpu().numpy(), _mean_numbers(logits).cpu().numpy())
