"""Improvement from rewards alone in a game without an expert: PPO on text answers beside stable-baselines3's PPO.

    python -m experiments.run from-rewards

Both play the same game under the same protocol with rewards clipped to their sign, side by side on a core each. The
text policy starts from the released one, which never saw the game, and all of its weights train; SB3's convolutional
policy starts from random weights with the settings of `agents.experts.train_sb3`. Rows of curves hold what was earned
since the row before, with the frames and seconds so far, evaluations apart; rows of scores are those of `agents.score`
for what each training ended with, and for random play. Both draw their actions, as they did in training.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from agents import score
from agents.experts import train_sb3
from agents.ppo import run_ppo
from agents.ppo_config import PPOConfig
from common.json_file import read_json
from common.results import read_result
from envs.protocol import MACHADO2018
from experiments.learning_curves import learning_figure
from experiments.studies.jobs import Job
from vlm.released_checkpoints import RELEASED_POLICY

GAME = "CrazyClimber"
SEEDS = (0,)
TEXT, SB3 = "text PPO", "SB3 PPO"


@dataclass(frozen=True)
class FromRewardsConfig:
    """All settings of the study; seconds are of each learner with its scores."""

    text: PPOConfig = field(
        default_factory=lambda: PPOConfig(
            game=GAME,
            init=RELEASED_POLICY,
            out=Path("unset"),
            num_iterations=55,
            num_envs=16,
            num_steps=32,
            num_epochs=2,
            learning_rate=2e-4,
            ent_coef=0.001,
            kl_coef=0.0,  # the initial policy is no good player of this game
            save_every=5,
        )
    )
    sb3: train_sb3.Args = field(
        default_factory=lambda: train_sb3.Args(
            game=GAME,
            out=Path("unset"),
            algo="ppo",
            steps=250_000,
            eval_every=125_000,
            eval_episodes=1,
            curve_every=2048,
            progress=False,
        )
    )
    scores: score.Args = field(
        default_factory=lambda: score.Args(
            ("random",), (GAME,), Path("unset"), 10, (1000,), temperatures=(1.0,), engine="openvino"
        )
    )
    seconds: float = 3600


FROM_REWARDS = FromRewardsConfig()


def prepare() -> None:
    """Nothing is shared: each learner makes its own experience."""


def jobs(seeds: Sequence[int] | None, work: Path, config: FromRewardsConfig = FROM_REWARDS) -> list[Job]:
    """Return a job for each learner and training seed, and one for random play."""
    learners = {TEXT: learn_as_text, SB3: learn_by_sb3, "random": play_randomly}
    return [
        Job({"learner": name, "training_seed": seed}, config.seconds, partial(learn, config, seed, work))
        for seed in seeds or SEEDS
        for name, learn in learners.items()
    ]


def learn_as_text(config: FromRewardsConfig, seed: int, work: Path) -> list[dict[str, Any]]:
    """Train the text policy, or resume its training; return the rows of its curve and scores."""
    out = work / f"text-{seed}"
    policy = run_ppo(replace(config.text, out=out, seed=seed))
    return text_curve(config, out) + play(config, f"vlm:{policy}", work / f"text-{seed}.json")


def text_curve(config: FromRewardsConfig, out: Path) -> list[dict[str, Any]]:
    """Return the curve of a text policy's training."""
    rows, steps = read_result(out / "ppo.json")["rows"], config.text.num_envs * config.text.num_steps
    return [
        curve_row(config, row["iteration"] * steps, row["seconds"], row["raw_reward"], row["scores"]) for row in rows
    ]


def learn_by_sb3(config: FromRewardsConfig, seed: int, work: Path) -> list[dict[str, Any]]:
    """Train SB3's policy, or resume its training; return the rows of its curve and scores."""
    out = work / f"sb3-{seed}"
    train_sb3.train(replace(config.sb3, out=out, seed=seed))
    return sb3_curve(config, out) + play(config, f"sb3:{out / 'last.zip'}", work / f"sb3-{seed}.json")


def sb3_curve(config: FromRewardsConfig, out: Path) -> list[dict[str, Any]]:
    """Return the curve of an SB3 training."""
    return [
        curve_row(config, row["steps"], row["seconds"], row["points"] / row["new_steps"], row["scores"])
        for row in read_json(out / "curve.json")
    ]


def curve_row(
    config: FromRewardsConfig, steps: int, seconds: float, points_per_step: float, scores: list[float]
) -> dict[str, Any]:
    """Return a row of a curve: what was earned, and the raw scores of the games that ended, since the row before."""
    row = {"game": config.text.game, "frames": steps * MACHADO2018.frame_skip, "seconds": seconds}
    return {**row, "points_per_step": points_per_step, "training_scores": scores}


def play_randomly(config: FromRewardsConfig, seed: int, work: Path) -> list[dict[str, Any]]:
    """Return the row of random play's scores."""
    return play(config, "random", work / f"random-{seed}.json")


def play(config: FromRewardsConfig, agent: str, file: Path) -> list[dict[str, Any]]:
    """Return the rows of an agent's scores on published seeds."""
    return score.score(replace(config.scores, agents=(agent,), out=file))["rows"]


def draw(seeds: Sequence[int] | None, work: Path, config: FromRewardsConfig = FROM_REWARDS) -> Image.Image:
    """Return a picture of both learners' curves."""
    rows = []
    for seed in seeds or SEEDS:
        rows += [{"learner": TEXT, **row} for row in text_curve(config, work / f"text-{seed}")]
        rows += [{"learner": SB3, **row} for row in sb3_curve(config, work / f"sb3-{seed}")]
    file = io.BytesIO()
    learning_figure(rows).savefig(file, dpi=110)
    return Image.open(file)
