"""Choosing a checkpoint by play: action accuracy on recorded frames says little about scores."""

import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
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
from common.processes import is_main_process, world_size
from envs.atari import make_envs
from envs.games import find_game
from envs.protocol import Protocol, episode_seeds
from envs.reference_scores import all_references
from vlm import checkpoint
from vlm.model import PixelVLM
from vlm.precision import autocast, required_autocast
from vlm.training.lora import save_plain

SELECTION_SEED = 900
EVAL_ENVS = 8  # environments whose games have ended keep the model busy until the last game has


@dataclass(frozen=True)
class SelectionConfig:
    """Evaluation by play during training."""

    eval_every: int = 1000
    """Steps between evaluations by play, which keep the best weights in `best`; 0 keeps the last weights alone."""
    eval_episodes: int = 4
    """Episodes per game of an evaluation."""
    eval_temperature: float = 0.0
    """Sampling temperature of evaluation episodes; 0 is greedy."""

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
    """Return scores between random play, 0, and the experts' mean scores, 1, as a mean over games."""
    normalized = []
    for game, expert in experts.items():
        known = {reference.agent: reference.score for reference in all_references(find_game(game))}
        random = known.get("random", 0.0)
        normalized.append((np.mean(scores[game]) - random) / max(expert - random, 1.0))
    return float(np.mean(normalized))


def best_scores(demonstrators: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    """Return the score of each game's best demonstrator, from pairs of game and mean score.

    Where no score is known, as of other people's data without rewards, a human's stands for it.
    """
    best: dict[str, float | None] = {}
    for game, score in demonstrators:
        known = best.get(game)
        best[game] = score if known is None else known if score is None else max(score, known)
    return {game: human_score(game) if score is None else score for game, score in best.items()}


def human_score(game: str) -> float:
    """Return a human's score in a game; 1 above random play where none is known."""
    known = {reference.agent: reference.score for reference in all_references(find_game(game))}
    return known.get("human", known.get("random", 0.0) + 1.0)


def evaluate_games(
    vlm: PixelVLM,
    protocols: dict[str, Protocol],
    experts: dict[str, float],
    episodes: int,
    temperature: float,
    engine: str = "torch",
) -> dict[str, Any]:
    """Play every game of `protocols`; print and return the scores and their expert-normalized mean."""
    start, scores = time.monotonic(), {}
    for game, protocol in protocols.items():
        scores[game] = evaluate_policy(vlm, game, protocol, episodes, temperature, engine)
    normalized = expert_normalized_score(scores, experts)
    means = ", ".join(f"{game} {np.mean(found):.0f}" for game, found in scores.items())
    seconds = time.monotonic() - start
    print(f"temperature {temperature:g}: {means} (expert-normalized {normalized:.3f}, {seconds:.0f} s)", flush=True)
    return {"expert_normalized_score": normalized, "scores": scores}


class CheckpointSelectionCallback(TrainerCallback):
    """Plays at checkpoints and keeps the weights that play best in `best`.

    Several processes would wait for the one that plays. They save what is to be played in `candidates`, and the main
    process plays it when the training is over (`play_candidates`).
    """

    def __init__(
        self,
        vlm: PixelVLM,
        datasets: list[LabelledDataset],
        config: SelectionConfig,
        out: Path,
        metadata: dict[str, Any],
        dtype: torch.dtype = torch.float32,
    ):
        self.vlm, self.config, self.out, self.metadata, self.dtype = vlm, config, out, metadata, dtype
        self.file, self.candidates = out / "evaluations.json", out / "candidates"
        self.evaluations: list[dict[str, Any]] = json.loads(self.file.read_text()) if self.file.exists() else []
        self.experts = best_scores((one.data.info.game, one.mean_score) for one in datasets)
        self.protocols = {dataset.data.info.game: dataset.data.info.protocol for dataset in datasets}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Make up the evaluation of the checkpoint that is resumed, if it was interrupted."""
        if state.global_step and all(past["step"] != state.global_step for past in self.evaluations):
            self._evaluate_if_due(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Play if it is time, and keep the weights if none before played better; what is stopped plays when resumed."""
        if state.global_step == state.max_steps or not control.should_training_stop:
            self._evaluate_if_due(state.global_step)

    def _evaluate_if_due(self, step: int) -> None:
        if not self.config.eval_every or step % self.config.eval_every:
            return
        if world_size() > 1:
            save_plain(self.vlm, self.candidates / str(step), self.metadata, self.dtype)
        else:
            self._evaluate(step, self.vlm)

    def play_candidates(self) -> None:
        """Play what several processes saved, in the order of steps, and keep the best; only the main process does."""
        if not is_main_process():
            return
        for step in sorted(int(place.name) for place in self.candidates.glob("[0-9]*")):
            if all(past["step"] != step for past in self.evaluations):
                self._evaluate(step, checkpoint.load(self.candidates / str(step), dtype=self.dtype))
            shutil.rmtree(self.candidates / str(step))

    def _evaluate(self, step: int, vlm: PixelVLM) -> None:
        config, threads, was_training = self.config, torch.get_num_threads(), vlm.model.training
        vlm.model.eval()
        print(f"\nstep {step}, ", end="")
        with autocast(vlm.device, required_autocast(vlm.model) or False):
            found = evaluate_games(vlm, self.protocols, self.experts, config.eval_episodes, config.eval_temperature)
        vlm.model.train(was_training)
        torch.set_num_threads(threads)
        earlier = [past for past in self.evaluations if past["step"] < step]
        self.evaluations = [*earlier, {"step": step, **found}]
        if all(found["expert_normalized_score"] > past["expert_normalized_score"] for past in earlier):
            metadata = {**self.metadata, "selected": self.evaluations[-1]}
            save_plain(vlm, self.out / "best", metadata, self.dtype)
        write_text_atomically(self.file, json.dumps(self.evaluations, indent=1))  # after `best`: a kill repeats both
