"""Contrastive pre-training: a small CLIP learns from frames of many games and captions of what is in them.

    python -m agents.record --game Pong --agent random --episodes 12 --max-frames 1600 --out data/random-Pong
    python -m pretrain.contrastive --data data/random-* --out runs/contrastive --steps 800
    python -m pretrain.semantic_probe --clip runs/contrastive/last --data data/random-* --out probe.json

Captions name the game, its objects, their number and place, and no pixel value (`pretrain.data.frame_captions`). The
result loads with plain `CLIPModel.from_pretrained`, and its vision tower fits the encoder of the preset
(`vlm.clip.load_vision_tower`). The same command resumes a run that was killed.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from common.command import command, run
from common.errors import UserError
from envs.episodes import EpisodeDataset
from envs.hub_sets import open_dataset
from pretrain.contrastive_objective import ContrastiveData, ContrastiveObjective, ContrastiveSampler
from pretrain.data.frame_captions import caption_tokenizer
from pretrain.pvp_questions import parse_grid
from vlm.clip import PixelClip, build_clip, load_clip
from vlm.sinusoidal_init import init_position_embeddings
from vlm.training.config import UNSET_OUT, ModelConfig, RunConfig, TrainConfig, parse_config
from vlm.training.fit import fit
from vlm.training.mixture import Mixture


@dataclass(frozen=True)
class ClipModel(ModelConfig):
    """The CLIP that a training starts from."""

    preset: str = "nano-clip"
    """The preset whose encoder is the vision tower: nano-clip or tiny-clip."""
    patch_init_scale: float = 4.0
    """Factor on a new tower's initial patch embedding. Patches of frames start with a root mean square of 0.05 beside
    positions of 1; at a factor of 1 the tower told games apart and no objects (`docs/log/`)."""


@dataclass(frozen=True)
class ContrastiveConfig(TrainConfig):
    """Train a small CLIP on frames of games and captions."""

    model: ClipModel = ClipModel()
    data: ContrastiveData = ContrastiveData()


_RUN = RunConfig(UNSET_OUT, steps=800, trainer=("warmup_steps=60", "weight_decay=0.1"))
CONFIGS = {"default": ContrastiveConfig(_RUN)}


def start_clip(config: ContrastiveConfig, datasets: list[EpisodeDataset]) -> PixelClip:
    """Return the CLIP that a training starts from; the positions of a new one encode rows and columns."""
    if config.model.init:
        return load_clip(config.model.init)
    clip = build_clip(config.model.preset, caption_tokenizer(), config.run.seed)
    sizes = [dataset.frame(0).shape for dataset in datasets]
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    init_position_embeddings(clip.model.vision_model, parse_grid(config.data.grid).cell_size(height, width))
    with torch.no_grad():
        clip.model.vision_model.embeddings.patch_embedding.weight.mul_(config.model.patch_init_scale)
    return clip


def train_contrastive(config: ContrastiveConfig) -> Path:
    """Train; return the directory of the last checkpoint."""
    if not config.data.data:
        raise UserError("--data is missing: directories of recorded games")
    datasets = [open_dataset(path) for path in config.data.data]
    clip = start_clip(config, datasets)
    sampler = ContrastiveSampler(datasets, clip, config.data, config.run.steps)
    games = sorted({dataset.info.game for dataset in datasets})
    return fit(Mixture({"contrastive": ContrastiveObjective(clip, sampler)}), config, {"images_of": games})


main = command(partial(parse_config, CONFIGS, description=__doc__), train_contrastive, __doc__, "the CLIP is in {}")

if __name__ == "__main__":
    sys.exit(run(main))
