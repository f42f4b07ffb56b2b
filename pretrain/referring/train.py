"""Referring segmentation: teach a model to find what an expression means in a frame, encoder unfrozen.

    python -m pretrain.referring --data data/random-Carnival data/random-MsPacman --init runs/pixels/last --out runs/refer
    python -m pretrain.referring --data data/random-* --init runs/pixels/last --encoder-learning-rate 0 --out runs/frozen
    python -m pretrain.referring --data data/refer --dataset refcoco --init runs/pixels/last --out runs/refcoco
    python -m pretrain.referring --data data/random-* --mask points --grid 32 --init runs/pixels/last --out runs/points
    python -m pretrain.referring --data data/random-* --mask both --init runs/refer/last --out runs/both
    python -m pretrain.referring --show --game MsPacman --expression "the red ghost"
    python -m pretrain.referring --show --image mine.png --expression "the blue object" --init runs/refer/last

The second job of Gou et al. 2024 that needs detail. Expressions are made from recorded games (`pretrain.referring.recorded_games`),
whose last games are kept for measuring, or are those of RefCOCO, RefCOCO+ or RefCOCOg (`pretrain.referring.refcoco`). There
are two ways to a mask: the mask head (`vlm.segmentation.mask_head`) reads the encoder's own maps, so that what pixel value
prediction has taught the encoder is there for it; and points in text (`vlm.segmentation.point_prediction`), 0 or 1 at every place of a
grid, as the paper's lab asks. With `--show` nothing is trained: a picture of the mask is written, of an image of your
own or of a frame of a game, as the model that the repository ships finds it or that of `--init`.
A run that was killed goes on from its last checkpoint when the command is repeated.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from PIL import Image

from common.errors import UserError
from envs.atari import make_envs
from envs.games import find_game
from envs.protocol import MACHADO2018
from pretrain.data.images import read_image
from pretrain.referring.mask_objective import MaskHeadObjective, ReferringDataset
from pretrain.referring.point_objective import PointObjective, PointQADataset, calibrate_logit_bias
from pretrain.referring.recorded_games import GameReferringDataset
from pretrain.referring.refcoco import RefCocoDataset
from pretrain.referring.refcoco_sampler import RefCocoSampler
from pretrain.referring.refer_files import find_dataset
from pretrain.referring.samples import ReferringSource
from vlm import checkpoint
from vlm.device import is_main_process
from vlm.model import PixelVLM
from vlm.presets import build
from vlm.pretrained import RELEASED_SEGMENTER
from vlm.segmentation.mask_drawing import draw_mask
from vlm.segmentation.mask_head import CONFIG_FILE, HIDDEN_CHANNELS, MaskHead
from vlm.segmentation.referring_segmenter import LOGIT_BIAS, POINT_GRID, load_segmenter
from vlm.training.config import TrainConfig
from vlm.training.learning_rates import ModuleLearningRates, parameter_groups, parameter_update_report, snapshot
from vlm.training.lora import add_lora, merge
from vlm.training.mixture import Batches, MixtureDataset, MixtureObjective, Task
from vlm.training.trainer import Objective, train

GAMES = "games"
PHOTOGRAPH = (224, 224)
FIRST_FRAMES = 40  # decisions of doing nothing before a game's frame is shown


@dataclass(kw_only=True)
class Args(TrainConfig):
    """Train referring segmentation, or show a mask."""

    out: Path = Path("runs/refer")
    """Where the run lives: checkpoints, TensorBoard and `last`; with --show, the picture to write, a PNG."""
    data: tuple[Path, ...] = ()
    """Directories of recorded games; with another --dataset, the folder of REFER's layout."""
    dataset: str = GAMES
    """games, refcoco, refcoco+ or refcocog."""
    split: str = "train"
    """The split to train on."""
    size: tuple[int, int] | None = None
    """Rows and columns that pictures are brought to; by default frames stay as they are, and photographs become
    224 x 224."""
    mask: Literal["head", "points", "both"] = "head"
    """The way to a mask: a head on the encoder's maps, or 0 and 1 in text at places of a grid; both, in turns."""
    grid: int = 32
    """Of points: places along each side."""
    points: int = 16
    """Of points: places asked about for each expression of a step."""
    gaze: float = 0.0
    """Of points: weight of a loss that tells the decoder where to look (`vlm.training.attention_supervision`), as in `pretrain.pvp`. Without
    it a small decoder finds no place in a few hundred steps."""
    hold: int = 1
    """The last games of every dataset kept for testing, and as many before them for choosing."""
    preset: str = "nano"
    """The size of a new model."""
    init: Path | None = None
    """A checkpoint to start from, instead of a new model; its mask head as well if it has one. With --show, the
    checkpoint that is asked."""
    width: int = HIDDEN_CHANNELS
    """The width of a new mask head's maps."""
    images: int = 8
    """Frames a step."""
    expressions: int = 6
    """Expressions about each."""
    absent: float = 0.1
    """Share of expressions that mean nothing in their frame."""
    decoder: Literal["full", "lora", "frozen"] = "full"
    """What of the decoder trains."""
    lora_rank: int = 16
    """The rank of its adapters, with --decoder lora."""
    learning_rate: float = 3e-4
    """Peak learning rate of decoder and connector."""
    encoder_learning_rate: float = 1e-3
    """The encoder's; 0 freezes it."""
    head_learning_rate: float = 1e-3
    """The mask head's."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type of the stored weights of `last`."""
    show: bool = False
    """Write the picture of a mask instead of training."""
    expression: str = ""
    """With --show: the words."""
    game: str | None = None
    """With --show: the game whose frame is shown."""
    image: Path | None = None
    """With --show: a PNG or JPEG file in place of a game."""

    def __post_init__(self) -> None:
        for name in (
            "hold", "width", "steps", "images", "expressions", "save_every", "lora_rank", "grid", "points"
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.gaze < 0:
            raise UserError(f"--gaze must be at least 0, got {self.gaze}")
        if self.show and (not self.expression.strip() or (self.game is None) == (self.image is None)):
            raise UserError("--show goes with --expression and either --game or --image")
        if not self.show and not self.data:
            raise UserError("--data is missing")
        if self.dataset != GAMES:
            self.dataset = find_dataset(self.dataset)
            self.size = self.size or PHOTOGRAPH
            if not self.show and len(self.data) != 1:
                raise UserError(f"expected one folder of REFER's layout for {self.dataset}, got {len(self.data)}")
        elif self.size:
            raise UserError("--size is for photographs: frames of games stay as they are")


def start(args: Args) -> PixelVLM:
    """Return the model that a training starts from."""
    return checkpoint.load(args.init) if args.init else build(args.preset, args.seed)


def start_head(args: Args, vlm: PixelVLM) -> MaskHead:
    """Return the head that a training starts from: that of the checkpoint it starts from, or a new one."""
    if args.init and (args.init / CONFIG_FILE).is_file():
        return MaskHead.load(args.init).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed)
        return MaskHead.of(vlm, args.width)


