"""Contrast: a small CLIP learns from frames of many games and captions that say what is there (Radford et al. 2021).

    python -m agents.record --game Pong --agent random --episodes 12 --max-frames 1600 --out data/random-Pong
    python -m pretrain.contrastive --data data/random-* --out runs/contrast --steps 800
    python -m pretrain.semantic_probe --clip runs/contrast/last --data data/random-* --out experiments/results/semantics.json

It is the semantic encoder that pixel value prediction starts from where no public weights can be had: captions name
the game, its objects, their number and place, and no pixel value (`pretrain.data.frame_captions`). The last `--hold-episodes`
episodes of every dataset are never trained on. The result loads with plain `CLIPModel.from_pretrained`, and its tower
is the encoder of the preset (`vlm.clip.adopt_tower`). With a public CLIP or SigLIP this step is not needed.
A run that was killed goes on from its last checkpoint when the command is repeated.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from common.command import run
from common.errors import UserError
from envs.episodes import EpisodeDataset
from envs.games import find_game
from pretrain.data.frame_captions import DetectedObject, caption_tokenizer, describe_frame, write_caption
from pretrain.data.splits import split_rows
from pretrain.pvp_prompts import parse_grid
from vlm import checkpoint
from vlm.clip import PixelClip, build_clip, load_clip
from vlm.sinusoidal_init import init_position_embeddings
from vlm.training.config import TrainConfig
from vlm.training.trainer import Objective, train

PATCH_INIT_SCALE = 4  # patches of frames start with a root mean square of 0.2, which positions of size 1 would drown
NO_TITLE_PROB = 0.3  # share of captions that do not tell the game, so that objects have to be looked at


@dataclass(kw_only=True)
class Args(TrainConfig):
    """Train a small CLIP on frames of games and captions."""

    data: tuple[Path, ...]
    """Dataset directories (`agents.record`), one or more a game; more games teach more."""
    out: Path
    """Where the run lives: checkpoints, TensorBoard and `last`."""
    preset: str = "nano-clip"
    """The preset whose encoder is the vision tower: nano-clip or tiny-clip."""
    init: Path | None = None
    """A CLIP of an earlier run to start from, instead of a new one."""
    grid: str = "32"
    """The grid whose rows and columns a new tower's positions start from (`vlm.sinusoidal_init`): 32, 64 or native."""
    steps: int = 800
    """Optimizer steps."""
    weight_decay: float = 0.1
    """Weight decay on matrices."""
    warmup_steps: int = 60
    """Steps of linear warm-up."""
    images: int = 96
    """Frames a step, each with its caption: every other frame's caption is a wrong one."""
    games: int = 16
    """Datasets that the first steps' frames come from, or all there are."""
    games_at_end: int = 3
    """And the last steps': the fewer, the more frames of one game have to be told apart, by their objects."""
    hold_episodes: int = 2
    """The last episodes of every dataset, kept for measuring."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The type of the stored weights."""

    def __post_init__(self) -> None:
        for name in ("steps", "images", "games", "games_at_end", "save_every", "hold_episodes"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.images < 2 * max(self.games, self.games_at_end):
            least = 2 * max(self.games, self.games_at_end)
            raise UserError(f"--images must be at least twice --games, {least}; got {self.images}")

    def games_of(self, step: int) -> int:
        """Return the number of games of a step: from the first to the last, by equal factors."""
        return round(self.games * (self.games_at_end / self.games) ** (step / max(1, self.steps - 1)))


def pad_to_square(frame: np.ndarray, square_size: int) -> np.ndarray:
    """Return a frame uint8[H, W, 3] on a black square, uint8[square_size, square_size, 3], as `PixelModel.pixels` lays it."""
    height, width, _ = frame.shape
    if max(height, width) > square_size:
        raise UserError(f"expected frames of at most {square_size} rows and columns, got {height} x {width}")
    square = np.zeros((square_size, square_size, 3), dtype=np.uint8)
    square[:height, :width] = frame
    return square


class CaptionPairs(Dataset):
    """Step i's frames and captions, drawn from the seed and i alone; equally many frames of each of its games."""

    def __init__(self, sets: list[EpisodeDataset], clip: PixelClip, args: Args):
        assert clip.square_size is not None
        self.sets, self.clip, self.square_size, self.args = sets, clip, clip.square_size, args
        self.rows = [split_rows(data, "train", args.hold_episodes) for data in sets]
        self.titles = [find_game(data.info.game).title for data in sets]
        for data in sets:
            try:
                pad_to_square(data.frame(0), self.square_size)
            except UserError as error:
                raise UserError(f"{data.path}: {error}") from error
        self._seen: dict[tuple[int, int], tuple[DetectedObject, ...]] = {}

    def __len__(self) -> int:
        return self.args.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.args.seed, step])
        games = rng.permutation(len(self.sets))[: self.args.games_of(step)]
        drawn = [self._draw(int(games[i % len(games)]), rng) for i in range(self.args.images)]
        frames, captions = zip(*drawn, strict=True)
        return {"frames": torch.from_numpy(np.stack(frames)[:, None]), "tokens": self.clip.tokenize(captions)}

    def _draw(self, game: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        data, row = self.sets[game], int(rng.choice(self.rows[game]))
        frame = data.frame(row)
        if (game, row) not in self._seen:
            self._seen[game, row] = describe_frame(frame, data.info.game)
        title = None if rng.random() < NO_TITLE_PROB else self.titles[game]
        return pad_to_square(frame, self.square_size), write_caption(self._seen[game, row], title, rng)


class ContrastiveObjective(Objective):
    """CLIP's loss: each frame's caption among the batch's captions, and each caption's frame among its frames."""

    vlm: PixelClip

    def forward(self, frames: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Return the loss, and the share of frames whose caption is found among the batch's.

        A caption that another frame of the batch shares, word for word, is no wrong one for it and is left out.

        Args:
            frames: uint8[B, 1, H, W, 3].
            tokens: int[B, L], of `PixelClip.tokenize`.
        """
        with self.autocast():
            images, texts = self.vlm.image_vectors(frames), self.vlm.text_vectors(tokens)
        logits = self.model.logit_scale.exp().clamp(max=100) * images @ texts.t()  # [B, B]
        target = torch.arange(len(tokens), device=tokens.device)
        twin = (tokens[:, None] == tokens[None]).all(-1) & (target[:, None] != target[None])
        logits = logits.masked_fill(twin, float("-inf"))
        loss = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.t(), target)) / 2
        return {"loss": loss, "found": (logits.argmax(1) == target).float().mean()}


def _groups(clip: PixelClip, args: Args) -> list[dict]:
    """Return optimizer groups, with no decay on vectors (norms, biases and the scale)."""
    parameters = list(clip.model.parameters())
    matrices = [parameter for parameter in parameters if parameter.ndim > 1]
    vectors = [parameter for parameter in parameters if parameter.ndim <= 1]
    rate = {"lr": args.learning_rate}
    return [
        {"params": matrices, "weight_decay": args.weight_decay, **rate},
        {"params": vectors, "weight_decay": 0.0, **rate},
    ]


def start_clip(args: Args, sets: list[EpisodeDataset]) -> PixelClip:
    """Return the CLIP that a training starts from.

    The positions of a new one are the code of rows and columns, so that its tokens tell their place: random ones do so
    after training for one place in four only, and a model that is to be asked for pixels has to find them.
    """
    if args.init:
        return load_clip(args.init)
    clip = build_clip(args.preset, caption_tokenizer(), args.seed)
    sizes = [data.frame(0).shape for data in sets]
    init_position_embeddings(
        clip.model.vision_model, max(s[0] for s in sizes), max(s[1] for s in sizes), parse_grid(args.grid)
    )
    with torch.no_grad():
        clip.model.vision_model.embeddings.patch_embedding.weight.mul_(PATCH_INIT_SCALE)
    return clip


def train_contrastive(args: Args) -> Path:
    """Train; return the directory of the last checkpoint."""
    sets = [EpisodeDataset(path) for path in args.data]
    clip = start_clip(args, sets)
    pairs = CaptionPairs(sets, clip, args)
    args.out.mkdir(parents=True, exist_ok=True)
    record = {**args.record(), "frames_of": sorted({data.info.game for data in sets})}
    train(
        ContrastiveObjective(clip, args.bf16),
        _groups(clip, args),
        record,
        pairs,
        args.out,
        args,
    )
    checkpoint.save(clip, args.out / "last", record, getattr(torch, args.dtype))
    return args.out / "last"


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    print(f"the CLIP is in {train_contrastive(args)}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
