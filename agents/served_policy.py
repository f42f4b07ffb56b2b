"""What a served checkpoint answers about frames: actions and their distribution, pixel values, masks.

Frames come oldest first; a model that takes more of them than were sent has the first repeated, as at the start of a
game. They are the game's own: whole, in its colors, one for each agent step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from agents.frame_questions import FrameQuestions, QuestionedModel
from agents.policy_batches import ActionQuestion, PolicyBatcher
from agents.sampling import temper
from agents.vlm_agent import chosen_temperature
from common.errors import UserError, nearest
from envs.games import Game, action_names, find_game, screen_size
from vlm import checkpoint

MAX_FRAMES = 16
MIN_TEMPERATURE = 1e-3  # below, probabilities overflow
FrameStack = UInt8[np.ndarray, "sent H W 3"]


@dataclass(frozen=True)
class ActionAnswer:
    """The chosen action and the probability of every one."""

    action_names: tuple[str, ...]
    index: int
    probabilities: Float[np.ndarray, " actions"]

    @property
    def action(self) -> str:
        """The chosen action."""
        return self.action_names[self.index]


class ServedPolicy:
    """A checkpoint that answers several clients at once.

    Args:
        directory: the checkpoint.
        max_batch: questions that share a forward pass.
    """

    def __init__(self, directory: Path, max_batch: int = 64):
        self.model, self.name = QuestionedModel.load(directory), Path(directory).resolve().name
        self.temperature = chosen_temperature(checkpoint.read_training(directory))
        self.batcher = PolicyBatcher(self.model.vlm, max_batch)

    def info(self) -> dict[str, Any]:
        """Return what a client needs to know of the policy."""
        pixels, segmenter = self.model.pixels, self.model.segmenter
        return {
            "checkpoint": self.name,
            "history": self.model.vlm.history,
            "temperature": self.temperature,
            "games": {name: list(action_names(find_game(name))) for name in self.model.games},
            "pixels": pixels.grid if pixels else None,
            "masks": segmenter.method if segmenter else None,
        }

    def act(
        self,
        frames: FrameStack,
        game: Game,
        names: Sequence[str] | None = None,
        temperature: float | None = None,
        seed: int | None = None,
    ) -> ActionAnswer:
        """Return the action after these frames of a game.

        names: the legal actions, by default the game's minimal set. temperature: 0 is greedy, None the checkpoint's.
        """
        if not self.model.games:
            raise UserError(f"expected a checkpoint trained to play, got {self.name}, which is not")
        legal = self._legal_actions(game, names)
        if frames.shape[1:3] != screen_size(game):
            expected, got = (f"{rows} x {columns}" for rows, columns in (screen_size(game), frames.shape[1:3]))
            raise UserError(f"expected frames of {game.title}, {expected} pixels, got {got}")
        temperature = self.temperature if temperature is None else temperature
        if 0 < temperature < MIN_TEMPERATURE:
            raise UserError(f"expected a temperature of 0, or of at least {MIN_TEMPERATURE}, got {temperature}")
        question = ActionQuestion(game.title, legal, self._stack(frames))
        probabilities = self.batcher.probabilities(question)
        index = int(probabilities.argmax())
        if temperature:
            index = int(np.random.default_rng(seed).choice(len(legal), p=temper(probabilities[None], temperature)[0]))
        return ActionAnswer(legal, index, probabilities)

    def _legal_actions(self, game: Game, names: Sequence[str] | None) -> tuple[str, ...]:
        if names is None:
            return action_names(game)
        console = action_names(game, full_action_space=True)
        for name in names:
            if name not in console:
                raise UserError(
                    f"expected actions of the console, got {name[:40]!r}; nearest: {nearest(name, console)}"
                )
        if not names or len(set(names)) != len(names):
            raise UserError("expected different actions, at least one")
        return tuple(names)

    def _stack(self, frames: FrameStack) -> UInt8[np.ndarray, "history H W 3"]:
        history = self.model.vlm.history
        if not 1 <= len(frames) <= MAX_FRAMES:
            raise UserError(f"expected 1 to {MAX_FRAMES} frames, got {len(frames)}")
        missing = max(0, history - len(frames))
        return np.concatenate([np.repeat(frames[:1], missing, axis=0), frames[-history:]])

    def _about(self, frames: FrameStack) -> FrameQuestions:
        square = self.model.vlm.image_config.square_size
        if square and max(frames.shape[1:3]) > square:
            raise UserError(f"expected frames of at most {square} x {square} pixels, got {list(frames.shape[1:3])}")
        return self.model.about(self._stack(frames))

    def pixels(
        self, frames: FrameStack, cells: Sequence[tuple[int, int]] | None = None
    ) -> tuple[tuple[int, int], UInt8[np.ndarray, "K 3"]]:
        """Return the rows and columns of the last frame's grid, and the colors of cells, by default of all in order."""
        questions = self._about(frames)
        size = questions.true_grid.shape[:2]  # refuses a frame that is smaller than the grid

        def compute() -> np.ndarray:
            return questions.grid().predicted.reshape(-1, 3) if cells is None else questions.cells(cells)

        return (size[0], size[1]), self.batcher.compute(compute)

    def mask(self, frames: FrameStack, expression: str) -> Bool[np.ndarray, "H W"]:
        """Return the mask of what words mean in the last frame."""
        questions = self._about(frames)
        return self.batcher.compute(lambda: questions.mask(expression))
