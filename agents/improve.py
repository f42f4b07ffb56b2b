"""Improve a policy by what it does itself: rounds of DAgger, or policy gradients on its text answers.

    python -m agents.improve --game Carnival --checkpoint runs/clone/last --method dagger \
        --data data/carnival --rounds 4 --steps 1500 --out runs/improved
    python -m agents.improve --game Breakout --checkpoint runs/clone/last --method ppo --steps 400 --out runs/ppo

Cloning alone stays far below its teacher: the policy leaves the teacher's states and never saw what to do there.
`dagger` (`agents.dagger`): it plays, the teacher labels what it saw, and it learns from all data so far; give the
demonstrations that it was cloned from as `--data`. `ppo` (`agents.ppo`): the probability of the text of
its own answers rises with the reward that follows, held near the policy it began as. All options of `agents.clone`
are those of each round's training. A run that was killed goes on where it stopped when the command is repeated.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from agents import clone, dagger, ppo
from common.command import run
from common.errors import UserError
from envs.atari import make_envs
from envs.games import find_game
from envs.protocol import MACHADO2018
from vlm import checkpoint


@dataclass(kw_only=True)
class Args(dagger.DaggerConfig, ppo.PPOConfig, clone.Args):
    """Improve a policy in rollouts."""

    method: Literal["dagger", "ppo"] = "dagger"
    """dagger: learn from a teacher's labels of what the policy saw; ppo: from the rewards of what it did."""
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
    """Steps between trials by play within a round; 0: a round's last weights go on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_rounds()
        self.check_ppo()
        if self.method == "ppo" and len(self.game) != 1:
            raise UserError(f"--method ppo learns one game at a time; name it with --game, got {list(self.game)}")


def improve(args: Args) -> Path:
    """Improve; return the directory of the last checkpoint."""
    clone.check_same_run(args)
    return dagger.run_dagger(args, args, args.init) if args.method == "dagger" else by_rewards(args)


def by_rewards(args: Args) -> Path:
    """Improve by policy gradients; return the directory of the checkpoint."""
    vlm, game = checkpoint.load(args.init), find_game(args.game[0])
    before = checkpoint.read_training(args.init)
    games = sorted({*(before.get("games") or []), game.name})
    training = {**args.record(), "games": games, "started_from": before}
    with make_envs(game, args.lanes, MACHADO2018) as envs:
        rates = (args.encoder_learning_rate, args.learning_rate)
        learner = ppo.PPOTrainer(vlm, envs, args, rates, args.seed, args.record_seed, args.bf16)
        return ppo.run_ppo(learner, args.out, training)


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    print(f"the policy is in {improve(args)}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
