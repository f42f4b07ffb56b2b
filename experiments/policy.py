"""The policy that ships: cloned to play and taught pixel values in one mixture, so that what it sees can be asked for.

    python -m pretrain.pvp --data data/random-* --preset nano --start-codes --grid 32 --out runs/pixels ...
    python -m experiments.policy --data data/carnival data/mspacman --init runs/pixels/last --readout 1 --rounds 3 \
        --out runs/both
    python -m pretrain.reconstruct --image frame.png --checkpoint runs/both/last --out runs/seen

`agents.clone` with a share of its steps for `pretrain.pvp`: cloning alone would soon have forgotten the answers to
questions about pixels. With `--rounds` it then improves by what it does itself (`agents.dagger`), pixels among it
all the same. All other options are those of `agents.clone` and `agents.improve`.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from agents import clone, dagger
from agents.bc_dataset import BCBatchDataset
from common.command import run
from common.errors import UserError
from pretrain import pvp
from vlm.model import PixelVLM
from vlm.training.mixture import MixtureDataset, MixtureObjective, Task


@dataclass(kw_only=True)
class Args(dagger.DaggerConfig, clone.Args):
    """Clone teachers' play, among questions about pixels, and improve in rounds."""

    rounds: int = 0
    """Rounds of DAgger after cloning."""
    round_steps: int = 1500
    """Optimizer steps of each round."""
    round_rate: float = 0.4
    """What the learning rates of cloning are multiplied by in the first round."""

    pixel_share: float = 0.2
    """Share of the steps that are questions about pixels."""
    pixel_data: tuple[str, ...] = ()
    """Where their images come from besides the demonstrations: recorded games and folders of pictures."""
    grid: str = "32"
    """The grid that questions count on: 32, 64 or native."""
    size: tuple[int, int] = (210, 160)
    """Rows and columns that images are brought to for questions."""
    images: int = 16
    """Images a step of questions."""
    questions: int = 16
    """Questions about each."""
    synthetic: float = 0.2
    """Share of images of the generator among them."""
    augmentation: float = 0.25
    """Probability of strange colours, and of strange places, in an image."""
    soft: float = 6.0
    """Spread the target of a number over its neighbours with this standard deviation, of 255."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_rounds()
        if not 0 < self.pixel_share < 1:
            raise UserError(
                f"--pixel-share must be between 0 and 1, got {self.pixel_share}; without pixels it is agents.clone"
            )

    def pixel_args(self) -> pvp.Args:
        """Return the settings of the questions."""
        return pvp.Args(
            out=self.out,
            data=(*(str(place) for place in dict.fromkeys(self.data)), *self.pixel_data),
            grid=self.grid,
            size=self.size,
            steps=self.steps,
            images=self.images,
            questions=self.questions,
            synthetic=self.synthetic,
            augmentation=self.augmentation,
            soft=self.soft,
            seed=self.seed,
            bf16=self.bf16,
        )


def teach(args: Args) -> Path:
    """Clone, and go through the rounds if there are any; return the directory of the best or last checkpoint."""
    start = clone_among_pixels(args)
    if not args.rounds:
        return start
    later = replace(
        args,
        steps=args.round_steps,
        learning_rate=args.learning_rate * args.round_rate,
        encoder_learning_rate=args.encoder_learning_rate * args.round_rate,
    )
    return dagger.run_dagger(later, args, start, clone_among_pixels)


def clone_among_pixels(args: clone.Args) -> Path:
    """Train once on the arguments' data, or go on with it; what is finished is not done again."""
    assert isinstance(args, Args)
    if (args.out / "last").exists():
        clone.check_same_run(args)
        return args.out / ("best" if (args.out / "best").exists() else "last")

    def mix(
        vlm: PixelVLM, imitation: clone.BehaviorCloningObjective, batches: BCBatchDataset
    ) -> tuple[MixtureObjective, MixtureDataset]:
        tasks = [
            Task("play", imitation, batches, 1 - args.pixel_share),
            Task("pixels", *pvp.make_lesson(vlm, args.pixel_args()), args.pixel_share),
        ]
        return MixtureObjective(tasks), MixtureDataset(tasks, args.steps, args.seed)

    return clone.clone(args, mix)


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    print(f"the policy is in {teach(args)}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
