"""A game, or a picture, whose present frame is questioned: it moves on step by step, and answers in JSON values.

Images are PNGs as data URLs; colors of a grid are its bytes, row by row, in base64.
"""

import base64
import time
from typing import Any

import numpy as np

from agents.agent import Actions, Agent
from agents.data_url import png_url
from agents.frame_questions import FrameQuestions, QuestionedModel, still_frames
from agents.frame_stack import FrameStack
from common.errors import UserError
from common.images import decode_rgb
from envs.atari import GameEnvs
from vlm.decoding.candidate_scoring import CandidateScorer
from vlm.segmentation.mask_drawing import MASK_COLOR

MASK_FILL, MASK_BORDER = 90, 255  # opacity, of 255


class AskSession:
    """One game with its agent, or a picture in place of it, and the questions about the present frame."""

    def __init__(self, model: QuestionedModel, name: str, game: tuple[GameEnvs, Agent, int] | None):
        """Start; `game` holds environments of one game, who plays it, and the seed."""
        self.model, self.name = model, name
        self.envs: GameEnvs | None = game[0] if game else None
        self.agent: Agent | None = game[1] if game else None
        self.seed = game[2] if game else 0
        self.serial = 0  # of the frame in question, so that late answers are told apart
        self.questions: FrameQuestions | None = None
        self._picture = ""  # a name, while a picture takes the game's place
        self._parsed: float | None = None
        self._scorer: CandidateScorer | None = None
        if self.envs and model.games:
            prompt = model.vlm.action_prompt(self.envs.game.title, self.envs.action_names)
            self._scorer = CandidateScorer(model.vlm, prompt, self.envs.action_names, cache_prompt=True)
        if self.envs:
            self.restart()

    def info(self) -> dict[str, Any]:
        """Return what does not change from frame to frame: names, and what the model can be asked."""
        model, envs, agent = self.model, self.envs, self.agent
        return {
            "checkpoint": self.name,
            "game": envs.game.title if envs else None,
            "player": agent.name if agent else None,
            "plays_itself": getattr(agent, "vlm", None) is model.vlm,
            "actions": list(envs.action_names) if envs else [],
            "trained_games": list(model.games),
            "trained_on_game": envs is not None and envs.game.name in model.games,
            "pixels": model.pixels is not None,
            "masks": model.segmenter.method if model.segmenter else None,
            "steps_per_second": 60 / envs.protocol.frame_skip if envs else 0,
        }

    def restart(self) -> dict[str, Any]:
        """Begin the game again, with the same seed; return `state`."""
        envs, agent = self._game()
        self._frames = envs.reset([self.seed])
        agent.reset([self.seed])
        self._frame_stack = FrameStack(self.model.vlm.history)
        self._step, self._score, self._ended = 0, 0.0, False
        return self._observe()

    def step(self) -> dict[str, Any]:
        """Take the agent's action, or leave a picture for the game; return `state`."""
        envs, _ = self._game()
        if self._picture:
            return self._observe(add=False)
        if not self._ended:
            step = envs.step(self._actions.indices)
            self._frames, self._step = step.frames, self._step + 1
            self._score += float(step.rewards[0])
            self._ended = bool(step.terminated[0] or step.truncated[0])
            return self._observe()
        return self.state()

    def _game(self) -> tuple[GameEnvs, Agent]:
        if self.envs is None or self.agent is None:
            raise UserError("expected a game to step (--game), got a picture alone")
        return self.envs, self.agent

    def _observe(self, add: bool = True) -> dict[str, Any]:
        """Show the agent the present frame, unless it has seen it, and take up the questions about it."""
        _, agent = self._game()
        if add:
            self._stack = self._frame_stack_of_present()
            self._actions: Actions = agent.act(self._frames)
        self._picture = ""
        self._ask_about(self._stack)
        return self.state()

    def _frame_stack_of_present(self) -> np.ndarray:
        self._frame_stack.reset(np.array([self._step == 0]))
        return self._frame_stack.add(self._frames)[0]

    def show_picture(self, content: bytes, name: str = "picture") -> dict[str, Any]:
        """Put a PNG or JPEG in the game's place; return `state`. `ImageError` if it cannot be used."""
        frames = still_frames(decode_rgb(content, name), self.model)
        self._picture = name
        self._ask_about(frames)
        return self.state()

    def _ask_about(self, frames: np.ndarray) -> None:
        self.questions, self.serial = self.model.about(frames), self.serial + 1

    def _present(self) -> FrameQuestions:
        if self.questions is None:
            raise UserError("expected a game or a picture to ask about, got none yet")
        return self.questions

    def state(self) -> dict[str, Any]:
        """Return the present frame, and the action and its probabilities, in a game."""
        questions = self._present()
        height, width, _ = questions.frame.shape
        state: dict[str, Any] = {"serial": self.serial, "frame": png_url(questions.frame), "size": [height, width]}
        state |= {"picture": self._picture or None, "grid": self._grid_size(questions)}
        if self._picture or self.envs is None:
            return state
        state |= {"step": self._step, "score": self._score, "ended": self._ended}
        state |= {"played": int(self._actions.indices[0]), "answer": self._actions.texts[0]}
        if self._scorer:
            state["probabilities"] = [round(float(p), 5) for p in questions.action_probabilities(self._scorer)]
        return state

    def _grid_size(self, questions: FrameQuestions) -> list[int] | None:
        return list(questions.true_grid.shape[:2]) if self.model.pixels else None

    def pixel(self, row: int, column: int) -> dict[str, Any]:
        """Return the answered and the true color of a cell, and the mean error of the three numbers."""
        questions = self._present()
        answered, true = questions.cell(row, column), questions.true_grid[row, column]
        error = float(np.abs(answered.astype(int) - true).mean())
        found = {"row": row, "column": column, "answered": answered.tolist(), "true": true.tolist()}
        return {"serial": self.serial, **found, "error": round(error, 2)}

    def grid(self) -> dict[str, Any]:
        """Return the answered and the true color of every cell, the mean absolute error, and how long it took."""
        questions, start = self._present(), time.perf_counter()
        answer = questions.grid()
        milliseconds = round(1000 * (time.perf_counter() - start), 1)
        if self._parsed is None:
            self._parsed = questions.parsed_share()
        rows, columns, _ = answer.true.shape
        colors = {"answered": base64_bytes(answer.predicted), "true": base64_bytes(answer.true)}
        found = {"serial": self.serial, "rows": rows, "columns": columns, **colors, "mae": round(answer.mae, 2)}
        return {**found, "parsed": round(self._parsed, 3), "milliseconds": milliseconds}

    def mask(self, expression: str) -> dict[str, Any]:
        """Return the mask of an expression as a transparent image, its pixels and the highest probability."""
        questions = self._present()
        mask, probability = questions.mask(expression), questions.mask_probability(expression)
        found = {"pixels": int(mask.sum()), "highest": round(float(probability.max()), 3)}
        return {"serial": self.serial, "expression": expression, "overlay": png_url(mask_overlay(mask)), **found}


def mask_overlay(mask: np.ndarray) -> np.ndarray:
    """Return a mask bool[H, W] as a transparent image uint8[H, W, 4]: its inner border, and its area lighter."""
    padded = np.pad(mask, 1)
    interior = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    opacity = np.where(interior, MASK_FILL, MASK_BORDER) * mask
    return np.dstack([np.full((*mask.shape, 3), MASK_COLOR, np.uint8), opacity.astype(np.uint8)])


def base64_bytes(values: np.ndarray) -> str:
    """Return the bytes of an array uint8[...] in base64."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
