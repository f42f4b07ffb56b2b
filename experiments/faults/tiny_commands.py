"""Commands with the smallest numbers: each ends in seconds and writes all that it writes in a run of days."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from agents import record
from common.command import run
from envs.protocol import Protocol
from experiments.run import Experiment
from experiments.studies import optimizers
from vlm import checkpoint
from vlm.presets import build

EPISODE_FRAMES = 120  # emulator frames of a recorded game
TRAINER = "--trainer save_steps=2 warmup_steps=1 dataloader_num_workers=0 bf16=false logging_steps=1"
LINES = {  # inputs in braces; --out is added
    "record": "agents.record --game Carnival --agent random --episodes 3 --max-frames 120",
    "clone": "agents.clone --data {Carnival} --preset tiny --steps 4 --batch-size 4 --eval-every 2 --eval-episodes 1 "
    + TRAINER,
    "pvp": "pretrain.pvp --data {Carnival} --preset tiny --steps 4 --images 2 --questions 3 " + TRAINER,
    "captions": "pretrain.captions --data {Carnival} --preset tiny --steps 4 --images 2 " + TRAINER,
    "contrastive": "pretrain.contrastive --data {Carnival} {MsPacman} --preset tiny-clip --steps 4 --images 8 "
    "--games 2 " + TRAINER,
    "referring": "pretrain.referring.train --data {Carnival} {MsPacman} --preset tiny --steps 4 --images 2 " + TRAINER,
    "dagger": "agents.dagger --init {tiny} --games MsPacman --iterations 2 --episodes 1 --steps 2 --batch-size 4 "
    + TRAINER,
    "ppo": "agents.ppo --init {tiny} --game Carnival --num-iterations 3 --num-envs 2 --num-steps 4 --minibatch-size 4 "
    "--save-every 1",
    "score": "agents.score --agents random --games Freeway --episodes 1 --seeds 0 1",
    "play": "agents.play --game Freeway --agent random --episodes 2 --max-frames 240",
    "expert": "agents.experts.train_sb3 --game Carnival --steps 48 --num-envs 2 --buffer-size 64 --eval-every 16 "
    "--eval-episodes 1 --no-progress",
    "study": "experiments.run optimizers --processes 1 --work work",
}
INEXACT = ("expert",)  # it resumes with new games, since the emulators' states are not saved
RESULT_FILES = ("score", "study")  # whose --out is a file
SHORT = Protocol("short", 0.25, 4, 0, False, EPISODE_FRAMES)


@dataclass(frozen=True)
class TinyCommand:
    """A command by its module and its words. It writes into the working directory; `run` returns its exit code."""

    name: str
    module: str
    words: tuple[str, ...]
    is_exact: bool = True  # a repeat gives the same files, not only as many

    def run(self) -> int:
        """Run the command in this process."""
        torch.set_num_threads(1)  # the same numbers bit for bit, on a busy machine too
        module = importlib.import_module(self.module)
        with small_numbers():
            return run(lambda: module.main(list(self.words)))


@contextmanager
def small_numbers() -> Iterator[None]:
    """Use smaller numbers where a command has no flag for them.

    DAgger records openings instead of whole games and compares an expert with itself in few states, an SB3 expert is
    scored on openings, and a study is small.
    """
    short: Callable[..., record.Args] = partial(record.Args, max_frames=EPISODE_FRAMES)
    states = patch.multiple("agents.expert_self_agreement", NUM_STATES=2, STATE_INTERVAL=3)
    openings = patch("agents.experts.train_sb3.find_protocol", lambda _: SHORT)
    study = patch.dict("experiments.run.EXPERIMENTS", {"optimizers": tiny_study()})
    with patch("agents.dagger.record.Args", short), states, openings, study, patch.object(optimizers, "EVERY", 2):
        yield


def tiny_study() -> Experiment:
    """Return the study of optimizers with trainings of four steps, one for each task."""
    trainer = ("dataloader_num_workers=0", "warmup_steps=1", "bf16=false", "save_steps=2")
    nano, small = optimizers.NANO, {"steps": 4, "trainer": trainer}
    demonstrations = replace(
        nano.demonstrations, out=Path("demonstrations"), agent="random", episodes=2, max_frames=EPISODE_FRAMES
    )
    config = replace(
        nano,
        pvp=nano.pvp.replace(preset="tiny-clip", grid="12", images=2, questions=3, **small),
        clone=nano.clone.replace(preset="tiny", batch_size=2, horizontal_flip=(), **small),
        demonstrations=demonstrations,
    )
    return Experiment(
        partial(optimizers.prepare, config), lambda seeds, work: optimizers.jobs(seeds, work, config)[::2]
    )


def prepare(inputs: Path) -> dict[str, str]:
    """Make the inputs of the commands, a checkpoint and two recordings, where they are missing; return their paths."""
    if not (inputs / "tiny").exists():
        checkpoint.save(build("tiny", seed=1), inputs / "tiny", {"games": ["MsPacman"]})
    paths: dict[str, Any] = {"tiny": inputs / "tiny"}
    for game in ("Carnival", "MsPacman"):
        paths[game] = inputs / game
        record.record(record.Args(game=game, out=paths[game], agent="random", episodes=3, max_frames=EPISODE_FRAMES))
    return {name: str(path.absolute()) for name, path in paths.items()}


def tiny_commands(inputs: dict[str, str]) -> dict[str, TinyCommand]:
    """Return the commands by name, whose inputs are those of `prepare`."""
    found = {}
    for name, line in LINES.items():
        module, *words = line.format(**inputs).split()
        out = "out.json" if name in RESULT_FILES else "out"
        found[name] = TinyCommand(name, module, (*words, "--out", out), name not in INEXACT)
    return found
