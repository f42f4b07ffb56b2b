"""What kills do to every kind of command, at the smallest numbers.

    python -m experiments.faults
    python -m experiments.faults --commands record ppo --every 5 --moments 10 --out runs/faults.json

Each command runs once unbroken, then dies before each of its file events and at random moments; after every kill the
same command is repeated to its end. A row counts the kills, and how many left a torn file, were refused when repeated
(stuck), lost, doubled or changed a file, or left a hidden one behind. All is well where all of these are 0.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from common.command import command, require_at_least, run
from common.errors import UserError, nearest
from common.results import RESULTS, new_result, write_result
from experiments.faults.kills import FAULTS, measure
from experiments.faults.tiny_commands import LINES, prepare, tiny_commands


@dataclass
class Args:
    """Kill commands and repeat them."""

    out: Path = RESULTS / "faults.json"
    """The result JSON."""
    work: Path = Path("runs/faults")
    """The directory that the commands write into; what it holds is replaced."""
    commands: tuple[str, ...] = ()
    """The commands; by default all."""
    every: int = 1
    """Kill before every n-th file event."""
    moments: int = 50
    """Kills at random moments of each command."""
    seed: int = 0
    """Seed of the random moments."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "every")
        require_at_least(self, 0, "moments")
        for name in self.commands:
            if name not in LINES:
                known, near = ", ".join(LINES), nearest(name, LINES)
                raise UserError(f"expected --commands {known}, got {name!r}; nearest: {near}")


def measure_faults(args: Args) -> Path:
    """Measure every command; write a row as it is finished and return the result file."""
    torch.set_num_threads(1)  # a fork of a process with other threads may hang
    started, result = time.monotonic(), new_result("faults", None, [args.seed])
    commands = tiny_commands(prepare(args.work / "inputs"))
    for name in args.commands or commands:
        row = measure(commands[name], args.work, args.every, args.moments, args.seed)
        counts = ", ".join(f"{row[fault]} {fault}" for fault in FAULTS)
        print(f"{name}: {row['kills']} kills in {row['file_events']} file events: {counts}", flush=True)
        result["rows"].append(row)
        result["seconds"] = round(time.monotonic() - started, 1)
        write_result(args.out, result)
    return args.out


main = command(Args, measure_faults, __doc__, "the figures are in {}")

if __name__ == "__main__":
    sys.exit(run(main))
