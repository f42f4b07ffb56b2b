"""AdamW for every parameter beside Muon for matrices: the time to an equal loss, in pixel value prediction and cloning.

    python -m experiments.run optimizers

Both see the same batches for the same number of steps, one after the other on one core, each at its own best rates:
those of the named configs, of which Muon takes three times for matrices.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from agents import record
from agents.bc_dataset import load_labelled_datasets
from agents.clone import bc_objective
from agents.clone_config import CONFIGS as CLONE_CONFIGS
from agents.clone_config import CloneConfig
from common.files import write_text_atomically
from experiments.studies.demonstrators import record_missing
from experiments.studies.jobs import Job
from pretrain.pvp import train_pvp
from pretrain.pvp_config import CONFIGS as PVP_CONFIGS
from pretrain.pvp_config import PvpConfig
from vlm.presets import build
from vlm.training.fit import fit
from vlm.training.mixture import Mixture

OPTIMIZERS = ("adamw", "muon")
EVERY = 25  # steps between points of a curve


@dataclass(frozen=True)
class OptimizersConfig:
    """All settings of the experiment."""

    pvp: PvpConfig = PVP_CONFIGS["reading"].replace(steps=400, images=4, questions=32)
    clone: CloneConfig = CLONE_CONFIGS["policy"].replace(
        preset="micro", steps=300, batch_size=64, pvp_weight=0.0, aux_loss_weight=0.0, encoder_learning_rate=1e-3,
        connector_learning_rate=1e-3, game_weights=(), trainer=("warmup_steps=40", "save_steps=1000"),
    )  # fmt: skip
    demonstrations: record.Args = field(
        default_factory=lambda: record.Args(
            game="MsPacman", out=Path("data/optimizers-MsPacman"), agent="mspacman-expert", random_action_prob=0.08,
            episodes=16, max_frames=10_000, seed=40,
        )
    )  # fmt: skip
    seconds: float = 300  # of a job


NANO = OptimizersConfig()
SEEDS = (0,)


def prepare(config: OptimizersConfig = NANO) -> None:
    """Record the demonstrations."""
    record_missing(config.demonstrations)


def jobs(seeds: Sequence[int] | None, work: Path, config: OptimizersConfig = NANO) -> list[Job]:
    """Return a job for each task, optimizer and seed."""
    tasks: dict[str, Callable[..., Any]] = {"pixel values": train_pixels, "cloning": train_clone}
    found = []
    for seed, (task, train), optimizer in product(seeds or SEEDS, tasks.items(), OPTIMIZERS):
        out = work / f"{task.replace(' ', '-')}-{optimizer}-{seed}"
        key = {"task": task, "optimizer": optimizer, "seed": seed}
        found.append(Job(key, config.seconds, partial(measure, train, config, optimizer, seed, out)))
    return found


class LossCurveCallback(TrainerCallback):
    """Keeps step, seconds and metrics of every log entry in a file; a resumed run continues it."""

    def __init__(self, file: Path):
        self.file = file
        self.rows: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []

    def on_train_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Start the clock, and drop the entries of steps that a killed run took and this one repeats."""
        self.rows = [row for row in self.rows if row["step"] <= state.global_step]
        self.before = self.rows[-1]["seconds"] if self.rows else 0.0
        self.started = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Keep an entry of the training's own."""
        if logs and "loss" in logs:
            seconds = self.before + time.monotonic() - self.started
            self.rows.append({"step": state.global_step, "seconds": round(seconds, 1), **logs})
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(self.file, json.dumps(self.rows))


def train_pixels(config: OptimizersConfig, optimizer: str, seed: int, out: Path, curve: LossCurveCallback) -> str:
    """Train pixel value prediction; return the name of the metric that is compared."""
    training = config.pvp.replace(optimizer=optimizer, seed=seed, out=out)
    train_pvp(training.with_trainer_options(logging_steps=EVERY), [curve])
    return "mae_expected"


def train_clone(config: OptimizersConfig, optimizer: str, seed: int, out: Path, curve: LossCurveCallback) -> str:
    """Clone the demonstrations; return the name of the metric that is compared."""
    training = config.clone.replace(optimizer=optimizer, seed=seed, out=out, data=(config.demonstrations.out,))
    training = training.with_trainer_options(logging_steps=EVERY)
    data, vlm = training.data, build(training.model.preset, seed)
    datasets = load_labelled_datasets(data.data, data.targets, data.target_temperature, data.argmax_weight)
    fit(Mixture({"play": bc_objective(vlm, datasets, training)}), training, callbacks=[curve])
    return "loss"


def measure(
    train: Callable[..., str], config: OptimizersConfig, optimizer: str, seed: int, out: Path
) -> list[dict[str, Any]]:
    """Train, or resume; return a row for each point of the curve: its step, seconds and the compared metric."""
    curve = LossCurveCallback(out / "curve.json")
    metric = train(config, optimizer, seed, out, curve)
    names = ("step", "seconds")
    return [{**{n: row[n] for n in names}, "metric": metric, "value": float(row[metric])} for row in curve.rows]
