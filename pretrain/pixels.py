"""Pixel value prediction: teach the VLM to answer the colour at a place of an image, encoder unfrozen.

    python -m pretrain.pixels --data data/carnival-random data/mspacman-random --out runs/pixels --steps 2000

The task of Gou et al. 2024 at native resolution, row first. Many questions share one pass over their image
(`vlm.packing`). Half of the places are drawn evenly; the other half by drawing a colour evenly among those of the
frame and then one of its pixels, since even drawing would ask about the background and hardly ever about a bullet.
A run that was killed goes on from its last checkpoint when the command is repeated.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from envs.episodes import EpisodeDataset
from envs.errors import EnvsError
from vlm import checkpoint
from vlm.errors import VlmError
from vlm.freezing import TrainablePlan, moved_tensors, parameter_groups, snapshot
from vlm.model import PixelVLM
from vlm.packing import read_questions
from vlm.presets import build
from vlm.prompts import IMAGE, PIXEL_PREFIX, pixel_answer, pixel_prompt
from vlm.provenance import command_line, git_commit, package_versions
from vlm.trainer import Lesson, train


@dataclass
class Args:
    """Train pixel value prediction."""

    data: tuple[Path, ...]
    """Dataset directories whose frames are asked about."""
    out: Path
    """Where the run lives: checkpoints, TensorBoard and `last`."""
    preset: str = "nano"
    """The size of a new model."""
    init: Path | None = None
    """A checkpoint to start from, instead of a new model."""
    steps: int = 2000
    """Optimizer steps."""
    images: int = 8
    """Images a step, all of one dataset."""
    questions: int = 48
    """Questions about each image."""
    learning_rate: float = 1e-3
    """Peak learning rate of connector and decoder."""
    encoder_learning_rate: float | None = None
    """The encoder's own, if another; 0 freezes it, the paper's first finding."""
    weight_decay: float = 0.05
    """Weight decay on matrices."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    seed: int = 0
    """Seed of the initial weights and of what is asked."""
    save_every: int = 500
    """Steps between checkpoints."""
    bf16: bool = True
    """Compute in bfloat16 where that is safe; the weights stay float32."""
    workers: int = 1
    """Processes that decode frames ahead."""

    def __post_init__(self) -> None:
        for name in ("steps", "images", "questions", "save_every"):
            if getattr(self, name) < 1:
                raise EnvsError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")


def draw_places(frame: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return int[count, 2], rows and columns of a frame uint8[H, W, 3]: half anywhere, half by colour."""
    height, width, _ = frame.shape
    anywhere = rng.integers(height * width, size=count - count // 2)
    codes = frame.reshape(-1, 3).astype(np.int32) @ np.array([65536, 256, 1])
    order = np.argsort(codes, kind="stable")
    _, first, sizes = np.unique(codes[order], return_index=True, return_counts=True)
    colours = rng.integers(len(first), size=count // 2)
    by_colour = order[first[colours] + (rng.random(count // 2) * sizes[colours]).astype(int)]
    return np.stack(np.divmod(np.concatenate([anywhere, by_colour]), width), axis=1)


class Questions(Dataset):
    """Step i's images and questions, drawn from the seed and i alone."""

    def __init__(self, sets: list[EpisodeDataset], vlm: PixelVLM, args: Args):
        self.sets, self.tokenizer, self.history, self.args = sets, vlm.tokenizer, vlm.history, args
        tall = max(data.frame(0).shape[0] for data in sets)
        if max(tall, sets[0].frame(0).shape[1]) > 256:
            raise VlmError(f"expected frames of at most 256 rows and columns, got {tall}: numbers end at 255")

    def __len__(self) -> int:
        return self.args.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.args.seed, step])
        data = self.sets[rng.integers(len(self.sets))]
        frames = [data.frames(int(row), self.history) for row in rng.integers(len(data), size=self.args.images)]
        asked = [self._ask(stack[-1], rng) for stack in frames]
        return {"frames": torch.from_numpy(np.stack(frames)), "tokens": torch.tensor(asked)}

    def _ask(self, frame: np.ndarray, rng: np.random.Generator) -> list[list[int]]:
        places = draw_places(frame, self.args.questions, rng)
        texts = [
            pixel_prompt(row, column).removeprefix(f"{IMAGE} {PIXEL_PREFIX}") + pixel_answer(frame[row, column])
            for row, column in places
        ]
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]


class PixelValues(Lesson):
    """PVP as a lesson: cross-entropy on the tokens of the answer, its end included."""

    def __init__(self, vlm: PixelVLM, bf16: bool):
        super().__init__(vlm, bf16)
        self.shared = torch.tensor(vlm.tokenizer(PIXEL_PREFIX, add_special_tokens=False)["input_ids"])
        middle = vlm.tokenizer(pixel_prompt(0, 0), add_special_tokens=False)["input_ids"]
        self.asked = len(middle) - 1 - len(self.shared)  # tokens of a question before its answer

    def forward(self, frames: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Return the loss, and the share of pixels whose three numbers are all the most probable ones.

        Args:
            frames: uint8[B, history, H, W, 3].
            tokens: int[B, K, L], question and answer.
        """
        batch, count, _ = tokens.shape
        with self.autocast():
            hidden = read_questions(self.vlm, self.vlm.pixels(frames), self.shared.to(tokens.device), tokens)
            hidden = hidden[:, :, self.asked - 1 :]  # [B, K, answer + 1, D]
            logits = self.vlm.model.get_output_embeddings()(hidden).float()
        end = torch.full((batch, count, 1), self.vlm.tokenizer.eos_token_id, device=tokens.device)
        targets = torch.cat([tokens[:, :, self.asked :], end], dim=2)
        loss = functional.cross_entropy(logits.flatten(0, 2), targets.flatten())
        right = (logits.argmax(-1) == targets)[:, :, [0, 2, 4]]
        return {"loss": loss, "exact": right.all(-1).float().mean()}


def pretrain(args: Args) -> Path:
    """Train; return the directory of the last checkpoint."""
    sets = [EpisodeDataset(path) for path in args.data]
    vlm = checkpoint.load(args.init) if args.init else build(args.preset, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    encoder = args.learning_rate if args.encoder_learning_rate is None else args.encoder_learning_rate or None
    plan = TrainablePlan(encoder, args.learning_rate, args.learning_rate)
    groups = parameter_groups(vlm, plan, args.weight_decay)
    before = snapshot(vlm)
    record = {
        "command": command_line(),
        "arguments": json.loads(json.dumps(dataclasses.asdict(args), default=str)),
        "commit": git_commit(),
        "versions": package_versions(),
        "games": [],
        "frames_of": sorted({data.info.game for data in sets}),
    }
    train(
        PixelValues(vlm, args.bf16),
        groups,
        record,
        Questions(sets, vlm, args),
        args.out,
        warmup_steps=args.warmup_steps,
        save_every=args.save_every,
        seed=args.seed,
        workers=args.workers,
    )
    checkpoint.save(vlm, args.out / "last", {**record, "moved": moved_tensors(before, vlm)})
    return args.out / "last"


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    print(f"the model is in {pretrain(args)}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (EnvsError, VlmError, OSError) as error:
        print(f"error: {error}".replace("\n", " "), file=sys.stderr)
        sys.exit(2)
