"""Questions to a model about one frame: the colors of a grid's cells, masks of words, probabilities of actions.

    model = QuestionedModel.load(Path("runs/clone/last"))
    questions = model.about(frames)                 frames uint8[history, H, W, 3], the one in question last
    questions.grid()                                what the model answers for every cell, beside the truth
    questions.mask("the red ghost")                 bool[H, W]

A frame is encoded once, and every answer is kept. A checkpoint is asked only what it was trained on.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from agents.seen_frame import GridAnswer
from common.errors import UserError
from common.images import ImageError
from pretrain.pixel_training import PixelTraining
from pretrain.pvp_prediction import grid_coordinates, predict_cells, predict_pixels
from pretrain.pvp_questions import PixelPromptFormat, downsample_grid
from vlm import checkpoint
from vlm.decoding.candidate_scoring import CandidateScorer
from vlm.image_features import ImageFeatures
from vlm.image_input import resize_image
from vlm.model import PixelVLM
from vlm.segmentation.mask_head import CONFIG_FILE
from vlm.segmentation.referring_segmenter import POINT_GRID, ReferringSegmenter, load_segmenter

MASK_THRESHOLD = 0.5


class QuestionedModel:
    """A model, and what it was trained to answer: `pixels` and `segmenter` are None where it was not.

    games: those it was trained to play.
    """

    def __init__(self, vlm: PixelVLM, training: dict[str, Any], segmenter: ReferringSegmenter | None = None):
        self.vlm, self.segmenter = vlm, segmenter
        self.pixels = PixelTraining.find(training)
        self.games = trained_games(training)
        self.prompt_format = PixelPromptFormat.from_model(vlm, self.pixels.order) if self.pixels else None

    @classmethod
    def load(cls, directory: Path) -> "QuestionedModel":
        """Return the model of a checkpoint; `UserError` if it was trained on none of play, pixels and masks."""
        training = checkpoint.read_training(directory)
        segments = (Path(directory) / CONFIG_FILE).is_file() or POINT_GRID in training
        segmenter = load_segmenter(directory) if segments else None
        model = cls(segmenter.vlm if segmenter else checkpoint.load(directory), training, segmenter)
        if not (model.games or model.pixels or model.segmenter):
            raise UserError(f"expected a checkpoint trained on play, pixel values or masks, got {directory}")
        return model

    def about(self, frames: UInt8[np.ndarray, "history H W 3"]) -> "FrameQuestions":
        """Return the questions about the last of these frames."""
        return FrameQuestions(self, frames)


def trained_games(training: dict[str, Any]) -> tuple[str, ...]:
    """Return the games of the last training to play in a `training.json`; those before it are in `started_from`."""
    while training:
        if games := training.get("games"):
            return tuple(games)
        training = training.get("started_from") or {}
    return ()


class FrameQuestions:
    """Questions about one frame: it is encoded once for all of them."""

    def __init__(self, model: QuestionedModel, frames: UInt8[np.ndarray, "history H W 3"]):
        self.model, self.frames = model, frames
        self._features: dict[tuple[int, ...], ImageFeatures] = {}
        self._masks: dict[str, Float[np.ndarray, "H W"]] = {}
        self._grid: GridAnswer | None = None

    @property
    def frame(self) -> UInt8[np.ndarray, "H W 3"]:
        """The frame in question."""
        return self.frames[-1]

    @torch.no_grad()
    def features(self, size: tuple[int, int] | None = None) -> ImageFeatures:
        """Return the features of the frames, resized to `size` if given."""
        resized = np.stack([resize_image(frame, size) for frame in self.frames])
        if resized.shape not in self._features:
            vlm = self.model.vlm
            hidden_states = self.model.segmenter is not None or vlm.expands_maps
            self._features[resized.shape] = vlm.encode_images(vlm.preprocess(resized[None]), hidden_states)
        return self._features[resized.shape]

    @cached_property
    def true_grid(self) -> UInt8[np.ndarray, "rows columns 3"]:
        """The true color of every cell of the grid; `UserError` where the model was not trained on pixel values."""
        pixels = self._pixel_training()
        return downsample_grid(resize_image(self.frame, pixels.size), pixels.grid)

    def cell(self, row: int, column: int) -> UInt8[np.ndarray, "3"]:
        """Return the answered color of one cell; `UserError` if there is no such cell."""
        return self.cells([(row, column)])[0]

    def cells(self, cells: Sequence[tuple[int, int]]) -> UInt8[np.ndarray, "K 3"]:
        """Return the answered colors of cells (row, column); `UserError` if there is no such cell."""
        rows, columns = self.true_grid.shape[:2]
        for row, column in cells:
            if not (0 <= row < rows and 0 <= column < columns):
                raise UserError(f"expected a cell of a grid of {rows} x {columns}, got row {row}, column {column}")
        coordinates = np.array(cells).reshape(-1, 2)
        if self._grid:
            return self._grid.predicted[coordinates[:, 0], coordinates[:, 1]]
        return self._predict(coordinates)

    def grid(self) -> GridAnswer:
        """Return the answered colors of all cells, beside the true ones."""
        if self._grid is None:
            true = self.true_grid
            self._grid = GridAnswer(self._predict(grid_coordinates(*true.shape[:2])).reshape(true.shape), true)
        return self._grid

    def parsed_share(self, count: int = 32) -> float:
        """Return the share of evenly spaced cells whose answers parse when the model decodes freely.

        The answers of `grid` always have the right form; a model that forgot it is only guided to numbers there.
        """
        pixels, prompt_format = self._pixel_training(), self.model.prompt_format
        assert prompt_format
        cells = grid_coordinates(*self.true_grid.shape[:2])
        cells = cells[np.linspace(0, len(cells) - 1, min(count, len(cells))).round().astype(int)]
        resized = np.stack([resize_image(frame, pixels.size) for frame in self.frames])
        found = predict_pixels(self.model.vlm, resized, cells, prompt_format, count)
        return float((found.greedy >= 0).all(-1).mean())

    def mask_probability(self, expression: str) -> Float[np.ndarray, "H W"]:
        """Return each pixel's probability of belonging to what the words mean; `UserError` without a segmenter."""
        segmenter, words = self.model.segmenter, " ".join(expression.split())
        if segmenter is None:
            raise UserError("expected a checkpoint trained on masks (`pretrain.referring`), got one without")
        if not words:
            raise UserError('expected words, as "the red ghost", got none')
        if words not in self._masks:
            features = self.features(segmenter.input_size(*self.frame.shape[:2]))
            self._masks[words] = segmenter.predict(self.frames, [words], features)[0]
        return self._masks[words]

    def mask(self, expression: str) -> Bool[np.ndarray, "H W"]:
        """Return the mask of what the words mean."""
        return self.mask_probability(expression) > MASK_THRESHOLD

    @torch.no_grad()
    def action_probabilities(self, scorer: CandidateScorer) -> Float[np.ndarray, " actions"]:
        """Return the probability of each of a scorer's actions; they sum to 1."""
        return scorer.log_probs(self.features())[0].softmax(-1).cpu().numpy()

    def _pixel_training(self) -> PixelTraining:
        if self.model.pixels is None:
            raise UserError("expected a checkpoint trained on pixel values (`pretrain.pvp`), got one without")
        return self.model.pixels

    def _predict(self, coordinates: np.ndarray) -> UInt8[np.ndarray, "K 3"]:
        pixels, prompt_format = self._pixel_training(), self.model.prompt_format
        assert prompt_format
        features = self.model.vlm.expand(self.features(pixels.size))
        found = predict_cells(self.model.vlm, features, coordinates, prompt_format)
        return found.colors.astype(np.uint8)


def still_frames(image: UInt8[np.ndarray, "H W 3"], model: QuestionedModel) -> UInt8[np.ndarray, "history h w 3"]:
    """Return a still image as a model's frames, at the resolution of its training on pixel values.

    `ImageError` if it is smaller than the grid.
    """
    if model.pixels:
        downsample_grid(image, model.pixels.grid)  # refuses an image that is too small
        image = resize_image(image, model.pixels.size)
    if not image.size:
        raise ImageError("expected an image of at least one pixel")
    image = resize_image(image, model.vlm.image_config.fit(*image.shape[:2]))
    return np.stack([image] * model.vlm.history)
