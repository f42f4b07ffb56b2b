"""The paper's claim about games at nano size: what do an unfrozen encoder and pixel value prediction add to play?

    python -m experiments.run games-nano

The conditions of `experiments.studies.conditions` x three training seeds x {all, a tenth} of the demonstrations: PVP
should matter most where data are few. All start from the semantic encoder that ships and from the models of `pvp-nano`,
whose PVP saw neither game; then one text policy for both games is cloned from the same demonstrations in the same
number of steps. The expert is the released policy, which sees no more than the learner, so that all of its play can be
learned from frames. A row holds the scores of one policy in whole games of published seeds, its negative log-likelihood
of the expert in held-out games, which is less noisy, and how far off its PVP was in the game before it was cloned.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch

from agents.agent import Agent
from agents.clone import bc_objective, clone, load_datasets
from agents.clone_config import CONFIGS as CLONE_CONFIGS
from agents.clone_config import CloneConfig
from agents.random_agent import RandomAgent
from agents.rollout import play_games
from agents.vlm_agent import VlmAgent
from envs.atari import make_envs
from envs.games import find_game
from envs.protocol import MACHADO2018, Protocol, episode_seeds
from experiments.studies import pvp_nano
from experiments.studies.conditions import CONDITIONS, PVP, pretrain_condition, pretraining_seconds
from experiments.studies.demonstrators import DemonstratorConfig, Engine, first_episodes, record_episodes
from experiments.studies.eval_sets import EvalSet, Metrics, evaluate, evaluate_baselines, frame_set
from experiments.studies.jobs import Job
from pretrain.data.images import EpisodeFrames
from pretrain.pvp_model import start_model
from pretrain.reconstruct import patch_size
from pretrain.reconstruction_metrics import mean_color
from vlm import checkpoint
from vlm.device import best_device
from vlm.training.objective import mean_metrics

SEEDS = (0, 1, 2)
EVAL_SEED = 1000  # of the games of training seed 0; each training seed has the next
HELDOUT_SEED_OFFSET = 7  # from a demonstrator's seed to that of its held-out games


@dataclass(frozen=True)
class ExperimentConfig:
    """All settings of the experiment."""

    pretraining: pvp_nano.ExperimentConfig = pvp_nano.NANO
    pretraining_dir: Path = Path("runs/pvp-nano")
    demonstrators: tuple[DemonstratorConfig, ...] = (
        DemonstratorConfig("Carnival", "vlm", 10, 0.05, 10),
        DemonstratorConfig("Carnival", "vlm", 10, 0.4, 12),
        DemonstratorConfig("MsPacman", "vlm", 10, 0.05, 40),
        DemonstratorConfig("MsPacman", "vlm", 10, 0.4, 42),
    )
    data_fractions: tuple[float, ...] = (1.0, 0.1)  # of the demonstrations
    num_heldout_episodes: int = 3  # of each demonstrator
    num_heldout_steps: int = 1024  # agent steps of them that are evaluated
    cloning: CloneConfig = CLONE_CONFIGS["games-nano"]
    clone_steps: tuple[int, ...] = (500, 200)  # with each fraction
    temperature: float = 1.0  # of play: the learned distribution as it is
    episodes: int = 20  # of evaluation, of each policy in each game
    num_envs: int = 6  # in parallel on a CPU; few, since ended games cost compute until the last ends
    engine: Engine = "openvino"  # of play on a CPU
    protocol: Protocol = MACHADO2018

    @property
    def games(self) -> list[str]:
        """The games, each once."""
        return list(dict.fromkeys(demonstrator.game for demonstrator in self.demonstrators))


NANO = ExperimentConfig()


def prepare(config: ExperimentConfig = NANO) -> None:
    """Record the frames and demonstrations that are missing."""
    pvp_nano.prepare(config.pretraining)
    for demonstrator in config.demonstrators:
        for fraction in config.data_fractions:
            demonstrations(config, demonstrator, fraction)
        heldout_episodes(config, demonstrator)


def demonstrations(config: ExperimentConfig, demonstrator: DemonstratorConfig, fraction: float) -> Path:
    """Return the first fraction of a demonstrator's episodes."""
    dataset = record_episodes(demonstrator, config.pretraining.data_dir, config.engine)
    episodes = max(1, round(demonstrator.episodes * fraction))
    return dataset if episodes == demonstrator.episodes else first_episodes(dataset, episodes)


def heldout_episodes(config: ExperimentConfig, demonstrator: DemonstratorConfig) -> Path:
    """Return the episodes of a demonstrator that no condition trains on."""
    seed = demonstrator.seed + HELDOUT_SEED_OFFSET
    heldout = replace(demonstrator, seed=seed, episodes=config.num_heldout_episodes)
    return record_episodes(heldout, config.pretraining.data_dir, config.engine, "heldout-")


def jobs(seeds: Sequence[int] | None, work: Path, config: ExperimentConfig = NANO) -> list[Job]:
    """Return the jobs: random play, then every condition with every seed and fraction of the demonstrations."""
    found = [Job({"condition": "random"}, 60, partial(measure_random, config))]
    steps_of = dict(zip(config.data_fractions, config.clone_steps, strict=True))
    pretrained = set()  # by an earlier job
    runs = [(*condition, seed) for seed in seeds or SEEDS for condition in CONDITIONS]
    waits = {run: pretraining_seconds(config.pretraining, *run, config.pretraining_dir) for run in runs}
    for run, (fraction, steps) in product(sorted(runs, key=waits.__getitem__), steps_of.items()):
        encoder, pvp, seed = run  # those that need pre-training come last
        key = {"encoder": encoder, "pvp": pvp, "data_fraction": fraction, "seed": seed}
        seconds = steps * 0.5 + 270 + (0 if run in pretrained else waits[run])
        pretrained.add(run)
        found.append(Job(key, seconds, partial(measure_condition, config, encoder, pvp, fraction, steps, seed, work)))
    return found


