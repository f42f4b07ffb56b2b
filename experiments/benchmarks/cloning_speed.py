"""Speed of cloning, beside TRL's SFTTrainer on the same model, frames, prompt and answers in the same run.

    pip install -e '.[baselines]'
    python -m experiments.benchmarks.cloning_speed --out experiments/results/cloning_speed.json

Candidate: the training of `agents.clone`, whole (`vlm.training.fit`: sampler, objective, gradient, clipping, AdamW,
schedule). Baseline: TRL's SFTTrainer with its own collator for images and the loss of the completion alone, without the
activation checkpointing that it has by default and that would slow it. Both decode the same lossless PNGs, begin with
the same weights, and see the same batches of random play with the actions taken as answers: one game, one prompt. Each
trains a few steps, in turns; a step lasts from the end of the one before to its own, data included. Its seconds are the
processor's, which other processes do not lengthen; those of the clock stand beside them. Loss and norm of the gradient
of the first batch, in float32, stand in the rows. What differs:

- `nano`, the architecture of the released policy, has no processor of transformers, which knows none for several frames
  in one image: TRL reads it by one written here around the candidate's own image input. `llava`, of about that size and
  with 64 image tokens, has transformers' own processor and a chat template on both sides; for TRL, frames are
  letterboxed and the template is filled in beforehand.
- TRL gets the model with the batch norms' statistics fixed, as the candidate trains it: else it would compute another
  loss.
- The candidate scores every legal answer, SFTTrainer the one taken; with one-hot targets both losses are the same.
  SFTTrainer divides by the number of answer tokens, the candidate by that of answers: rows are in nats per answer.
- AdamW has a group for each role and kind of parameter here, two groups there, all at one learning rate.
"""

import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Image, List, Value
from torch import Tensor
from transformers import TrainerCallback

from agents.bc_dataset import BCBatch, GameBatch
from agents.clone import clone_mixture, load_datasets
from agents.clone_config import CONFIGS, CloneConfig
from common.command import require_at_least, run
from common.errors import UserError
from envs.episodes import EpisodeWriter, encode_png
from envs.games import Game, action_names, find_game
from experiments.benchmarks.cloning_models import image_of, processor_of, write_model
from experiments.benchmarks.dataset_speed import OURS, record_episode
from experiments.benchmarks.harness import Row, TimingArgs, benchmark_main, comparison, interleaved
from vlm import checkpoint
from vlm.device import device_name
from vlm.model import PixelVLM
from vlm.precision import native_bfloat16
from vlm.training.fit import TrainingModule, fit
from vlm.training.mixture import Mixture, MixtureBatch, MixtureDataset

CPU = torch.device("cpu")
EXTRA = "pip install -e '.[baselines]'"
WARM_UP = 2  # untimed steps of each training
RATE, DECAY, WARM_UP_STEPS = 3e-4, 0.05, 100


@dataclass(kw_only=True)
class Args(TimingArgs):
    """Time the steps of cloning and of SFTTrainer."""

    models: tuple[str, ...] = ("nano", "llava")
    """Presets, or llava; of untrained weights, a row for each and precision."""
    game: str = "MsPacman"
    """The game of the frames and legal actions."""
    batch_size: int = 64
    """Frames of a step."""
    steps: int = 5
    """Timed steps of each training in each round."""
    workers: int = 0
    """Data workers of each, whose time is not counted; with 0 a step pays for its data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, "batch_size", "steps")
        require_at_least(self, 0, "workers")


class StepClock(TrainerCallback):
    """Notes when steps end, by the clock and by the processor's time."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Note the time."""
        self.ends.append((time.perf_counter(), time.process_time()))

    def seconds(self) -> np.ndarray:
        """Return the seconds of each step after the first ones, and those of the processor: float[steps, 2]."""
        return np.diff(np.array(self.ends), axis=0)[WARM_UP - 1 :]


