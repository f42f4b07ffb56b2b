"""Speed of whole rollouts, beside the model alone on the same number of frames.

    python -m experiments.benchmarks.rollout_speed --out experiments/results/rollout_speed.json

Candidate: agent steps per second of play, emulation included, in one group of environments, where games and model wait
for each other, and in two pipelined groups of half the size (`agents.rollout.rollout_pipelined`), where one steps while
the model reads the other. Baseline: the same agent on constant frames of noise.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from agents.rollout import Transition, rollout_pipelined
from agents.vlm_agent import VlmAgent
from common.command import run
from common.errors import UserError
from envs.atari import AtariEnvs
from envs.games import action_names, find_game, screen_size
from envs.protocol import EPISODES_PER_SEED, episode_seeds
from experiments.benchmarks.harness import BenchmarkArgs, Functions, Row, benchmark_main, comparison, median_seconds

SEED = 500


@dataclass(kw_only=True)
class Args(BenchmarkArgs):
    """Time rollouts of a model. Environments have threads of their own."""

    game: str = "Carnival"
    """The game."""
    num_envs: int = 16
    """Parallel environments."""
    steps: int = 480
    """Agent steps of each round, over all environments."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_envs < 2 or self.num_envs % 2:
            raise UserError(f"--num-envs must be even, for two groups, got {self.num_envs}")
        if self.steps < self.num_envs:
            raise UserError(f"--steps must be at least one per environment, {self.num_envs}, got {self.steps}")


class Rollouts:
    """One model in three rollouts, each warmed up."""

    def __init__(self, args: Args):
        self.num_envs, self.game, self.vlm = args.num_envs, find_game(args.game), args.load_model()
        self.alone, shape = self._agent(), (args.num_envs, *screen_size(self.game), 3)
        self.noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        self.alone.reset(list(range(args.num_envs)))
        self.act_alone(args.num_envs)
        self.rollouts = {groups: self._start(groups) for groups in (1, 2)}
        for groups in self.rollouts:
            self.play(groups, 2 * args.num_envs)

    def _agent(self) -> VlmAgent:
        return VlmAgent(self.vlm, self.game.title, action_names(self.game), temperature=1.0)

    def _start(self, num_groups: int) -> Iterator[Transition]:
        envs = [AtariEnvs(self.game, self.num_envs // num_groups) for _ in range(num_groups)]
        return rollout_pipelined([(self._agent(), one) for one in envs], episode_seeds(SEED, EPISODES_PER_SEED))

    def act_alone(self, steps: int) -> None:
        """Act on noise for a number of agent steps over all environments."""
        for _ in range(steps // self.num_envs):
            self.alone.act(self.noise)

    def play(self, num_groups: int, steps: int) -> None:
        """Continue a rollout for a number of agent steps over all environments."""
        for _ in islice(self.rollouts[num_groups], steps):
            pass


def measure(args: Args) -> list[Row]:
    """Return a row for one group and one for two."""
    rollouts, steps = Rollouts(args), args.steps // args.num_envs * args.num_envs
    functions: Functions = {
        "alone": lambda _: rollouts.act_alone(steps),
        "rollout, one group": lambda _: rollouts.play(1, steps),
        "rollout, two groups": lambda _: rollouts.play(2, steps),
    }
    seconds, unit = median_seconds(functions, args.rounds), "agent steps per second, median"
    alone = steps / seconds.pop("alone")
    details = {"game": rollouts.game.name, "num_envs": args.num_envs, "model": args.model_name(), "n": args.rounds}
    return [comparison(name, steps / time, alone, "the model alone", unit, **details) for name, time in seconds.items()]


main = benchmark_main(Args, measure, [SEED], __doc__)

if __name__ == "__main__":
    sys.exit(run(main))
