"""The vision-language model at the controls: frames in, a text action out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.agent import Actions
from agents.env_rngs import EnvRngs
from agents.frame_stack import FrameStack
from common.errors import UserError
from envs.games import Game
from vlm import checkpoint
from vlm.decoding.candidate_scoring import CandidateScorer, generate_text
from vlm.decoding.openvino_scorer import OpenVinoScorer
from vlm.model import PixelVLM
from vlm.prompts import action_prompt, parse_action

DECODES = ("scores", "generate")
ENGINES = ("auto", "torch", "openvino")


class VlmAgent:
    """Plays one game with a `PixelVLM`.

    `decode="scores"` compares the exact probabilities of the legal answers: greedily at temperature 0, else drawn.
    `decode="generate"` lets the model speak; an answer that names no legal action counts as unparsable and noop is
    played for it. `engine` computes the scores: torch in float32, or openvino, whose compiled graph takes a third of
    the time; auto takes openvino for one lane on a CPU and torch otherwise, since a graph is of one batch size.
    """

    def __init__(
        self,
        vlm: PixelVLM,
        title: str,
        action_names: Sequence[str],
        decode: str = "scores",
        temperature: float = 0.0,
        engine: str = "torch",
    ):
        if engine not in ENGINES:
            raise UserError(f"expected an engine ({', '.join(ENGINES)}), got {engine!r}")
        if engine == "openvino" and vlm.device.type != "cpu":
            raise UserError(f"openvino computes on the CPU and the model is on {vlm.device}; expected --engine torch")
        if decode not in DECODES:
            raise UserError(f"expected --decode {' or '.join(DECODES)}, got {decode!r}")
        if temperature < 0:
            raise UserError(f"expected a temperature of at least 0, got {temperature}")
        self.name = "vlm"
        self.vlm, self.action_names = vlm, tuple(action_names)
        self.decode, self.temperature = decode, temperature
        self.training: dict[str, Any] = {}
        self._prompt = action_prompt(title, action_names)
        self._scorer = (
            CandidateScorer(vlm, self._prompt, action_names, cache_prompt=True) if decode == "scores" else None
        )
        self._engine = engine
        self._compiled: OpenVinoScorer | None = None
        self._memory = FrameStack(vlm.history)
        self._rngs = EnvRngs(0x5A3)

    @classmethod
    def load(
        cls,
        directory: Path,
        game: Game,
        action_names: Sequence[str],
        decode: str,
        temperature: float | None,
        engine: str = "torch",
    ) -> "VlmAgent":
        """Build the agent of a checkpoint; a temperature of None is the one that was chosen for it, else 0."""
        training = checkpoint.read_training(directory)
        if temperature is None:
            temperature = float(training.get("play", {}).get("temperature", 0.0))
        vlm = checkpoint.load(directory, torch.device("cpu") if engine == "openvino" else None)  # which knows no CUDA
        agent = cls(vlm, game.title, action_names, decode, temperature, engine)
        agent.training = training
        return agent

    def reset(self, seeds: Sequence[int | None]) -> None:
        """Begin new games; see `agents.agent.Agent`."""
        self._rngs.reset(seeds)
        self._memory.reset(np.array([seed is not None for seed in seeds]))

    @torch.inference_mode()
    def act(self, frames: np.ndarray) -> Actions:
        """Answer the frames uint8[n, H, W, 3] of all lanes."""
        stacks = self._memory.add(frames)
        if self.decode == "generate":
            return self._spoken(generate_text(self.vlm, self.vlm.preprocess(stacks), self._prompt))
        log_probs = self._log_probs(stacks)
        shares = np.exp(log_probs - log_probs.max(axis=1, keepdims=True))
        scores = shares / shares.sum(axis=1, keepdims=True)
        indices = self._choose(scores)
        texts = tuple(self.action_names[i] for i in indices)
        return Actions(indices, texts, scores, np.zeros(len(frames), dtype=bool))

    def _log_probs(self, stacks: np.ndarray) -> np.ndarray:
        """Score with the engine asked for; a graph is compiled at the first frame of its shape."""
        assert self._scorer is not None
        if self._engine == "torch" or (self._engine == "auto" and (len(stacks) > 1 or self.vlm.device.type != "cpu")):
            return self._scorer.log_probs(self.vlm.encode_images(self.vlm.preprocess(stacks))).cpu().numpy()
        if self._compiled is None or self._compiled.shape != stacks.shape:
            self._compiled = OpenVinoScorer(self._scorer, stacks)
        return self._compiled.log_probs(stacks)

    def _choose(self, scores: np.ndarray) -> np.ndarray:
        if self.temperature == 0:
            return scores.argmax(axis=1)
        tempered = np.log(scores.astype(np.float64) + 1e-30) / self.temperature
        shares = np.exp(tempered - tempered.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        return np.array([rng.choice(len(p), p=p) for rng, p in zip(self._rngs, shares, strict=True)])

    def _spoken(self, answers: list[str]) -> Actions:
        parsed = [parse_action(answer, self.action_names) for answer in answers]
        indices = np.array([0 if name is None else self.action_names.index(name) for name in parsed])
        return Actions(indices, tuple(answers), None, np.array([name is None for name in parsed]))