class Cloning:
    """The candidate: trainings of `agents.clone` from one model, on one dataset."""

    def __init__(self, args: Args, model: Path, data: Path, runs: Path):
        self.model, self.runs, self.steps = model, runs, args.steps + WARM_UP
        config = CONFIGS["default"].replace(
            out=runs / "untimed", init=model, data=(data,), targets="hard", batch_size=args.batch_size,
            steps=self.steps, optimizer="adamw", learning_rate=RATE, connector_learning_rate=None,
            encoder_learning_rate=None, eval_every=0,
        )  # fmt: skip
        self.config: CloneConfig = config.with_trainer_options(
            report_to="none", dataloader_num_workers=args.workers, warmup_steps=WARM_UP_STEPS, weight_decay=DECAY
        )
        self.datasets = load_datasets(self.config)

    def mixture(self) -> Mixture:
        """Return the objective on new weights."""
        return clone_mixture(checkpoint.load(self.model, CPU), self.datasets, self.config)

    def batches(self) -> list[MixtureBatch]:
        """Return the batches of a training."""
        data = MixtureDataset(self.mixture(), self.steps, self.config.run.seed)
        return [data[step] for step in range(self.steps)]

    def first_step(self) -> dict[str, float]:
        """Return the loss of the first batch and the norm of its gradient, in float32."""
        module = TrainingModule(self.mixture(), bf16=False)
        module.train()
        return _loss_and_norm(module, module(self.batches()[0])["loss"], 1)

    def train(self, bf16: bool, number: int) -> np.ndarray:
        """Train; return the seconds of its steps."""
        clock, out = StepClock(), self.runs / f"{bf16}-{number}"
        config = self.config.replace(out=out).with_trainer_options(bf16=str(bf16).lower())
        fit(self.mixture(), config, callbacks=[clock])
        return clock.seconds()


class FineTuning:
    """The baseline: trainings by TRL's SFTTrainer on the candidate's batches."""

    def __init__(self, args: Args, cloning: Cloning, game: Game):
        self.args, self.runs, self.steps = args, cloning.runs, cloning.steps
        self.model = cloning.model
        self.vlm: PixelVLM = checkpoint.load(self.model, CPU)
        parts = [part for batch in cloning.batches() for part in game_batches(batch)]
        names = action_names(game)
        prompt, end = self.vlm.action_prompt(game.title, names), self.vlm.tokenizer.eos_token
        answers = [names[i] + end for part in parts for i in part.targets.argmax(1).tolist()]
        self.data = _as_dataset(self.vlm, [stack for part in parts for stack in part.frames.numpy()], prompt, answers)

    def trainer(self, bf16: bool, number: int | None = None, callbacks: tuple[TrainerCallback, ...] = ()) -> Any:
        """Return a trainer of new weights."""
        trl, args = _trl(), self.args
        config = trl.SFTConfig(
            output_dir=str(self.runs / f"sft-{bf16}-{number}"), use_cpu=True, bf16=bf16, seed=0,
            per_device_train_batch_size=args.batch_size, max_steps=self.steps, learning_rate=RATE,
            weight_decay=DECAY, lr_scheduler_type="cosine", warmup_steps=WARM_UP_STEPS, optim="adamw_torch_fused",
            train_sampling_strategy="sequential", dataloader_num_workers=args.workers, dataloader_pin_memory=False,
            completion_only_loss=True, max_length=None, activation_checkpointing=False, logging_steps=50,
            report_to="none", save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        model, processor = checkpoint.load(self.model, CPU).model, processor_of(self.vlm)
        return trl.SFTTrainer(
            model, config, train_dataset=self.data, processing_class=processor, callbacks=list(callbacks)
        )

    def first_step(self) -> dict[str, float]:
        """Return the loss of the first batch and the norm of its gradient per answer, in float32."""
        trainer = self.trainer(bf16=False)
        trainer.model.train()
        batch = next(iter(trainer.get_train_dataloader()))
        tokens_per_answer = int((batch["labels"] != -100).sum()) / self.args.batch_size
        return _loss_and_norm(trainer.model, trainer.compute_loss(trainer.model, batch), tokens_per_answer)

    def train(self, bf16: bool, number: int) -> np.ndarray:
        """Train; return the seconds of its steps."""
        clock = StepClock()
        self.trainer(bf16, number, (clock,)).train()
        return clock.seconds()


def game_batches(batch: MixtureBatch) -> tuple[GameBatch, ...]:
    """Return the parts of a batch of cloning, one for each game."""
    (own,) = batch.batches
    assert isinstance(own, BCBatch)
    return own.games


def _trl() -> Any:
    try:
        import trl
    except ImportError as error:
        raise UserError(f"expected TRL, which this is measured beside: {EXTRA}") from error
    return trl


def _as_dataset(vlm: PixelVLM, stacks: list[np.ndarray], prompt: str, answers: list[str]) -> Dataset:
    """Return stacks of frames uint8[history, H, W, 3] and their answers as prompts and completions with images."""
    images = [[{"bytes": encode_png(image_of(vlm, frame)), "path": None} for frame in stack] for stack in stacks]
    columns = {"prompt": [prompt] * len(answers), "completion": answers, "images": images}
    features = Features({"prompt": Value("string"), "completion": Value("string"), "images": List(Image())})
    return Dataset.from_dict(columns, features=features)


def _loss_and_norm(module: torch.nn.Module, loss: Tensor, unit: float) -> dict[str, float]:
    loss = loss * unit
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), torch.inf)
    return {"loss": loss.item(), "norm": norm.item()}


