"""What faults do to every kind of command, at the smallest numbers.

    python -m experiments.faults
    python -m experiments.faults --parts kills --commands record ppo --every 5 --moments 10 --out runs/faults.json

kills: each command runs once unbroken, then dies before each of its file events and at random moments; after every kill
the same command is repeated to its end. A row counts the kills, and how many left a torn file, were refused when
repeated (stuck), lost, doubled or changed a file, or left a hidden one behind. All is well where all of these are 0.

mutations: files of every format that others may send, and requests, are damaged at random and opened. A row counts how
many were refused in one line or read, and how many ran code, wrote outside the working directory, ended in a traceback,
took more than 30 s or 1 GB, or printed a control sequence.

failures: the disk fills up, a folder is read-only, two runs meet in one folder, the clock jumps, memory ends. A row
counts what was not said in one line, what was not whole afterwards, and what a repeat did not make good.

determinism: the same command twice, and 1 and 12 games at once; the decisions in which the engines differ.

load: 64 games at once for 10 hours of their time: the growth of memory and of open files.

Rows accumulate: repeat the command to resume a killed run. Rows of other settings are kept beside.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from common.command import command, require_at_least, run
from common.errors import UserError, nearest
from common.output_lock import output_lock
from common.outputs import require_output_files
from common.results import RESULTS
from experiments.faults import mutations
from experiments.faults.determinism import measure_determinism
from experiments.faults.failures import measure_failures
from experiments.faults.formats import FORMATS
from experiments.faults.kills import measure
from experiments.faults.load import measure_load
from experiments.faults.parts import Row, run_jobs
from experiments.faults.tiny_commands import LINES, prepare, tiny_commands
from experiments.studies.jobs import Job


@dataclass
class Args:
    """Break commands and repeat them."""

    out: Path = RESULTS / "faults.json"
    """The result JSON; an existing one is resumed."""
    work: Path = Path("runs/faults")
    """The directory that the commands write into; what it holds is replaced."""
    parts: tuple[str, ...] = ()
    """The parts; by default all."""
    commands: tuple[str, ...] = ()
    """The commands that are killed; by default all."""
    every: int = 1
    """Kill before every n-th file event."""
    moments: int = 50
    """Kills at random moments of each command."""
    mutations: int | None = None
    """Mutations of each format; by default as many as it needs."""
    seed: int = 0
    """Seed of all that is random."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "every", "mutations")
        require_at_least(self, 0, "moments", "seed")
        for flag, given, choices in (("parts", self.parts, PARTS), ("commands", self.commands, LINES)):
            for name in given:
                if name not in choices:
                    known, near = ", ".join(choices), nearest(name, choices)
                    raise UserError(f"expected --{flag} {known}, got {name!r}; nearest: {near}")


def kill_jobs(args: Args) -> Iterator[Job]:
    """Yield a job for each command."""
    commands = tiny_commands(prepare(args.work / "inputs"))
    for name in args.commands or commands:
        key = {"fault": "kill", "command": name, "every": args.every, "moments": args.moments, "seed": args.seed}
        yield Job(key, 0, partial(measure, commands[name], args.work, args.every, args.moments, args.seed))


def streamed(part: str, measure: Callable[[Path, int], Iterator[Row]]) -> Callable[[Args], Iterator[Job]]:
    """Return the jobs of a part that yields its rows one after the other: one job."""

    def jobs(args: Args) -> Iterator[Job]:
        yield Job({"part": part, "seed": args.seed}, 0, partial(measure, args.work / part, args.seed))

    return jobs


def mutation_jobs(args: Args) -> Iterator[Job]:
    """Yield a job for each format."""
    for name, form in FORMATS.items():
        count = args.mutations or form.count
        key = {"fault": "mutation", "format": name, "mutations": count, "seed": args.seed}
        yield Job(key, 0, partial(mutations.measure, form, args.work / "mutations", args.seed, count))


PARTS: dict[str, Callable[[Args], Iterator[Job]]] = {
    "kills": kill_jobs,
    "mutations": mutation_jobs,
    "failures": streamed("failures", measure_failures),
    "determinism": streamed("determinism", measure_determinism),
    "load": streamed("load", measure_load),
}


def measure_faults(args: Args) -> Path:
    """Measure what the result file lacks; return the file."""
    require_output_files([args.out])
    args = replace(args, work=args.work.resolve())  # the children change their directory
    with output_lock(args.work):
        for part in args.parts or PARTS:
            for row in run_jobs("faults", PARTS[part](args), args.out, [args.seed]):
                print(", ".join(f"{name} {value}" for name, value in row.items() if is_figure(value)), flush=True)
    return args.out


def is_figure(value: object) -> bool:
    """Return whether a row's value is short enough to print."""
    return isinstance(value, str | int | float) and not isinstance(value, bool)


main = command(Args, measure_faults, __doc__, "the figures are in {}")

if __name__ == "__main__":
    sys.exit(run(main))
