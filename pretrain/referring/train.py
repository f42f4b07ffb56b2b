"""Referring segmentation: train a model to segment what an expression names in an image, encoder unfrozen.

    python -m pretrain.referring --data data/random-Carnival data/random-MsPacman --init runs/pvp/last --out runs/refer
    python -m pretrain.referring --data data/random-* --init runs/pvp/last --encoder-learning-rate 0 --out runs/frozen
    python -m pretrain.referring --data data/cutouts data/random-* --init runs/pvp/last --out runs/things
    python -m pretrain.referring --data data/refer --dataset refcoco --init runs/pvp/last --out runs/refcoco
    python -m pretrain.referring --data data/random-* --mask points --grid 32 --init runs/pvp/last --out runs/points
    python -m pretrain.referring.show --game MsPacman --expression "the red ghost" --init runs/refer/last

Expressions are made from recorded games, whose last games are held out, and from named cut-outs pasted on photographs
(`pretrain.referring.scene_dataset`), or are those of RefCOCO, RefCOCO+ or RefCOCOg (`pretrain.referring.refcoco`).
Masks come from a head on the encoder's feature maps (`vlm.segmentation.mask_head`) or as points in text
(`vlm.segmentation.point_prediction`), as in Gou et al. 2024.
The same command resumes a run that was killed.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common.command import command
from common.errors import UserError
from pretrain.referring.mask_objective import MaskHeadObjective, MaskSampler
from pretrain.referring.point_objective import PointObjective, PointQuestionSampler, calibrate_logit_bias
from pretrain.referring.refcoco import RefCocoDataset, RefCocoSampler
from pretrain.referring.referring_config import CONFIGS, GAMES, PHOTOGRAPH_SIZE, ReferringConfig, ReferringData
from pretrain.referring.samples import ReferringSource
from pretrain.referring.scene_dataset import SceneDataset
from vlm import checkpoint
from vlm.model import PixelVLM
from vlm.presets import build
from vlm.segmentation.mask_head import CONFIG_FILE, MaskHead
from vlm.segmentation.point_prediction import PointPromptFormat
from vlm.segmentation.referring_segmenter import LOGIT_BIAS, POINT_GRID
from vlm.training.config import parse_config
from vlm.training.fit import fit, load_start
from vlm.training.mixture import Mixture
from vlm.training.objective import Objective


def start_head(config: ReferringConfig, vlm: PixelVLM) -> MaskHead:
    """Return the mask head that a training starts from: that of its checkpoint, or a new one."""
    if config.model.init and (config.model.init / CONFIG_FILE).is_file():
        return MaskHead.load(config.model.init).to(vlm.device).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        return MaskHead.of(vlm, config.model.hidden_channels)


def open_referring_source(data: ReferringData, steps: int, history: int, seed: int) -> ReferringSource:
    """Return what frames and expressions are drawn from."""
    if data.dataset == GAMES:
        return SceneDataset(data.data, data.split, steps, history, data.val_episodes, data.no_target_fraction, seed)
    dataset = RefCocoDataset(data.data[0], data.dataset, data.split)
    if dataset.note:
        print(dataset.note, file=sys.stderr)
    return RefCocoSampler(dataset, data.size or PHOTOGRAPH_SIZE, history)


def referring_mixture(vlm: PixelVLM, head: MaskHead | None, source: ReferringSource, data: ReferringData) -> Mixture:
    """Return the objectives that `data.mask` names."""
    objectives: dict[str, Objective] = {}
    if head:
        objectives["head"] = MaskHeadObjective(vlm, head, MaskSampler(vlm.tokenizer, source, data))
    if data.mask != "head":
        prompts = PointPromptFormat.of(vlm)
        sampler = PointQuestionSampler(prompts, source, data)
        objectives["points"] = PointObjective(vlm, sampler, prompts, data.attention_supervision_weight)
    return Mixture(objectives)


def train_referring(config: ReferringConfig) -> Path:
    """Train; return the directory of the last checkpoint."""
    data, init, seed = config.data, config.model.init, config.run.seed
    if not data.data:
        raise UserError("--data is missing: recorded games, or the folder of REFER's layout")
    vlm = load_start(config.model) if init else build(config.model.preset, seed)
    head = None if data.mask == "points" else start_head(config, vlm)
    source = open_referring_source(data, config.run.steps, vlm.history, seed)

    def calibrate() -> dict[str, Any]:
        if data.mask == "head":
            return {}
        vlm.model.eval()
        return {POINT_GRID: data.grid, LOGIT_BIAS: calibrate_logit_bias(vlm, source, data.grid, seed)}

    return fit(
        referring_mixture(vlm, head, source, data),
        config,
        {"started_from": checkpoint.read_training(init) if init else None},
        finish=calibrate,
        export=head.save if head else None,
    )


main = command(partial(parse_config, CONFIGS, description=__doc__), train_referring, __doc__, "the model is in {}")
