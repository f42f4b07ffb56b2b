"""One policy for eight games, from the released policy on: demonstrations, cloning, DAgger, scores.

    python -m experiments.run eight-games --processes 1

Each game's expert demonstrates; then one policy is cloned from all of them, improves on its own games by DAgger, and
is scored beside random play on published seeds. Every part resumes, so that the command may be killed and repeated; in
all it is about a day on two cores. Rows are those of `agents.score`, which the report sums up by human scores.
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
from experiments.studies.jobs import Job
from vlm.released_checkpoints import RELEASED_POLICY

GAMES = ("Carnival", "MsPacman", "Pong", "Breakout", "SpaceInvaders", "Seaquest", "Qbert", "Freeway")
SEEDS = (0,)


@dataclass(frozen=True)
class EightGamesConfig:
    """All settings of the study."""

    demonstrations: tuple[DemonstrationsConfig, ...] = (
        DemonstrationsConfig((*GAMES[:4], GAMES[-1]), demo_episodes=12, demo_dir=Path("data/eight-games")),
        # the planner makes seven decisions a second
        DemonstrationsConfig(GAMES[4:-1], demo_episodes=3, demo_max_frames=6000, demo_dir=Path("data/eight-games")),
    )
    cloning: CloneConfig = CLONE_CONFIGS["eight-games"].replace(init=RELEASED_POLICY)
    dagger: DaggerConfig = DAGGER_CONFIGS["eight-games"].replace(games=GAMES)
    scores: score.Args = field(
        default_factory=lambda: score.Args(("random",), GAMES, Path("unset"), 30, (1000,), engine="openvino")
    )
    seconds: float = 24 * 3600  # of a training with its scores


EIGHT_GAMES = EightGamesConfig()


def prepare(config: EightGamesConfig = EIGHT_GAMES) -> None:
    """Record the demonstrations that are missing."""
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