def open_referring_source(args: Args, history: int) -> ReferringSource:
    """Return what expressions are drawn from."""
    if args.dataset == GAMES:
        return GameReferringDataset(args.data, args.split, args.steps, history, args.hold, args.absent, args.seed)
    data = RefCocoDataset(args.data[0], args.dataset, args.split)
    if data.note:
        print(data.note, file=sys.stderr)
    return RefCocoSampler(data, args.size or PHOTOGRAPH, history)


def make_lesson(vlm: PixelVLM, head: MaskHead | None, args: Args) -> tuple[Objective, Batches]:
    """Return masks as a lesson, in the ways that the arguments ask for, and its batches."""
    source, drawn = open_referring_source(args, vlm.history), (args.steps, args.images, args.expressions, args.seed)
    tasks = []
    if head:
        tasks.append(Task("head", MaskHeadObjective(vlm, head, args.bf16), ReferringDataset(vlm, source, *drawn), 1.0))
    if args.mask != "head":
        asked = PointQADataset(vlm, source, *drawn, args.grid, args.points)
        tasks.append(Task("points", PointObjective(vlm, args.bf16, gaze=args.gaze), asked, 1.0))
    if len(tasks) == 1:
        return tasks[0].lesson, tasks[0].batches
    return MixtureObjective(tasks), MixtureDataset(tasks, args.steps, args.seed)


def train_referring(args: Args) -> Path:
    """Train; return the directory of the last checkpoint."""
    vlm = start(args)
    head = None if args.mask == "points" else start_head(args, vlm)
    before = snapshot(vlm)
    if args.decoder == "lora":
        add_lora(vlm, args.lora_rank)
    decoder = None if args.decoder == "frozen" else args.learning_rate
    plan = ModuleLearningRates(args.encoder_learning_rate or None, args.learning_rate, decoder)
    groups = parameter_groups(vlm, plan, args.weight_decay)
    if head:
        own = {"lr": args.head_learning_rate, "weight_decay": args.weight_decay}
        groups.append({"params": list(head.parameters()), **own})
    lesson, batches = make_lesson(vlm, head, args)
    args.out.mkdir(parents=True, exist_ok=True)
    record = {**args.record(), "started_from": checkpoint.read_training(args.init) if args.init else None}
    if args.mask != "head":
        record[POINT_GRID] = args.grid
    train(lesson, groups, record, batches, args.out, args)
    merge(vlm)
    if args.mask != "head":
        vlm.model.eval()
        record[LOGIT_BIAS] = calibrate_logit_bias(vlm, open_referring_source(args, vlm.history), args.grid, args.seed)
    record["parameter_updates"] = parameter_update_report(before, vlm)
    checkpoint.save(vlm, args.out / "last", record, getattr(torch, args.dtype))
    if head and is_main_process():
        head.save(args.out / "last")
    return args.out / "last"


def frame_of(game_name: str, seed: int) -> np.ndarray:
    """Return a frame uint8[H, W, 3] of a game's first seconds."""
    with make_envs(find_game(game_name), 1, MACHADO2018) as envs:
        frames = envs.reset([seed])
        for _ in range(FIRST_FRAMES):
            frames = envs.step(np.zeros(1, dtype=int)).frames
        return frames[0]


def show(args: Args) -> Path:
    """Write the picture of a mask; return its file."""
    segmenter = load_segmenter(args.init or RELEASED_SEGMENTER, points=args.mask == "points")
    image = read_image(args.image) if args.image else frame_of(args.game or "", args.seed)
    probability = segmenter.predict(image[None], [args.expression])[0]
    picture = args.out if args.out.suffix else args.out.with_suffix(".png")
    picture.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_mask(image, probability > 0.5)).save(picture)
    found = int((probability > 0.5).sum())
    print(f"{args.expression!r}: {found} pixels, {probability.max():.2f} the most probable")
    return picture


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    print(f"the picture is {show(args)}" if args.show else f"the model is in {train_referring(args)}")
    return 0
