"""One model that plays, answers for pixels and segments: what it reads, and what its masks find.

    python -m experiments.run one-model

The sets of `experiments.studies.reader`, but with the games that this model plays apart from those that no training of
it saw, and `pretrain.referring.evaluation` on held-out recordings. Its scores are those of `agents.score`; the report
puts all of them into one table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments.studies import reader
from experiments.studies.jobs import Job
from experiments.studies.reader import ReaderConfig
from pretrain.referring import evaluation
from vlm import checkpoint
from vlm.released_checkpoints import RELEASED_POLICY

MASKS = "masks"  # the set of the row of referring segmentation


@dataclass(frozen=True)
class OneModelConfig(ReaderConfig):
    """All settings of the evaluation; `training_games` are those that it plays."""

    checkpoint: Path = RELEASED_POLICY
    held_out_games: tuple[str, ...] = ("Seaquest", "Qbert", "Frostbite", "Asteroids")
    training_games: tuple[str, ...] = ("Carnival", "MsPacman")
    mask_games: tuple[str, ...] = (
        "Carnival", "MsPacman", "Alien", "Assault", "Atlantis", "Breakout", "DemonAttack", "Phoenix", "Pong",
        "SpaceInvaders",
    )  # fmt: skip
    mask_episodes: int = 2  # the last recordings of each, which no training of masks saw
    expressions: int = 400
    mask_seed: int = 10_000


ONE_MODEL = OneModelConfig()


def prepare(config: OneModelConfig = ONE_MODEL) -> None:
    """Record the frames of every game that are missing."""
    reader.prepare(config)
    for game in config.mask_games:
        reader.frames(config, game)


def jobs(seeds: Sequence[int] | None, work: Path, config: OneModelConfig = ONE_MODEL) -> list[Job]:
    """Return a job for each set of pixels, and one for the masks."""
    key = {"checkpoint": checkpoint.content_hash(config.checkpoint), "set": MASKS}
    return [*reader.jobs(seeds, work, config), Job(key, 60, partial(measure_masks, config, work))]


def measure_masks(config: OneModelConfig, work: Path) -> list[dict[str, Any]]:
    """Return the row of referring segmentation."""
    row = evaluation.evaluate(
        evaluation.Args(
            data=tuple(config.data_dir / f"random-{game}" for game in config.mask_games),
            out=work / MASKS,
            checkpoint=config.checkpoint,
            count=config.expressions,
            val_episodes=config.mask_episodes,
            seed=config.mask_seed,
            num_images=0,
        )
    )
    assert row
    return [{name: value for name, value in row.items() if name != "checkpoint"}]
