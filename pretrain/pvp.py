"""Pixel value prediction: train a VLM to answer the color at a pixel location; the vision encoder is trained.

    python -m pretrain.pvp --data data/random-Pong data/random-Qbert photos/ --out runs/pvp --steps 2000
    python -m pretrain.pvp --preset nano-clip --grid 32 --vision-tower runs/contrastive/last \
        --encoder-learning-rate 0 --data data/random-Pong --out runs/frozen
    python -m pretrain.pvp --config pvp-nano --data data/random-* --out runs/augmented

The task of Gou et al. 2024: coordinates are (row, column). Images come from recorded games, folders of pictures and
synthetic images. A model can answer from memory about the images it trains on; `--augmentation` and `--synthetic` give
images that it cannot memorize. The log shows `exact_match`, the share of answers whose tokens are all correct; `mae`
and `mae_expected`, the error of argmax and expectation on a scale of 0 to 255; `feature_variation`, how much image
tokens differ between images; and `attn/*`, the attention on the supervised tokens. The same command resumes a run.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from transformers import TrainerCallback

from common.command import command, run
from common.errors import UserError
from envs.hub_sets import is_dataset
from pretrain.caption_objective import CaptionData, CaptionObjective
from pretrain.data.images import open_image_source
from pretrain.dense_colors import new_dense_head
from pretrain.pvp_config import CONFIGS, PvpConfig, PvpData
from pretrain.pvp_model import start_model
from pretrain.pvp_objective import ImageSampler, PvpObjective, PvpSampler
from pretrain.pvp_questions import PixelPromptFormat
from pretrain.pvp_validation import ValidationCallback
from vlm import checkpoint
from vlm.model import PixelVLM
from vlm.training.config import parse_config
from vlm.training.fit import fit
from vlm.training.mixture import Mixture
from vlm.training.objective import Objective

CAPTIONS_PER_FRAME = 4


def pvp_objective(vlm: PixelVLM, data: PvpData, steps: int) -> PvpObjective:
    """Return pixel value prediction as an objective of a training of so many steps."""
    if not data.data and data.synthetic < 1:
        raise UserError("--data is missing; only --synthetic 1 goes without")
    prompts = PixelPromptFormat.from_model(vlm, data.order)
    split = "train" if data.val_episodes else "all"
    sources = [open_image_source(place, split, data.val_episodes) for place in data.data]
    sampler = PvpSampler(ImageSampler(sources, data, vlm.history), prompts, data, steps)
    head = new_dense_head(vlm, data.grid, data.size, seed=0) if data.dense_loss_weight else None
    return PvpObjective(
        vlm,
        sampler,
        prompts,
        data.label_std,
        data.attention_supervision_weight,
        head,
        data.heads_by_number,
    )


def pvp_mixture(vlm: PixelVLM, config: PvpConfig) -> Mixture:
    """Return pixel value prediction, beside captions of the recorded games where `caption_weight` asks for them."""
    data = config.data
    pvp = pvp_objective(vlm, data, config.run.steps)
    if not data.caption_weight:
        return Mixture({"pvp": pvp})
    games = tuple(place for place in data.data if is_dataset(place))
    captions = CaptionData(games, data.val_episodes, data.size, data.images, CAPTIONS_PER_FRAME)
    objectives: dict[str, Objective] = {"pvp": pvp, "captions": CaptionObjective(vlm, captions)}
    return Mixture(objectives, [1 - data.caption_weight, data.caption_weight])


def train_pvp(config: PvpConfig, callbacks: Sequence[TrainerCallback] = (), vlm: PixelVLM | None = None) -> Path:
    """Train; return the directory of the last checkpoint. `vlm` is `start_model`'s, where a callback needs it."""
    mixture = pvp_mixture(vlm or start_model(config), config)
    if config.validation.val_data and config.run.fsdp:
        raise UserError("--fsdp: expected no --val-data, on which one process would answer while the others wait")
    if config.validation.val_data:
        data = config.data
        callbacks = [
            *callbacks,
            ValidationCallback(mixture.vlm, config.validation, data.grid, data.size, config.run.out),
        ]
    return fit(mixture, config, {"games": [], "images_of": sorted({*config.data.data})}, callbacks)


def train_and_report(config: PvpConfig) -> Path:
    """Train, print how far each role moved, and return the directory of the last checkpoint."""
    last = train_pvp(config)
    for role, report in checkpoint.read_training(last)["parameter_updates"].items():
        changed, tensors, largest = (report[name] for name in ("changed", "tensors", "largest_change"))
        print(f"{role}: {changed} of {tensors} tensors changed, at most {largest:.2g}")
    return last


main = command(partial(parse_config, CONFIGS, description=__doc__), train_and_report, __doc__, "the model is in {}")


if __name__ == "__main__":
    sys.exit(run(main))
