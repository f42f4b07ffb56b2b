"""Choosing a checkpoint by play: action accuracy on recorded frames says little about scores."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from agents.bc_dataset import LabelledDataset
from agents.rollout import play_games
from agents.vlm_agent import VlmAgent
from common.command import require_at_least
from common.files import write_text_atomically
from envs.atari import make_envs
from envs.games import find_game
from envs.protocol import Protocol, episode_seeds
from envs.reference_scores import all_references
from vlm import checkpoint
from vlm.model import PixelVLM

SELECTION_SEED = 900
EVAL_ENVS = 8  # environments whose games have ended keep the model busy until the last game has


@dataclass(frozen=True)
class SelectionConfig:
    """How often a training plays, and how."""

    eval_every: int = 1000
    """Steps between evaluations by play, which keep the best weights in `best`; 0 keeps the last weights alone."""
    eval_episodes: int = 4
    """Whole games of each kind that an evaluation plays."""
    eval_temperature: float = 0.0
    """The temperature of that play; 0 is greedy."""

    def __post_init__(self) -> None:
        require_at_least(self, 0, "eval_every", "eval_temperature")
        require_at_least(self, 1, "eval_episodes")


def evaluate_policy(
    vlm: PixelVLM, game_name: str, protocol: Protocol, episodes: int, temperature: float = 0.0, engine: str = "torch"
) -> list[float]:
    """Return the scores of whole games on the seeds that are reserved for choosing checkpoints."""
    game = find_game(game_name)
    with make_envs(game, min(episodes, EVAL_ENVS), protocol) as envs:
        agent = VlmAgent(vlm, game.title, envs.action_names, temperature=temperature, engine=engine)
        transitions = play_games(agent, envs, episode_seeds(SELECTION_SEED, episodes))
        return [transition.score for transition in transitions if transition.ended]


def expert_normalized_score(scores: Mapping[str, Sequence[float]], experts: Mapping[str, float]) -> float:
    """Return scores between random play, 0, and the experts', 1, as a mean over games.

    Args:
        scores: of whole games, by game.
        experts: the mean score of the best demonstrator, by game.
    """
    normalized = []
    for game, expert in experts.items():
        known = {reference.agent: reference.score for reference in all_references(find_game(game))}
        random = known.get("random", 0.0)
        normalized.append((np.mean(scores[game]) - random) / max(expert - random, 1.0))
    return float(np.mean(normalized))


class CheckpointSelectionCallback(TrainerCallback):
    """Plays at checkpoints and keeps the weights that play best in `best`."""

    def __init__(
        self,
        vlm: PixelVLM,
        datasets: Sequence[LabelledDataset],
        config: SelectionConfig,
        out: Path,
        metadata: dict[str, Any],
    ):
        self.vlm, self.config, self.out, self.metadata = vlm, config, out, metadata
        self.file = out / "evaluations.json"
        self.evaluations: list[dict[str, Any]] = json.loads(self.file.read_text()) if self.file.exists() else []
        self.experts: dict[str, float] = {}
        for dataset in datasets:
            name, score = dataset.data.info.game, float(np.mean(dataset.data.scores))
            self.experts[name] = max(score, self.experts.get(name, score))
        self.protocols = {dataset.data.info.game: dataset.data.info.protocol for dataset in datasets}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Play if it is time, and keep the weights if none before played better."""
        step, every = state.global_step, self.config.eval_every
        if not every or step % every or not state.is_world_process_zero:
            return
        started, threads = time.monotonic(), torch.get_num_threads()
        self.vlm.model.eval()
        scores = {
            game: evaluate_policy(self.vlm, game, protocol, self.config.eval_episodes, self.config.eval_temperature)
            for game, protocol in self.protocols.items()
        }
        self.vlm.model.train()
        torch.set_num_threads(threads)
        score = expert_normalized_score(scores, self.experts)
        evaluation = {"step": step, "expert_normalized_score": score, "scores": scores}
        earlier = [past for past in self.evaluations if past["step"] < step]
        self.evaluations = [*earlier, evaluation]
        if all(score > past["expert_normalized_score"] for past in earlier):
            checkpoint.save(self.vlm, self.out / "best", {**self.metadata, "selected": evaluation})
        write_text_atomically(self.file, json.dumps(self.evaluations, indent=1))
        means = ", ".join(f"{game} {np.mean(found):.0f}" for game, found in scores.items())
        seconds = time.monotonic() - started
        print(f"\nstep {step}: {means} ({score:.2f} of the expert, {seconds:.0f} s)", flush=True)
