"""Captions: teach a VLM to say what is in a frame, in the words of `pretrain.data.frame_captions`.

    python -m pretrain.captions --data data/random-Pong data/random-Qbert --hold-episodes 2 --out runs/captions

    <image> [caption]                   ->  a frame of pong with two paddles and a ball , a ball in the centre

An encoder learns meaning by captions as it does by contrast (Tschannen et al. 2023, "Image Captioners Are Scalable
Vision Learners Too"), whatever its architecture, and nothing of pixel values. As a lesson it is the task of meaning
beside the task of detail in a mixture (`vlm.training.mixture`): Gou et al. 2024 teach pixel values as one of the tasks of
pre-training, among captions. Several captions of a frame share one pass over it (`vlm.decoding.packing`).
A run that was killed goes on from its last checkpoint when the command is repeated.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from common.command import run
from common.errors import UserError
from envs.games import find_game
from pretrain.data.augmentation import crop_or_resize
from pretrain.data.frame_captions import caption_tokenizer, describe_frame, write_caption
from pretrain.data.images import EpisodeFrames
from pretrain.pvp_prompts import IGNORE_INDEX
from vlm import checkpoint
from vlm.decoding.packing import forward_packed, pad_token_lists
from vlm.model import PixelVLM
from vlm.presets import build
from vlm.prompts import CAPTION_PREFIX
from vlm.sinusoidal_init import init_number_embeddings
from vlm.training.config import TrainConfig
from vlm.training.learning_rates import ModuleLearningRates, parameter_groups, parameter_update_report, snapshot
from vlm.training.trainer import Objective, train


@dataclass(kw_only=True)
class Args(TrainConfig):
    """Train captions."""

    data: tuple[str, ...]
    """Directories of recorded games."""
    out: Path
    """Where the run lives: checkpoints, TensorBoard and `last`."""
    hold_episodes: int = 0
    """The last episodes of every recorded dataset, kept for measuring."""
    preset: str = "nano"
    """The size of a new model, which has the words of captions in its vocabulary and numbers from one code of waves."""
    init: Path | None = None
    """A checkpoint to start from, instead of a new model."""
    size: tuple[int, int] = (210, 160)
    """Rows and columns that frames are brought to."""
    images: int = 12
    """Frames a step."""
    captions: int = 4
    """Captions of each."""
    learning_rate: float = 1e-3
    """Peak learning rate of decoder and connector."""
    encoder_learning_rate: float = 1e-3
    """The encoder's; 0 freezes it."""

    def __post_init__(self) -> None:
        for name in ("steps", "images", "captions", "save_every"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")


class CaptionDataset(Dataset):
    """Step i's frames and captions, drawn from the seed and i alone.

    An item is `frames` uint8[B, history, H, W, 3], `read` int[B, K, L], a caption without its end, and `said`
    int[B, K, L], the caption from its first word to its end: what shall be said next at each token.

    Args:
        vlm: the model, for its history and tokenizer.
        data: directories of recorded games.
        held_out: the last games of every directory, which are never drawn.
        size: rows and columns that frames are brought to.
        steps, images, count: number of steps; frames a step; captions a frame.
        seed: of all drawing.
    """

    def __init__(
        self,
        vlm: PixelVLM,
        data: Sequence[str],
        held_out: int,
        size: tuple[int, int],
        steps: int,
        images: int,
        count: int,
        seed: int,
    ):
        if not data:
            raise UserError("expected directories of recorded games to describe, got none")
        self.sources = [EpisodeFrames(Path(place), "train", held_out) for place in data]
        self.tokenizer, self.history, self.size = vlm.tokenizer, vlm.history, size
        self.pad = vlm.tokenizer.eos_token_id if vlm.tokenizer.pad_token_id is None else vlm.tokenizer.pad_token_id
        self.steps, self.images, self.count, self.seed = steps, images, count, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, step, 0xCA])
        stacks, rows = [], []
        for _ in range(self.images):
            source = self.sources[int(rng.integers(len(self.sources)))]
            stack = source.frame_stack(int(rng.integers(len(source))), self.history)
            things, title = describe_frame(stack[-1], source.name), find_game(source.name).title
            stacks.append(crop_or_resize(stack, *self.size))
            rows.append(self._tokens([write_caption(things, title, rng) for _ in range(self.count)]))
        return {
            "frames": torch.from_numpy(np.stack(stacks)),
            "read": pad_token_lists([[caption[:-1] for caption in captions] for captions in rows], self.pad)[0],
            "said": pad_token_lists([[caption[1:] for caption in captions] for captions in rows], IGNORE_INDEX)[0],
        }

    def _tokens(self, captions: list[str]) -> list[list[int]]:
        """Return each caption's tokens behind the last one of the prompt, its end included."""
        prompt = self.tokenizer(CAPTION_PREFIX, add_special_tokens=False)["input_ids"]
        found = self.tokenizer(captions, add_special_tokens=False)["input_ids"]
        return [[prompt[-1], *tokens, self.tokenizer.eos_token_id] for tokens in found]


class CaptionObjective(Objective):
    """Captions as a lesson: cross-entropy on every word, the end included."""

    vlm: PixelVLM

    def __init__(self, vlm: PixelVLM, bf16: bool | None, attention: str = "sdpa"):
        super().__init__(vlm, bf16, attention)
        prompt = vlm.tokenizer(CAPTION_PREFIX, add_special_tokens=False)["input_ids"]
        self.shared = torch.tensor(prompt[:-1])

    def forward(self, frames: Tensor, read: Tensor, said: Tensor) -> dict[str, Tensor]:
        """Return the loss, and `exact`, the share of words that would be said as they are.

        Args:
            frames: uint8[B, history, H, W, 3].
            read: int[B, K, L], the prompt's last token and a caption.
            said: int[B, K, L], what shall be said next.
        """
        with self.autocast():
            features = self.vlm.encode_images(self.vlm.preprocess(frames))
            hidden = forward_packed(self.vlm, features, self.shared.to(read.device), read)
            logits = self.vlm.model.get_output_embeddings()(hidden[said != IGNORE_INDEX]).float()  # [A, V]
        wanted = said[said != IGNORE_INDEX]
        exact = (logits.detach().argmax(-1) == wanted).float().mean()
        return {"loss": functional.cross_entropy(logits, wanted), "exact": exact}


def start(args: Args) -> PixelVLM:
    """Return the model that a training starts from."""
    if args.init:
        return checkpoint.load(args.init)
    vlm = build(args.preset, args.seed, caption_tokenizer())
    init_number_embeddings(vlm)
    return vlm


def train_captions(args: Args) -> Path:
    """Train; return the directory of the last checkpoint."""
    vlm = start(args)
    before = snapshot(vlm)
    plan = ModuleLearningRates(args.encoder_learning_rate or None, args.learning_rate, args.learning_rate)
    groups = parameter_groups(vlm, plan, args.weight_decay)
    drawn = (args.hold_episodes, args.size, args.steps, args.images, args.captions, args.seed)
    told = CaptionDataset(vlm, args.data, *drawn)
    args.out.mkdir(parents=True, exist_ok=True)
    record = {**args.record(), "images_of": sorted(args.data)}
    train(CaptionObjective(vlm, args.bf16), groups, record, told, args.out, args)
    checkpoint.save(vlm, args.out / "last", {**record, "parameter_updates": parameter_update_report(before, vlm)})
    return args.out / "last"


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    print(f"the model is in {train_captions(args)}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
