"""Make a checkpoint the one that ships: choose the temperature it plays at, store it at half size.

    python -m agents.export --checkpoint runs/clone/best --out vlm/weights/policy --temperatures 0 0.5 1

Every temperature plays whole games of each game that the model was trained on, on seeds kept for choosing; the best
mean share of what the teachers score above random play wins. The weights are rounded to bfloat16 *before* they play,
so that what was chosen is what ships.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from agents.clone import SELECTION_SEED, evaluate_policy
from agents.demonstrations import expert_normalized_score
from common.command import run
from common.errors import UserError
from envs.protocol import find_protocol
from vlm import checkpoint
from vlm.pretrained import RELEASED_POLICY


@dataclass
class Args:
    """Choose a checkpoint's temperature by play and store it for shipping."""

    checkpoint: Path
    """The checkpoint to ship."""
    out: Path = RELEASED_POLICY
    """Where it goes; by default the weights that the repository ships."""
    temperatures: tuple[float, ...] = (0.0, 0.5, 1.0)
    """The temperatures to choose from."""
    games: int = 8
    """Whole games of each kind at each temperature."""
    engine: Literal["auto", "torch", "openvino"] = "torch"
    """What computes the scores of the trials: torch (float32) or openvino (what play uses on a CPU)."""
    protocol: str = "machado2018"
    """The evaluation protocol."""

    def __post_init__(self) -> None:
        if self.games < 1:
            raise UserError(f"--games must be at least 1, got {self.games}")
        if not self.temperatures or min(self.temperatures) < 0:
            raise UserError(f"--temperatures must be at least 0, got {list(self.temperatures)}")


def export_policy(args: Args) -> dict[str, Any]:
    """Choose and store; return what `training.json` tells of the choice."""
    protocol = find_protocol(args.protocol)
    training = checkpoint.read_training(args.checkpoint)
    teachers: dict[str, float] = {}
    for data in training.get("datasets", []):  # a student's games may lie among them: the best player is the teacher
        teachers[data["game"]] = max(data["mean_score"], teachers.get(data["game"], data["mean_score"]))
    if not teachers:
        raise UserError(f"{args.checkpoint} was not trained to play: its training.json names no datasets")
    with tempfile.TemporaryDirectory() as room:
        checkpoint.save(checkpoint.load(args.checkpoint), Path(room) / "half", half=True)
        vlm = checkpoint.load(Path(room) / "half")
    trials: list[dict[str, Any]] = []
    for temperature in args.temperatures:
        scores = {
            game: evaluate_policy(vlm, game, protocol, args.games, temperature, args.engine)
            for game in sorted(teachers)
        }
        share = expert_normalized_score(scores, teachers)
        trials.append({"temperature": temperature, "of_teacher": share, "scores": scores})
        means = ", ".join(f"{game} {np.mean(found):.0f}" for game, found in scores.items())
        print(f"temperature {temperature:g}: {means} ({share:.3f} of the teacher)", flush=True)
    best = max(trials, key=lambda trial: trial["of_teacher"])
    play = {"temperature": best["temperature"], "seed": SELECTION_SEED, "games": args.games, "trials": trials}
    checkpoint.save(vlm, args.out, {**training, "play": play}, half=True)
    return play


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    play = export_policy(args)
    print(f"temperature {play['temperature']:g} ships, {checkpoint.content_hash(args.out)} in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
