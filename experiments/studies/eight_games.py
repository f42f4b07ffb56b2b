"""One policy for eight games, from nothing but the released policy: experts, demonstrations, cloning, DAgger, scores.

    python -m experiments.run eight-games --processes 1

Prepared first: an SB3 expert of Pong, whose search expert hardly wins a point, and demonstrations of every game. Then
one policy is cloned from all of them, improves on its own games by DAgger, and is scored beside random play on
published seeds. Every part resumes, so that the command may be killed and repeated; in all it is about a day on two
cores. Rows are those of `agents.score`; the report sums them up as human-normalized scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from agents import score
from agents.clone import clone
from agents.clone_config import CONFIGS as CLONE_CONFIGS
from agents.clone_config import CloneConfig
from agents.dagger import run_dagger
from agents.dagger_config import CONFIGS as DAGGER_CONFIGS
from agents.dagger_config import DaggerConfig
from agents.demonstrations import DemonstrationsConfig
from agents.experts import train_sb3
from common.output_lock import output_lock
from experiments.studies.jobs import Job
from vlm.released_checkpoints import RELEASED_POLICY

GAMES = ("Carnival", "MsPacman", "Pong", "Breakout", "SpaceInvaders", "Seaquest", "Qbert", "Freeway")
PONG_EXPERT = train_sb3.Args(game="Pong", out=Path("runs/eight-games-Pong"), algo="ppo", progress=False)
EXPERTS = (f"Pong=sb3:{PONG_EXPERT.out / 'best.zip'}",)
SEEDS = (0,)


@dataclass(frozen=True)
class EightGamesConfig:
    """All settings of the study."""

    sb3_experts: tuple[train_sb3.Args, ...] = (PONG_EXPERT,)
    demonstrations: tuple[DemonstrationsConfig, ...] = (
        DemonstrationsConfig(GAMES[:4], EXPERTS, demo_episodes=12, demo_dir=Path("data/eight-games")),
        # the planner makes seven decisions a second
        DemonstrationsConfig(GAMES[4:], demo_episodes=3, demo_max_frames=6000, demo_dir=Path("data/eight-games")),
    )
    cloning: CloneConfig = CLONE_CONFIGS["eight-games"].replace(init=RELEASED_POLICY)
    dagger: DaggerConfig = DAGGER_CONFIGS["eight-games"].replace(games=GAMES, experts=EXPERTS)
    scores: score.Args = field(
        default_factory=lambda: score.Args(("random",), GAMES, Path("unset"), 30, (1000,), engine="openvino")
    )
    seconds: float = 24 * 3600  # of a training with its scores


EIGHT_GAMES = EightGamesConfig()


def prepare(config: EightGamesConfig = EIGHT_GAMES) -> None:
    """Train the SB3 experts and record the demonstrations that are missing."""
    for expert in config.sb3_experts:
        with output_lock(expert.out, wait=True):
            train_sb3.train(expert)
    demonstration_datasets(config)


def demonstration_datasets(config: EightGamesConfig) -> tuple[Path, ...]:
    """Return the dataset of each game; record what is missing."""
    return tuple(dataset for group in config.demonstrations for dataset in group.record())


def jobs(seeds: Sequence[int] | None, work: Path, config: EightGamesConfig = EIGHT_GAMES) -> list[Job]:
    """Return a job for each training seed."""
    return [
        Job({"training_seed": seed}, config.seconds, partial(measure, config, seed, work)) for seed in seeds or SEEDS
    ]


def measure(config: EightGamesConfig, seed: int, work: Path) -> list[dict[str, Any]]:
    """Train one policy, or resume its training, and play; return a row of scores for each agent and game."""
    policy = train(config, seed, work)
    agents = (f"vlm:{policy}", *config.scores.agents)
    return score.score(replace(config.scores, agents=agents, out=work / f"scores-{seed}.json"))["rows"]


def train(config: EightGamesConfig, seed: int, work: Path) -> Path:
    """Clone the demonstrations and improve by DAgger, or resume; return the policy."""
    data = demonstration_datasets(config)
    cloned = clone(config.cloning.replace(data=data, out=work / f"clone-{seed}", seed=seed))
    return run_dagger(config.dagger.replace(data=data, init=cloned, out=work / f"dagger-{seed}", seed=seed))
