"""Behavior cloning: train the VLM to answer as an expert, on one or several games' datasets, into one policy.

    python -m agents.clone --data data/carnival data/mspacman --out runs/clone --steps 4000
    python -m agents.clone --config policy --data data/carnival data/mspacman --init runs/pvp/last --out runs/policy
    python -m agents.clone --games Carnival MsPacman Pong Breakout SpaceInvaders Seaquest Qbert Freeway --out runs/eight

With `--games` the demonstrations are recorded first, by each game's expert. The loss is the cross-entropy of the exact
probability of each legal text answer, the same scores that play uses. With `--pvp-weight` pixel value prediction takes
a share of the steps. The encoder trains with the rest. Checkpoints are chosen by play on reserved seeds (below 1000).
The same command resumes a run that was killed.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from agents.bc_dataset import BCSampler, LabelledDataset, load_labelled_datasets
from agents.behavior_cloning import BehaviorCloningObjective, action_names_by_game, new_action_head
from agents.checkpoint_selection import CheckpointSelectionCallback
from agents.clone_config import CONFIGS, CloneConfig
from common.command import run
from common.errors import UserError
from envs.games import find_game
from pretrain.pvp import CONFIGS as PVP_CONFIGS
from pretrain.pvp import pvp_objective
from vlm import checkpoint
from vlm.model import PixelVLM
from vlm.presets import build
from vlm.training.config import named_config, parse_config
from vlm.training.fit import AUXILIARY, fit, load_auxiliary, trainer_options
from vlm.training.mixture import Mixture
from vlm.training.objective import Objective


def start_model(config: CloneConfig) -> PixelVLM:
    """Return the model that a training starts from."""
    model = config.model
    return checkpoint.load(model.init) if model.init else build(model.preset, config.run.seed)


def load_datasets(config: CloneConfig) -> list[LabelledDataset]:
    """Open the datasets that a configuration names."""
    data = config.data
    return load_labelled_datasets(data.data, data.targets, data.target_temperature, data.argmax_weight)


def bc_objective(vlm: PixelVLM, datasets: list[LabelledDataset], config: CloneConfig) -> BehaviorCloningObjective:
    """Return behavior cloning as an objective, with an auxiliary head where the configuration asks for one."""
    data, steps = config.data, config.run.steps
    weight = data.aux_loss_weight
    if weight is None:
        weight = 0.0 if config.model.init else 1.0
    head = new_action_head(vlm, datasets, config.run.seed) if weight else None
    flipped = {find_game(name).name for name in data.horizontal_flip}
    aux_steps = round(data.aux_warmup_fraction * steps) if head else 0
    sampler = BCSampler(datasets, vlm.history, data.batch_size, data.weights_by_game(), flipped, aux_steps)
    return BehaviorCloningObjective(vlm, sampler, action_names_by_game(datasets), head, weight)


def clone_mixture(vlm: PixelVLM, datasets: list[LabelledDataset], config: CloneConfig) -> Mixture:
    """Return cloning, beside pixel value prediction where `pvp_weight` asks for it.

    The auxiliary head continues that of the run that `init` comes from.
    """
    data, cloning = config.data, bc_objective(vlm, datasets, config)
    objectives: dict[str, Objective] = {"play": cloning}
    if data.pvp_weight:
        images = (*(str(place) for place in dict.fromkeys(data.data)), *data.pvp_data)
        pvp = named_config(PVP_CONFIGS, data.pvp_config, "--pvp-config").replace(data=images)
        objectives["pvp"] = pvp_objective(vlm, pvp.data, config.run.steps)
    mixture = Mixture(objectives, [1 - data.pvp_weight, data.pvp_weight] if data.pvp_weight else None)
    before = config.model.init.parent if config.model.init else None
    if before and (before / AUXILIARY).is_file():
        load_auxiliary(mixture.auxiliary(), before)
    return mixture


def clone_metadata(config: CloneConfig, datasets: list[LabelledDataset]) -> dict[str, Any]:
    """Return what a checkpoint tells of its data and its start."""
    described = [
        {
            **dataset.data.info.to_dict(),
            "games": len(dataset.data.seeds),
            "steps": len(dataset.rows),
            "mean_score": float(np.mean(dataset.data.scores)),
        }
        for dataset in datasets
    ]
    started_from = checkpoint.read_training(config.model.init) if config.model.init else None
    games = sorted({dataset.data.info.game for dataset in datasets})
    return {"games": games, "datasets": described, "started_from": started_from}


def clone(config: CloneConfig) -> Path:
    """Train; return the directory of the best checkpoint, or of the last where none was chosen by play."""
    if not config.data.data:
        raise UserError("expected --data, recorded games, or --games, whose demonstrations are recorded first")
    every, save = config.selection.eval_every, int(trainer_options(config.run.trainer)["save_steps"])
    if every % save:
        raise UserError(f"--eval-every {every} must be a multiple of save_steps, {save} (--trainer save_steps=N)")
    datasets = load_datasets(config)
    vlm = start_model(config)
    mixture, metadata = clone_mixture(vlm, datasets, config), clone_metadata(config, datasets)
    full_metadata = {**config.metadata(), **metadata}
    selection = CheckpointSelectionCallback(vlm, datasets, config.selection, config.run.out, full_metadata)
    last = fit(mixture, config, metadata, [selection])
    best = config.run.out / "best"
    return best if best.exists() else last


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    config = parse_config(CONFIGS, argv, __doc__)
    config = config.replace(data=(*config.data.data, *config.demonstrations.record()))
    print(f"the policy is in {clone(config)}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
