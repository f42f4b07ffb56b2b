"""Behavior cloning: train the VLM to answer as an expert, on one or several games' datasets, into one policy.

    python -m agents.clone --data data/carnival data/mspacman --out runs/clone --steps 4000
    python -m agents.clone --config policy --data data/carnival data/mspacman --init runs/pvp/last --out runs/policy
    python -m agents.clone --config all-tasks --data data/carnival data/mspacman --init runs/pvp/last --out runs/all
    python -m agents.clone --data hf://blanchon/atari_parquet:pong --out runs/pong --steps 4000
    python -m agents.clone --games Carnival MsPacman Pong Breakout SpaceInvaders Seaquest Qbert Freeway --out runs/eight

With `--games` the demonstrations are recorded first, by each game's expert. With `--pvp-weight` pixel value prediction
takes a share of the steps, with `--mask-weight` referring segmentation: one model that plays, reads and segments.
Checkpoints are chosen by play on reserved seeds. The same command resumes a killed run.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

from agents.bc_dataset import BCSampler, FrameAugmentation, LabelledDataset, load_labelled_datasets
from agents.bc_objective import BehaviorCloningObjective, new_action_head
from agents.checkpoint_selection import CheckpointSelectionCallback
from agents.clone_config import CONFIGS, CloneConfig, CloneTraining
from common.command import command, run
from common.errors import UserError
from envs.games import find_game
from pretrain.pvp import CONFIGS as PVP_CONFIGS
from pretrain.pvp import pvp_objective
from pretrain.referring.mask_objective import MaskHeadObjective, MaskSampler
from pretrain.referring.referring_config import CONFIGS as REFERRING_CONFIGS
from pretrain.referring.train import open_referring_source, start_head
from vlm import checkpoint
from vlm.model import PixelVLM
from vlm.presets import build
from vlm.training.config import named_config, parse_config
from vlm.training.fit import continue_auxiliary, fit, load_start, trainer_options
from vlm.training.mixture import Mixture
from vlm.training.objective import Objective


def load_datasets(config: CloneTraining) -> list[LabelledDataset]:
    """Open the datasets that a configuration names."""
    data = config.data
    return load_labelled_datasets(config.directories(), data.targets, data.target_temperature, data.argmax_weight)


def bc_objective(vlm: PixelVLM, datasets: list[LabelledDataset], config: CloneTraining) -> BehaviorCloningObjective:
    """Return behavior cloning as an objective, with an auxiliary head where the configuration asks for one."""
    data, weight = config.data, config.data.aux_loss_weight
    if weight is None:
        weight = 0.0 if config.model.init else 1.0
    head = new_action_head(vlm, datasets, config.run.seed) if weight else None
    flipped = {find_game(name).name for name in data.horizontal_flip}
    aux_steps = round(data.aux_warmup_fraction * config.run.steps) if head else 0
    augmentation = FrameAugmentation(flipped, data.shift, data.swapped_colors)
    sampler = BCSampler(datasets, vlm.history, data.batch_size, data.weights_by_game(), augmentation, aux_steps)
    distilled = checkpoint.load(data.distill_from) if data.distill_from else None
    return BehaviorCloningObjective(vlm, sampler, head, weight, distilled)


def clone_mixture(vlm: PixelVLM, datasets: list[LabelledDataset], config: CloneTraining) -> Mixture:
    """Return cloning and the tasks beside it; auxiliary modules continue those of the run that `init` is from."""
    data = config.data
    objectives: dict[str, tuple[Objective, float]] = {}
    objectives["play"] = bc_objective(vlm, datasets, config), 1 - data.pvp_weight - data.mask_weight
    if data.pvp_weight:
        images = (*(str(place) for place in dict.fromkeys(config.directories())), *data.pvp_data)
        pvp = named_config(PVP_CONFIGS, data.pvp_config, "--pvp-config").replace(data=images)
        objectives["pvp"] = pvp_objective(vlm, pvp.data, config.run.steps), data.pvp_weight
    if data.mask_weight:
        objectives["masks"] = mask_objective(vlm, config), data.mask_weight
    mixture = Mixture(
        {name: objective for name, (objective, _) in objectives.items()},
        [weight for _, weight in objectives.values()],
        data.joint,
    )
    if config.model.init:
        continue_auxiliary(mixture.auxiliary(), config.model.init.parent)
    return mixture


def mask_objective(vlm: PixelVLM, config: CloneTraining) -> MaskHeadObjective:
    """Return referring segmentation by a mask head as an objective, on the games of `mask_data`."""
    data = named_config(REFERRING_CONFIGS, config.data.mask_config, "--mask-config").replace(
        data=config.data.mask_data or tuple(dict.fromkeys(config.directories())), init=config.model.init
    )
    source = open_referring_source(data.data, config.run.steps, vlm.history, config.run.seed)
    return MaskHeadObjective(vlm, start_head(data, vlm), MaskSampler(vlm.tokenizer, source, data.data))


def clone_metadata(config: CloneTraining, datasets: list[LabelledDataset]) -> dict[str, Any]:
    """Return what a checkpoint tells of its data and its start."""
    described = []
    for dataset in datasets:
        counts = {"games": len(dataset.data.seeds), "steps": len(dataset.rows)}
        described.append({**dataset.data.info.to_dict(), **counts, "mean_score": dataset.mean_score})
    started_from = checkpoint.read_training(config.model.init) if config.model.init else None
    games = sorted({info["game"] for info in described})
    return {"games": games, "datasets": described, "started_from": started_from}


def clone(config: CloneTraining) -> Path:
    """Train on recorded datasets; return the directory of the best checkpoint, or of the last if play chose none."""
    if not config.data.data:
        raise UserError("expected --data, recorded games, or --games, whose demonstrations are recorded first")
    every, save = config.selection.eval_every, int(trainer_options(config.run.trainer)["save_steps"])
    if every % save:
        raise UserError(f"--eval-every {every} must be a multiple of save_steps, {save} (--trainer save_steps=N)")
    out, init, datasets = config.run.out, config.model.init, load_datasets(config)
    vlm = load_start(config.model) if init else build(config.model.preset, config.run.seed)
    mixture, metadata = clone_mixture(vlm, datasets, config), clone_metadata(config, datasets)
    described, dtype = {**config.metadata(), **metadata}, config.model.torch_dtype
    selection = CheckpointSelectionCallback(vlm, datasets, config.selection, out, described, dtype)
    heads = [one.head for one in mixture.objectives if isinstance(one, MaskHeadObjective)]
    last = fit(mixture, config, metadata, [selection], export=heads[0].save if heads else None)
    selection.play_candidates()
    return out / "best" if (out / "best").exists() else last


def record_and_clone(config: CloneConfig) -> Path:
    """Record the demonstrations that are missing, then `clone`."""
    return clone(config.replace(data=(*config.data.data, *config.demonstrations.record())))


main = command(partial(parse_config, CONFIGS, description=__doc__), record_and_clone, __doc__, "the policy is in {}")

if __name__ == "__main__":
    sys.exit(run(main))