def model_rows(args: Args, name: str, data: Path, folder: Path) -> list[Row]:
    """Return the row of a model in each precision: float32, and bfloat16 where the processor has it."""
    game = find_game(args.game)
    write_model(name, folder / "model", game.title, action_names(game))
    cloning = Cloning(args, folder / "model", data, folder / "runs")
    tuning = FineTuning(args, cloning, game)
    first = {"candidate": cloning.first_step(), "baseline": tuning.first_step()}
    precisions = (False, True) if native_bfloat16(CPU) else (False,)
    return [precision_row(args, cloning, tuning, bf16) | _details(name, first) for bf16 in precisions]


def _details(name: str, first: dict[str, dict[str, float]]) -> Row:
    return {
        "model": f"untrained {name}",
        "loss": {side: figures["loss"] for side, figures in first.items()},
        "gradient_norm": {side: figures["norm"] for side, figures in first.items()},
    }


def precision_row(args: Args, cloning: Cloning, tuning: FineTuning, bf16: bool) -> Row:
    """Return the speeds in one precision, of trainings in turns."""
    taken: dict[str, list[np.ndarray]] = {"candidate": [], "baseline": []}
    sides: dict[str, Cloning | FineTuning] = {"candidate": cloning, "baseline": tuning}

    def train(name: str, number: int) -> None:
        taken[name].append(sides[name].train(bf16, number))

    interleaved({name: partial(train, name) for name in sides}, args.rounds)
    clock, processor = (
        {name: args.batch_size / float(np.median(np.concatenate(found)[:, column])) for name, found in taken.items()}
        for column in (0, 1)
    )
    ours, theirs = ([float(np.median(steps[:, 1])) for steps in taken[name]] for name in sides)
    return comparison(
        f"cloning, {args.batch_size} frames a step",
        processor["candidate"],
        processor["baseline"],
        f"TRL {_trl().__version__}, SFTTrainer without activation checkpointing, completion-only loss",
        "frames per second of the processor, data included, median over steps",
        ratio_of_rounds=[round(there / here, 3) for here, there in zip(ours, theirs, strict=True)],
        frames_per_second_of_the_clock={name: round(rate, 2) for name, rate in clock.items()},
        precision="bf16" if bf16 else "f32",
        data_workers=args.workers,
        n=args.rounds * args.steps,
    )


def measure(args: Args) -> list[Row]:
    """Return the rows of every model."""
    _trl()
    info, episode = record_episode(args.game)
    with tempfile.TemporaryDirectory() as place:
        EpisodeWriter(Path(place) / OURS, info).append(episode)
        rows = []
        for name in args.models:
            (Path(place) / name).mkdir()
            rows += model_rows(args, name, Path(place) / OURS, Path(place) / name)
    return [row | {"game": args.game, "device": device_name(CPU)} for row in rows]


main = benchmark_main(Args, measure, [0], __doc__)

if __name__ == "__main__":
    sys.exit(run(main))
