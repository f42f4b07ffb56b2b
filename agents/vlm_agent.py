"""A vision-language model as an agent: frames in, a text action out."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.agent import Actions, Rngs, reset_rngs
from agents.frame_stack import FrameStack
from agents.model_limits import NO_LIMITS, ModelLimits
from agents.sampling import choose, softmax
from common.errors import UserError
from envs.atari import GameEnvs
from vlm import checkpoint
from vlm.decoding.candidate_scoring import CandidateScorer, generate_text
from vlm.decoding.openvino_scorer import OpenVinoScorer
from vlm.hf_vlm import PretrainedVLM
from vlm.image_tokens import describe_image_input
from vlm.model import PixelVLM
from vlm.prompts import parse_action

DECODES = ("scores", "generate")
ENGINES = ("auto", "torch", "openvino")


def chosen_temperature(training: dict[str, Any]) -> float:
    """Return the sampling temperature chosen for a checkpoint, 0 if none was, of its `training.json`."""
    return float(training.get("play", {}).get("temperature", 0.0))


def chosen_engine(engine: str, num_envs: int, device: torch.device) -> str:
    """Return what computes where the engine is auto: an OpenVINO graph, which is for one environment on a CPU."""
    if engine != "auto":
        return engine
    return "openvino" if num_envs == 1 and device.type == "cpu" else "torch"


class VlmAgent:
    """Plays one game with a `PixelVLM`.

    Args:
        vlm: the model.
        title: the game's title, for the prompt.
        action_names: the legal actions.
        decode: "scores" uses the exact probabilities of the legal answers; "generate" parses free text.
        temperature: of sampling from the probabilities; 0 is greedy.
        engine: torch in float32, or openvino, faster on a CPU. auto is openvino for one environment on a CPU, else
            torch, since an OpenVINO graph has a fixed batch size; a model of transformers is always in torch.
        max_new_tokens: the most tokens of a generated answer; by default the model's own.
    """

    name = "vlm"

    def __init__(
        self,
        vlm: PixelVLM,
        title: str,
        action_names: Sequence[str],
        decode: str = "scores",
        temperature: float = 0.0,
        engine: str = "torch",
        max_new_tokens: int | None = None,
    ):
        if engine not in ENGINES:
            raise UserError(f"expected an engine ({', '.join(ENGINES)}), got {engine!r}")
        if engine == "openvino" and vlm.device.type != "cpu":
            raise UserError(f"openvino computes on the CPU and the model is on {vlm.device}; expected --engine torch")
        if engine == "openvino" and not vlm.traceable:
            name = type(vlm.model).__name__
            raise UserError(f"{name} brings its own preprocessing and computes in torch; expected --engine torch")
        if decode not in DECODES:
            raise UserError(f"expected --decode {' or '.join(DECODES)}, got {decode!r}")
        if temperature < 0:
            raise UserError(f"expected a temperature of at least 0, got {temperature}")
        self.vlm, self.action_names = vlm, tuple(action_names)
        self.decode, self.temperature, self.engine = decode, temperature, engine
        self.max_new_tokens = max_new_tokens or vlm.max_new_tokens
        self.training: dict[str, Any] = {}
        self._prompt = vlm.action_prompt(title, action_names)
        if decode == "scores":
            self._scorer = CandidateScorer(vlm, self._prompt, action_names, cache_prompt=True)
        self._openvino_scorer: OpenVinoScorer | None = None
        self._frame_stack = FrameStack(vlm.history)
        self._rngs: Rngs = []

    @classmethod
    def load(
        cls,
        directory: Path,
        envs: GameEnvs,
        decode: str,
        temperature: float | None,
        engine: str,
        limits: ModelLimits = NO_LIMITS,
    ) -> "VlmAgent":
        """Return the agent of a checkpoint; a temperature of None is the one chosen for it, else 0."""
        training = checkpoint.read_training(directory)
        if temperature is None:
            temperature = chosen_temperature(training)
        device = torch.device("cpu") if engine == "openvino" else None
        vlm = checkpoint.load(directory, device, limits.image_tokens, limits.history)
        if isinstance(vlm, PretrainedVLM):
            print(describe_image_input(vlm), file=sys.stderr)
        agent = cls(vlm, envs.game.title, envs.action_names, decode, temperature, engine, limits.max_new_tokens)
        agent.training = training
        return agent

    def reset(self, seeds: Sequence[int | None]) -> None:
        """See `agents.agent.Agent`."""
        self._rngs = reset_rngs(self._rngs, seeds, 0x5A3)
        self._frame_stack.reset(np.array([seed is not None for seed in seeds]))

    @torch.inference_mode()
    def act(self, frames: np.ndarray) -> Actions:
        """See `agents.agent.Agent`."""
        stacks = self._frame_stack.add(frames)
        if self.decode == "generate":
            images = self.vlm.preprocess(stacks)
            return self._parse_answers(generate_text(self.vlm, images, self._prompt, self.max_new_tokens))
        scores = softmax(self._log_probs(stacks))
        if not np.isfinite(scores).all():
            raise UserError("expected probabilities of the model, got NaN: its weights overflow or are damaged")
        return Actions.legal(choose(scores, self.temperature, self._rngs), self.action_names, scores)

    def _log_probs(self, stacks: np.ndarray) -> np.ndarray:
        """Return the answers' log-probabilities; OpenVINO compiles its graph at the first stacks of a shape."""
        chosen = chosen_engine(self.engine, len(stacks), self.vlm.device)
        if chosen == "torch" or (self.engine == "auto" and not self.vlm.traceable):
            return self._scorer.log_probs(self.vlm.encode_images(self.vlm.preprocess(stacks))).cpu().numpy()
        if self._openvino_scorer is None or self._openvino_scorer.shape != stacks.shape:
            self._openvino_scorer = OpenVinoScorer(self._scorer, stacks)
        return self._openvino_scorer.log_probs(stacks)

    def _parse_answers(self, answers: list[str]) -> Actions:
        parsed = [parse_action(answer, self.action_names) for answer in answers]
        indices = np.array([0 if name is None else self.action_names.index(name) for name in parsed])
        return Actions(indices, tuple(answers), None, np.array([name is None for name in parsed]))
