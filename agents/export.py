"""Export a checkpoint for release: choose its sampling temperature by play and store its weights in bfloat16.

    python -m agents.export --checkpoint runs/clone/best --out vlm/weights/policy --temperatures 0 0.5 1

At each temperature the policy plays every game it was trained on, on development seeds; the best expert-normalized
score wins. The weights are rounded to bfloat16 *before* they play, so that the exported policy is the evaluated one.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro

from agents.checkpoint_selection import SELECTION_SEED, evaluate_policy, expert_normalized_score
from common.command import require_at_least, run
from common.errors import UserError
from envs.protocol import Protocol, find_protocol
from vlm import checkpoint
from vlm.model import PixelVLM
from vlm.pretrained import RELEASED_POLICY


@dataclass
class Args:
    """Choose a checkpoint's temperature by play and export it in bfloat16."""

    checkpoint: Path
    """The checkpoint to export."""
    out: Path = RELEASED_POLICY
    """The directory to write; by default the released policy of this repository."""
    temperatures: tuple[float, ...] = (0.0, 0.5, 1.0)
    """The temperatures to choose from."""
    episodes: int = 8
    """Episodes of each game at each temperature."""
    engine: Literal["auto", "torch", "openvino"] = "torch"
    """What computes the action probabilities: torch (float32) or openvino (the default of play on a CPU)."""
    protocol: str = "machado2018"
    """The evaluation protocol."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "episodes")
        if not self.temperatures or min(self.temperatures) < 0:
            raise UserError(f"--temperatures must be at least 0, got {list(self.temperatures)}")


def export_policy(args: Args) -> dict[str, Any]:
    """Evaluate every temperature and export the checkpoint; return the `play` entry of its `training.json`."""
    protocol = find_protocol(args.protocol)
    training = checkpoint.read_training(args.checkpoint)
    expert_scores: dict[str, float] = {}
    for data in training.get("datasets", []):  # of a game's datasets, the best player's is the expert's
        expert_scores[data["game"]] = max(data["mean_score"], expert_scores.get(data["game"], data["mean_score"]))
    if not expert_scores:
        raise UserError(f"{args.checkpoint} was not trained to play: its training.json names no datasets")
    with tempfile.TemporaryDirectory() as directory:
        checkpoint.save(checkpoint.load(args.checkpoint), Path(directory) / "half", dtype=torch.bfloat16)
        vlm = checkpoint.load(Path(directory) / "half")
    evaluations = [evaluate(args, vlm, protocol, expert_scores, temperature) for temperature in args.temperatures]
    best = max(evaluations, key=lambda evaluation: evaluation["expert_normalized_score"])
    play = {
        "temperature": best["temperature"],
        "seed": SELECTION_SEED,
        "episodes": args.episodes,
        "evaluations": evaluations,
    }
    checkpoint.save(vlm, args.out, {**training, "play": play}, dtype=torch.bfloat16)
    return play


def evaluate(
    args: Args, vlm: PixelVLM, protocol: Protocol, expert_scores: dict[str, float], temperature: float
) -> dict[str, Any]:
    """Return the scores by game at one temperature, and their expert-normalized mean."""
    scores = {
        game: evaluate_policy(vlm, game, protocol, args.episodes, temperature, args.engine)
        for game in sorted(expert_scores)
    }
    normalized = expert_normalized_score(scores, expert_scores)
    means = ", ".join(f"{game} {np.mean(episode_scores):.0f}" for game, episode_scores in scores.items())
    print(f"temperature {temperature:g}: {means} (expert-normalized {normalized:.3f})", flush=True)
    return {"temperature": temperature, "expert_normalized_score": normalized, "scores": scores}


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    play = export_policy(args)
    print(f"exported {checkpoint.content_hash(args.out)} at temperature {play['temperature']:g} to {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
