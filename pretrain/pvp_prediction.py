"""Reads an image through a model: asks for the colour at every place, all behind one look at the image."""

from dataclasses import dataclass

import numpy as np
import torch

from pretrain.pvp_prompts import LONGEST_ANSWER, PixelPromptFormat
from vlm.decoding.batched_generate import generate_batch
from vlm.decoding.packing import forward_packed, pad_token_lists
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM
from vlm.prompts import parse_pixel

SAID_BEFORE_BLUE = 4  # tokens: red, comma, green, comma


@dataclass(frozen=True)
class PixelPrediction:
    """What a model says about K places of an image.

    greedy: int[K, 3], the colours of its answers, -1 where an answer cannot be parsed; expected: float[K, 3], the
    mean of its distribution over each number, given the numbers that it said before, or None where numbers are not
    single tokens.
    """

    greedy: np.ndarray
    expected: np.ndarray | None

    @property
    def invalid(self) -> np.ndarray:
        """bool[K]: the answers that cannot be parsed."""
        return np.any(self.greedy < 0, axis=-1)

    @property
    def answered(self) -> np.ndarray:
        """int[K, 3]: the answers, black where there is none."""
        return self.greedy.clip(0)


def grid_coordinates(rows: int, columns: int) -> np.ndarray:
    """Return int[rows * columns, 2], row by row."""
    return np.stack(np.divmod(np.arange(rows * columns), columns), axis=1)


@torch.no_grad()
def predict_pixels(
    vlm: PixelVLM, image: np.ndarray, places: np.ndarray, language: PixelPromptFormat, chunk: int
) -> PixelPrediction:
    """Ask a model for the colours at places int[K, 2] of an image.

    Args:
        vlm: the model.
        image: uint8[history, H, W, 3].
        places: rows and columns on the grid that the model was taught.
        language: of the model.
        chunk: questions decoded at a time.
    """
    features = vlm.encode_images(vlm.preprocess(image[None]))
    shared = language.shared.to(vlm.device)
    asked = language.questions(places)
    questions, lengths = pad_token_lists([asked], language.pad)
    said = generate_batch(vlm, features, shared, questions.to(vlm.device), LONGEST_ANSWER, lengths, chunk)[0].cpu()
    texts = vlm.tokenizer.batch_decode(said, skip_special_tokens=True)
    parsed = [parse_pixel(text) or (-1, -1, -1) for text in texts]
    greedy = np.array(parsed)
    if language.numbers is None or len({len(tokens) for tokens in asked}) > 1:
        return PixelPrediction(greedy, None)
    if said.shape[1] < SAID_BEFORE_BLUE:
        return PixelPrediction(greedy, None)
    read = torch.cat([questions[0], said[:, :SAID_BEFORE_BLUE]], dim=1)  # [K, L + 4]
    parts = [_expect(vlm, features, part, language) for part in read.split(chunk)]
    return PixelPrediction(greedy, torch.cat(parts).numpy())


def _expect(vlm: PixelVLM, features: ImageFeatures, read: torch.Tensor, language: PixelPromptFormat) -> torch.Tensor:
    """Return float[K, 3], the expected numbers, for tokens int[K, L + 4]."""
    assert language.numbers is not None
    shared = language.shared.to(vlm.device)
    hidden = forward_packed(vlm, features, shared, read[None].to(vlm.device), "cache")[0]  # [K, L + 4, D]
    before = hidden[:, [-5, -3, -1]]  # the question's end, and the commas behind red and green
    logits = vlm.model.get_output_embeddings()(before)[..., language.numbers.to(vlm.device)].float()
    return (logits.softmax(-1) @ torch.arange(256.0, device=vlm.device)).cpu()