def clone_config(config: ExperimentConfig, encoder: str, fraction: float, **run: Any) -> CloneConfig:
    """Return the cloning of one condition; run: its out, init, steps and seed."""
    data = tuple(demonstrations(config, demonstrator, fraction) for demonstrator in config.demonstrators)
    cloning = config.cloning.replace(data=data, **run)
    if encoder == "frozen":
        rate = cloning.optimizer.learning_rate
        cloning = cloning.replace(encoder_learning_rate=0.0, connector_learning_rate=rate)
    return cloning.with_trainer_options(save_steps=max(1, cloning.run.steps // 4))


def measure_condition(
    config: ExperimentConfig, encoder: str, pvp: str, fraction: float, steps: int, seed: int, work: Path
) -> list[dict[str, Any]]:
    """Train one condition, or resume it, and play; return a row for each game."""
    start = pretrain_condition(config.pretraining, encoder, pvp, seed, config.pretraining_dir)
    out = work / f"clone-{encoder}-{pvp}-{fraction:g}-{seed}"
    last = clone(clone_config(config, encoder, fraction, out=out, init=start, steps=steps, seed=seed))
    heldout = heldout_expert_nll(config, last)
    return [
        {
            "game": game,
            "checkpoint": checkpoint.content_hash(last),
            **(measure_pvp(config, game, start) if pvp == PVP else {}),
            "experts": sorted({one.name for one in config.demonstrators if one.game == game}),
            **heldout[game],
            "scores": play(config, game, EVAL_SEED + seed, last),
        }
        for game in config.games
    ]


def measure_random(config: ExperimentConfig) -> list[dict[str, Any]]:
    """Return a row of random play and PVP baselines for each game."""
    return [
        {"game": game, **measure_pvp_baselines(config, game), "scores": play(config, game, EVAL_SEED, None)}
        for game in config.games
    ]


def measure_pvp(config: ExperimentConfig, game: str, model: Path) -> Metrics:
    """Return a model's PVP error in a game, of 255, on random play, before it is cloned.

    `pvp_mae_small_objects` tells reading from memorizing: small objects move, backgrounds do not.
    """
    vlm, grid = checkpoint.load(model), config.pretraining.training.data.grid
    return _errors(evaluate(vlm, eval_set(config, game), grid), "pvp")


def measure_pvp_baselines(config: ExperimentConfig, game: str) -> Metrics:
    """Return the errors of `measure_pvp` for two baselines: the mean colour of the image, and of each patch."""
    frames, training = eval_set(config, game), config.pretraining.training
    patch = patch_size(start_model(training))
    rows = evaluate_baselines(frames, training.data.grid, patch, mean_color(iter(frames.images)))
    return {**_errors(rows["image mean"], "image_mean"), **_errors(rows["patch mean"], "patch_mean")}


def eval_set(config: ExperimentConfig, game: str) -> EvalSet:
    """Return frames of random play of a game, the same ones each time."""
    frames = EpisodeFrames(pvp_nano.frame_dataset(config.pretraining, game))
    return frame_set(game, [frames], config.pretraining.eval_images, config.pretraining.training.data.size)


def _errors(metrics: Metrics, name: str) -> Metrics:
    return {f"{name}_{metric}": metrics[metric] for metric in ("mae", "mae_small_objects")}


@torch.no_grad()
def heldout_expert_nll(config: ExperimentConfig, policy: Path) -> dict[str, dict[str, float]]:
    """Return by game how well a policy predicts its expert in held-out episodes.

    `heldout_nll` is the cross-entropy with the expert's soft targets in nats, `action_accuracy` the fraction of agent
    steps whose best action has the highest probability.
    """
    data = tuple(heldout_episodes(config, demonstrator) for demonstrator in config.demonstrators)
    heldout = config.cloning.replace(data=data, aux_loss_weight=0.0, seed=0)
    objective = bc_objective(checkpoint.load(policy), load_datasets(heldout), heldout)
    metrics = mean_metrics(objective, config.num_heldout_steps // heldout.data.batch_size)
    return {
        game: {"heldout_nll": metrics[f"{game}/loss"], "action_accuracy": metrics[f"{game}/action_accuracy"]}
        for game in config.games
    }


@torch.no_grad()
def play(config: ExperimentConfig, game_name: str, seed: int, policy: Path | None) -> list[float]:
    """Return the scores of a policy's whole games, or of random play, in the order of their seeds."""
    game, scores = find_game(game_name), [0.0] * config.episodes
    gpu = best_device().type == "cuda"
    with make_envs(game, config.episodes if gpu else min(config.num_envs, config.episodes), config.protocol) as envs:
        agent: Agent = RandomAgent(envs.action_names)
        if policy:
            engine = "torch" if gpu else config.engine
            agent = VlmAgent.load(policy, envs, "scores", config.temperature, engine)
        for step in play_games(agent, envs, episode_seeds(seed, config.episodes)):
            if step.ended:
                scores[step.game_index] = step.score
    return scores
