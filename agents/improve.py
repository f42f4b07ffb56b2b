"""Improve a policy by rounds of DAgger.

    python -m agents.improve --game Carnival --checkpoint runs/clone/last --data data/carnival --rounds 4 \
        --steps 1500 --out runs/improved

The policy plays, the expert labels its states, and the policy trains on all data so far (`agents.dagger`). Options of
`agents.clone` apply to the training of each round. The same command resumes a killed run.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from agents import clone, dagger
from common.command import run


@dataclass(kw_only=True)
class Args(dagger.DaggerConfig, clone.Args):
    """Improve a policy by rounds of DAgger."""

    init: Annotated[Path, tyro.conf.arg(name="checkpoint")] = field()
    """The policy to improve."""
    data: tuple[Path, ...] = ()
    """Demonstrations to learn from beside the recordings."""
    steps: int = 1500
    """Optimizer steps of each round."""
    learning_rate: float = 1e-4
    """Peak learning rate of the decoder in the first round."""
    encoder_learning_rate: float = 3e-4
    """Peak learning rate of encoder and connector in the first round; 0 freezes the encoder."""
    select_every: int = 0
    """Steps between evaluations within a round; 0: a round keeps its last weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_rounds()


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    clone.check_same_run(args)
    print(f"the policy is in {dagger.run_dagger(args, args, args.init)}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
