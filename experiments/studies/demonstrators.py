"""Demonstrations of a study: whole games of an expert policy, recorded once."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agents import record
from common.files import atomic_directory
from common.output_lock import output_lock
from envs.episodes import INFO, episode_files
from vlm import checkpoint
from vlm.released_checkpoints import RELEASED_POLICY

Engine = Literal["auto", "torch", "openvino"]  # of `agents.vlm_agent`


@dataclass(frozen=True)
class DemonstratorConfig:
    """An expert's demonstrations of a game.

    agent: of `agents.registry`, "vlm" for the released policy; random_action_prob: of its play, which shows the
    learner states that the expert alone does not reach; seed: of the games, below 1000.
    """

    game: str
    agent: str
    episodes: int
    random_action_prob: float
    seed: int
    max_frames: int | None = None

    @property
    def name(self) -> str:
        """The agent; a VLM with its content hash, since rows are comparable only under the same expert."""
        return f"vlm-{checkpoint.content_hash(RELEASED_POLICY)}" if self.agent == "vlm" else self.agent

    @property
    def agent_id(self) -> str:
        """The agent's id in `agents.registry`."""
        return f"vlm:{RELEASED_POLICY}" if self.agent == "vlm" else self.agent


def record_missing(args: record.Args) -> Path:
    """Return the dataset of a recording; record the episodes that are missing."""
    with output_lock(args.out, wait=True):  # several experiments need the same
        if len(episode_files(args.out)) < args.episodes:
            record.record(args)
    return args.out


def record_episodes(config: DemonstratorConfig, folder: Path, engine: Engine, prefix: str = "") -> Path:
    """Return the dataset of all episodes of a demonstrator; record those that are missing."""
    name = f"{prefix}{config.name}-{config.game}-{config.episodes}-random-actions-{config.random_action_prob:g}"
    return record_missing(
        record.Args(
            game=config.game,
            out=folder / name,
            agent=config.agent_id,
            engine=engine,
            episodes=config.episodes,
            seed=config.seed,
            random_action_prob=config.random_action_prob,
            max_frames=config.max_frames,
        )
    )


def first_episodes(dataset: Path, episodes: int) -> Path:
    """Return the first episodes of a dataset as a dataset."""
    out = dataset.with_name(f"{dataset.name}-first-{episodes}")
    with output_lock(dataset, wait=True):  # parallel jobs need the same
        if not (out / INFO).exists():
            with atomic_directory(out) as temporary:
                (temporary / "data").mkdir()
                shutil.copy(dataset / INFO, temporary)
                for file in list(episode_files(dataset).values())[:episodes]:
                    shutil.copy(file, temporary / "data")
    return out
