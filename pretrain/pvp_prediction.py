"""Pixel value prediction at inference: a model's answers for many grid cells from one pass over the image."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from pretrain.pvp_questions import MAX_ANSWER_TOKENS, PixelPromptFormat
from vlm.decoding.batched_generate import generate_batch
from vlm.decoding.packing import forward_packed, pad_token_lists
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM
from vlm.prompts import parse_pixel

TOKENS_BEFORE_BLUE = 4  # red, comma, green, comma


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
    return (logits.float().softmax(-1) @ torch.arange(256.0, device=vlm.device)).cpu()
