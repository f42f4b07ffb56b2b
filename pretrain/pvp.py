"""Pixel value prediction: teach the VLM to answer the colour at a place of an image, encoder unfrozen.

    python -m pretrain.pvp --data data/random-Pong data/random-Qbert photos/ --out runs/pixels --steps 2000
    python -m pretrain.pvp --preset nano-clip --tower runs/contrast/last --encoder-learning-rate 0 \
        --data data/random-Pong --grid 32 --out runs/frozen
    python -m pretrain.pvp --preset nano-clip --start-codes --gaze 1 --data data/random-* --grid 32 \
        --synthetic 0.5 --augmentation 1 --ramp 0.5 --out runs/open

The task of Gou et al. 2024, row first; images come from recorded games, folders of pictures and the generator. Many
questions share one pass over their image (`vlm.decoding.packing`). Familiar images can be answered from memory, strange ones
only by reading: `--augmentation` and `--synthetic` make images strange. Beside the loss stand `exact`, the share of
answers that are right word for word given what came before; `mae` and `mae_expected`, the mean absolute error of the
likeliest and of the expected number, of 255; `variation`, how much image tokens differ between images; and with --gaze
`fetched`, `looked`, `told` and `followed`, what its heads give to what they shall look at, of 1.
A run that was killed goes on from its last checkpoint when the command is repeated.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from transformers import TrainerCallback

from common.command import run
from common.errors import UserError
from envs.episodes import INFO
from pretrain.captions import CaptionDataset, CaptionObjective
from pretrain.data.frame_captions import caption_tokenizer
from pretrain.data.images import ImageSource, open_image_source
from pretrain.pvp_objective import ImageSampler, PixelQADataset, PvpObjective
from pretrain.pvp_prompts import NATIVE, PixelPromptFormat, parse_grid
from vlm import checkpoint
from vlm.clip import load_clip, load_vision_tower
from vlm.model import PixelVLM
from vlm.presets import build
from vlm.sinusoidal_init import init_number_embeddings, init_position_embeddings
from vlm.training.config import TrainConfig
from vlm.training.learning_rates import ModuleLearningRates, parameter_groups, parameter_update_report, snapshot
from vlm.training.lora import add_lora, merge
from vlm.training.mixture import Batches, MixtureDataset, MixtureObjective, Task
from vlm.training.trainer import Objective, train

CAPTIONS = 4  # of each frame


@dataclass(kw_only=True)
class Args(TrainConfig):
    """Train pixel value prediction."""

    out: Path
    """Where the run lives: checkpoints, TensorBoard and `last`."""
    data: tuple[str, ...] = ()
    """Where images come from: directories of recorded games, and folders of PNG and JPEG files."""
    hold_episodes: int = 0
    """The last episodes of every recorded dataset, kept for measuring."""
    preset: str = "nano"
    """The size of a new model."""
    init: Path | None = None
    """A checkpoint to start from, instead of a new model."""
    tower: Path | None = None
    """A CLIP of `pretrain.contrastive` whose vision tower the encoder starts from."""
    start_codes: bool = False
    """Start numbers, and the positions of a CLIP tower that is not given, from one code of waves."""
    grid: str = NATIVE
    """What coordinates count: the places of a grid of 32 or 64 laid over the image, or its native pixels."""
    order: str = "row,column"
    """The order of coordinates: row,column as in the lab's code, or x,y as in the paper's text."""
    size: tuple[int, int] = (210, 160)
    """Rows and columns that images are brought to, by whole factors and cutting."""
    augmentation: float = 0.0
    """Probability of strange colours, and of strange places, in an image."""
    synthetic: float = 0.0
    """Share of images of the generator."""
    captions: float = 0.0
    """Share of the steps that are captions of recorded games instead (`pretrain.captions`), so that meaning is not
    lost over detail; a new model has the words of captions in its vocabulary."""
    shuffled: bool = False
    """Answer for every image with another's colours: a control that teaches the form and no detail."""
    ramp: float = 0.0
    """Share of the steps over which augmentation and the fineness of synthetic images rise from nothing."""
    gaze: float = 0.0
    """Weight of a loss that tells a decoder that is new to places where to look (`vlm.training.attention_supervision`): with it the asked places
    are found within a hundred steps. In training only; 0 is the paper's loss."""
    images: int = 8
    """Images a step."""
    questions: int = 48
    """Questions about each image."""
    soft: float = 0.0
    """Spread the target of a number over its neighbours with this standard deviation, of 255; 0 is the paper's loss."""
    decoder: Literal["full", "lora", "frozen"] = "full"
    """What of the decoder trains."""
    lora_rank: int = 16
    """The rank of its adapters, with --decoder lora."""
    learning_rate: float = 1e-3
    """Peak learning rate of the decoder."""
    connector_learning_rate: float | None = None
    """The connector's own, if another; 0 freezes it."""
    encoder_learning_rate: float | None = None
    """The encoder's own, if another; 0 freezes it, the paper's first finding."""

    def __post_init__(self) -> None:
        for name in ("steps", "images", "questions", "save_every", "lora_rank"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.captions == 1:
            raise UserError("--captions must be less than 1, so that pixel values are taught; got 1.0")
        for name in ("augmentation", "synthetic", "ramp", "captions"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} must be from 0 to 1, got {getattr(self, name)}")
        if self.gaze < 0:
            raise UserError(f"--gaze must be at least 0, got {self.gaze}")
        if not self.data and self.synthetic < 1:
            raise UserError("--data is missing; only --synthetic 1 goes without")
        if self.shuffled and self.images < 2:
            raise UserError("--shuffled asks for --images of at least 2")
        if self.tower and self.init:
            raise UserError("--tower and --init both say where the encoder starts from; give one")
        parse_grid(self.grid)

    def plan(self) -> ModuleLearningRates:
        """Return the learning rate of each role."""
        connector, encoder = (
            self.learning_rate if rate is None else rate or None
            for rate in (self.connector_learning_rate, self.encoder_learning_rate)
        )
        return ModuleLearningRates(encoder, connector, None if self.decoder == "frozen" else self.learning_rate)


def start_model(args: Args) -> PixelVLM:
    """Return the model that a training starts from."""
    if args.init:
        return checkpoint.load(args.init)
    vlm = build(args.preset, args.seed, caption_tokenizer() if args.captions else None)
    if args.start_codes:
        init_number_embeddings(vlm)
    if args.tower:
        load_vision_tower(vlm, load_clip(args.tower))
    elif args.start_codes and vlm.square_size:
        init_position_embeddings(vlm.encoder, *args.size, parse_grid(args.grid))
    return vlm


def open_training_images(args: Args) -> list[ImageSource]:
    """Return the images to train on, without the episodes held out."""
    return [open_image_source(place, "train", args.hold_episodes) for place in args.data]


def make_lesson(vlm: PixelVLM, args: Args) -> tuple[PvpObjective, PixelQADataset]:
    """Return pixel value prediction as a lesson and its batches, for `vlm.training.trainer.train` or `vlm.training.mixture`."""
    language = PixelPromptFormat.from_model(vlm, args.order)
    sources = open_training_images(args)
    draw = ImageSampler(sources, args.size, vlm.history, args.augmentation, args.synthetic, args.ramp)
    questions = PixelQADataset(
        draw, language, args.grid, args.steps, args.images, args.questions, args.seed, args.shuffled
    )
    return PvpObjective(vlm, args.bf16, language, args.soft, gaze=args.gaze), questions


def mix_captions(
    vlm: PixelVLM, args: Args, lesson: PvpObjective, questions: PixelQADataset
) -> tuple[Objective, Batches]:
    """Return what `make_lesson` made, mixed with captions of the recorded games where the arguments ask for them."""
    if not args.captions:
        return lesson, questions
    games = [place for place in args.data if (Path(place) / INFO).exists()]
    told = CaptionDataset(vlm, games, args.hold_episodes, args.size, args.steps, args.images, CAPTIONS, args.seed)
    tasks = [
        Task("pixels", lesson, questions, 1 - args.captions),
        Task("captions", CaptionObjective(vlm, args.bf16), told, args.captions),
    ]
    return MixtureObjective(tasks), MixtureDataset(tasks, args.steps, args.seed)


def train_pvp(args: Args, callbacks: list[TrainerCallback] | None = None, vlm: PixelVLM | None = None) -> Path:
    """Train, with callbacks of the library's Trainer if any; return the directory of the last checkpoint.

    `vlm` is the model that `start_model` gave, where a callback has to know it.
    """
    vlm = vlm or start_model(args)
    before = snapshot(vlm)
    if args.decoder == "lora":
        add_lora(vlm, args.lora_rank)
    groups = parameter_groups(vlm, args.plan(), args.weight_decay)
    lesson, questions = make_lesson(vlm, args)
    args.out.mkdir(parents=True, exist_ok=True)
    record = {**args.record(), "games": [], "images_of": sorted(args.data)}
    taught, batches = mix_captions(vlm, args, lesson, questions)
    train(taught, groups, record, batches, args.out, args, callbacks=callbacks)
    merge(vlm)
    moved = parameter_update_report(before, vlm)
    checkpoint.save(vlm, args.out / "last", {**record, "parameter_updates": moved})
    for role, report in moved.items():
        print(
            f"{role}: {report['changed']} of {report['tensors']} tensors moved, by {report['largest_change']:.2g} at most"
        )
    return args.out / "last"


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    print(f"the model is in {train_pvp(args)}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
