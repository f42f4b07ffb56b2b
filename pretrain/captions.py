"""Captions: train a VLM to describe a frame in the words of `pretrain.data.frame_captions`.

    python -m pretrain.captions --data data/random-Pong data/random-Qbert --val-episodes 2 --out runs/captions

    <image> [caption]                   ->  a frame of pong with two paddles and a ball , a ball in the centre

Captions train an encoder of any architecture to see what is in an image (Tschannen et al. 2023, "Image Captioners Are
Scalable Vision Learners Too"). The same command resumes a run that was killed.
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common.command import command, run
from pretrain.caption_objective import CaptionData, CaptionObjective
from pretrain.data.frame_captions import caption_tokenizer
from vlm.model import PixelVLM
from vlm.presets import build
from vlm.sinusoidal_init import init_number_embeddings
from vlm.training.config import UNSET_OUT, OptimizerConfig, RunConfig, TrainConfig, parse_config
from vlm.training.fit import fit, load_start
from vlm.training.mixture import Mixture


@dataclass(frozen=True)
class CaptionConfig(TrainConfig):
    """Train captions."""

    data: CaptionData = CaptionData()


_DEFAULT = CaptionConfig(RunConfig(UNSET_OUT), optimizer=OptimizerConfig(encoder_learning_rate=1e-3))
CONFIGS = {
    "default": _DEFAULT,
    # the released captioner, which the study pvp-nano starts from
    "captioner": _DEFAULT.replace(
        preset="nano-fine",
        val_episodes=2,
        steps=600,
        learning_rate=7e-4,
        encoder_learning_rate=5e-4,
        trainer=("warmup_steps=40", "save_steps=200"),
    ),
}


def start_model(config: CaptionConfig) -> PixelVLM:
    """Return the model that a training starts from; a new one has the words of captions and ordered numbers."""
    if config.model.init:
        return load_start(config.model)
    vlm = build(config.model.preset, config.run.seed, caption_tokenizer())
    init_number_embeddings(vlm)
    return vlm


def train_captions(config: CaptionConfig) -> Path:
    """Train; return the directory of the last checkpoint."""
    vlm = start_model(config)
    mixture = Mixture({"captions": CaptionObjective(vlm, config.data)})
    return fit(mixture, config, {"images_of": sorted(config.data.data)})


main = command(partial(parse_config, CONFIGS, description=__doc__), train_captions, __doc__, "the model is in {}")

if __name__ == "__main__":
    sys.exit(run(main))
