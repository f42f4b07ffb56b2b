"""How fast games are played by a model, beside the model alone on the same number of frames.

    python -m experiments.benchmarks.rollout_speed --out experiments/results/bench_rollout.json

Decisions a second of whole play, stepping, remembering and choosing included: by one table of lanes, where games wait
for the model and the model for games, and by two tables of half as many (`agents.rollout.play_at_tables`), where games
step while the model thinks. The rival is the model alone: the same agent on the same number of frames, which stay as
they are. Same model, same run, turn and turn about.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from agents.rollout import Transition, rollout_pipelined
from agents.vlm_agent import VlmAgent
from common.command import run
from common.errors import UserError
from common.results import new_result, write_result
from envs.atari import AtariEnvs
from envs.games import action_names, find_game, screen_size
from envs.protocol import EPISODES_PER_SEED, episode_seeds
from vlm import checkpoint
from vlm.presets import build

SEED = 500


@dataclass
class Args:
    """Time rollouts of a model."""

    out: Path
    """The result JSON."""
    checkpoint: Path | None = None
    """The model; by default untrained weights of the size nano."""
    game: str = "Carnival"
    """The game."""
    lanes: int = 16
    """Games in step."""
    decisions: int = 480
    """Decisions of each turn, over all lanes."""
    rounds: int = 3
    """Turns of each side."""
    threads: int = 1
    """Threads of torch; the games have threads of their own."""

    def __post_init__(self) -> None:
        if self.lanes < 2 or self.lanes % 2:
            raise UserError(f"--lanes must be even, two tables' worth, got {self.lanes}")
        for name in ("rounds", "threads"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if self.decisions < self.lanes:
            raise UserError(f"--decisions must be at least one a lane, {self.lanes}, got {self.decisions}")


class Sides:
    """One model at the controls in three ways; each returns decisions a second."""

    def __init__(self, args: Args):
        self.args, self.game = args, find_game(args.game)
        self.vlm = checkpoint.load(args.checkpoint) if args.checkpoint else build("nano")
        self.names = action_names(self.game, False)
        self._runs: dict[int, Iterator[Transition]] = {}

    def agent(self) -> VlmAgent:
        """Return a player of its own memory, of the one model."""
        return VlmAgent(self.vlm, self.game.title, self.names, temperature=1.0)

    def alone(self) -> float:
        """The model on frames of noise."""
        agent, lanes = self.agent(), self.args.lanes
        frames = np.random.default_rng(0).integers(0, 256, (lanes, *screen_size(self.game), 3), dtype=np.uint8)
        agent.reset(list(range(lanes)))
        agent.act(frames)
        began = time.perf_counter()
        for _ in range(self.args.decisions // lanes):
            agent.act(frames)
        return self.args.decisions // lanes * lanes / (time.perf_counter() - began)

    def at_tables(self, tables: int) -> float:
        """Whole play at one table or at two, from where the last turn stopped."""
        if tables not in self._runs:
            size = self.args.lanes // tables
            seats = [(self.agent(), AtariEnvs(self.game, size)) for _ in range(tables)]
            self._runs[tables] = rollout_pipelined(seats, episode_seeds(SEED, EPISODES_PER_SEED))
            for _ in islice(self._runs[tables], 2 * self.args.lanes):
                pass
        began = time.perf_counter()
        count = sum(1 for _ in islice(self._runs[tables], self.args.decisions))
        return count / (time.perf_counter() - began)


def measure(args: Args) -> list[dict[str, Any]]:
    """Return a row for one table and one for two, each beside the model alone."""
    torch.set_num_threads(args.threads)
    sides = Sides(args)
    ways: dict[str, Callable[[], float]] = {
        "alone": sides.alone, "one table": lambda: sides.at_tables(1), "two tables": lambda: sides.at_tables(2),
    }  # fmt: skip
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            found[name].append(way())
    speed = {name: float(np.median(values)) for name, values in found.items()}
    model = checkpoint.content_hash(args.checkpoint) if args.checkpoint else "untrained nano"
    return [
        {
            "benchmark": f"rollout, {name}", "ours": round(speed[name], 1), "rival": round(speed["alone"], 1),
            "rival_is": "the model alone", "ratio": round(speed[name] / speed["alone"], 3),
            "unit": "decisions per second, median", "game": sides.game.name, "lanes": args.lanes, "model": model,
            "threads": args.threads, "n": args.rounds,
        }
        for name in ("one table", "two tables")
    ]  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    began = time.monotonic()
    result = new_result("bench_rollout", None, [SEED])
    result["rows"] = measure(args)
    result["seconds"] = round(time.monotonic() - began, 1)
    write_result(args.out, result)
    for row in result["rows"]:
        share = f"{row['ratio']:.0%} of the model alone ({row['rival']})"
        print(f"{row['benchmark']}: {row['ours']} decisions a second, {share}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
