"""Export a checkpoint for release: choose its sampling temperature by play and store its weights in bfloat16.

    python -m agents.export --checkpoint runs/clone/best --out vlm/weights/policy --temperatures 0 0.5 1

At each temperature the policy plays every game it was trained on, on development seeds; the best expert-normalized
score wins. The weights are rounded to bfloat16 *before* they play, so that the exported policy is the evaluated one. A
mask head is exported with them, as it is, and a card for the Hugging Face hub is written beside them;
`agents.model_card` writes it anew, with scores made later.
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from agents.checkpoint_selection import SELECTION_SEED, best_scores, evaluate_games
from agents.model_card import CardOptions, read_scores, write_model_card
from common.command import command, require_at_least, run
from common.errors import UserError
from common.outputs import require_output_directory
from envs.protocol import find_protocol
from vlm import checkpoint
from vlm.released_checkpoints import RELEASED_POLICY
from vlm.segmentation.mask_head import CONFIG_FILE, MaskHead


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
    card: Annotated[CardOptions, tyro.conf.arg(name="")] = CardOptions()
    """The card of the exported checkpoint."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "episodes")
        if not self.temperatures or min(self.temperatures) < 0:
            raise UserError(f"--temperatures must be at least 0, got {list(self.temperatures)}")


def export_policy(args: Args) -> str:
    """Evaluate every temperature and export the checkpoint; return a line about it."""
    require_output_directory(args.out, checkpoint.METADATA, [args.checkpoint])
    args.card.require_files()
    training = checkpoint.read_training(args.checkpoint)
    experts = best_scores((data["game"], data["mean_score"]) for data in training.get("datasets", []))
    if not experts:
        raise UserError(f"{args.checkpoint} was not trained to play: its training.json names no datasets")
    with tempfile.TemporaryDirectory() as directory:
        checkpoint.save(checkpoint.load(args.checkpoint), Path(directory) / "half", dtype=torch.bfloat16)
        vlm = checkpoint.load(Path(directory) / "half")
        read_scores(args.card.scores, checkpoint.content_hash(Path(directory) / "half"))  # refused before any play
    mask_head = MaskHead.load(args.checkpoint) if (args.checkpoint / CONFIG_FILE).is_file() else None
    protocols = dict.fromkeys(sorted(experts), find_protocol(args.protocol))
    evaluations = []
    for temperature in args.temperatures:
        found = evaluate_games(vlm, protocols, experts, args.episodes, temperature, args.engine)
        evaluations.append({"temperature": temperature, **found})
    best = max(evaluations, key=lambda evaluation: evaluation["expert_normalized_score"])["temperature"]
    play = {"temperature": best, "seed": SELECTION_SEED, "episodes": args.episodes, "evaluations": evaluations}

    def write_beside(directory: Path) -> None:
        if mask_head:
            mask_head.save(directory)
        write_model_card(directory, args.card, args.out.resolve().name)

    checkpoint.save(vlm, args.out, {**training, "play": play}, dtype=torch.bfloat16, export=write_beside)
    return f"{checkpoint.content_hash(args.out)} at temperature {best:g} to {args.out}"


main = command(Args, export_policy, __doc__, "exported {}")

if __name__ == "__main__":
    sys.exit(run(main))
