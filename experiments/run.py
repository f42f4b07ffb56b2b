"""Named experiments: rows accumulate in a result file, and what is finished is not done again.

    python -m experiments.run pvp-nano
    python -m experiments.run pvp-nano --seeds 0 --out runs/try.json

An experiment is a list of jobs, each told apart by a few words (its arm and its seed) and giving one row or more. A
job is finished when its rows are in the file; one that was interrupted goes on from its own checkpoint. Rows carry the
commit and the date that made them, since a file may be filled over days.
"""

import datetime
import difflib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import tyro

from agents.command import run as run_command
from agents.results import new_result, read_result, write_result
from envs.errors import EnvsError
from experiments import pvp_nano
from experiments.jobs import Job
from vlm.provenance import git_commit

RESULTS = Path(__file__).parent / "results"


class Experiment(Protocol):
    """What a named run is made of."""

    def __call__(self, seeds: Sequence[int] | None, work: Path) -> list[Job]:
        """Return the jobs, for seeds other than the published ones if there are any, at work in a directory."""
        ...


EXPERIMENTS: dict[str, Experiment] = {"pvp-nano": pvp_nano.jobs}


@dataclass
class Args:
    """Run a named experiment, or what is left of it."""

    name: tyro.conf.Positional[str]
    """The experiment: pvp-nano."""
    out: Path | None = None
    """The result file; experiments/results/NAME.json by default."""
    work: Path | None = None
    """Where its models and checkpoints go; runs/NAME by default."""
    seeds: tuple[int, ...] = ()
    """Seeds in place of the experiment's own."""
    limit: int = 0
    """Stop after this many unfinished jobs; 0 does them all."""

    def __post_init__(self) -> None:
        if self.name not in EXPERIMENTS:
            near = difflib.get_close_matches(self.name, EXPERIMENTS, n=1, cutoff=0.0)[0]
            known = ", ".join(EXPERIMENTS)
            raise EnvsError(f"expected an experiment ({known}), got {self.name!r}; nearest: {near}")
        if self.limit < 0:
            raise EnvsError(f"--limit must be at least 0, got {self.limit}")


def is_done(job: Job, rows: list[dict[str, Any]]) -> bool:
    """Return whether the rows of a job are among rows."""
    return any(all(row.get(name) == value for name, value in job.key.items()) for row in rows)


def clock(seconds: float) -> str:
    """Return a span of time in words: 2 h 05 min, 7 min."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def run_jobs(name: str, jobs: list[Job], file: Path, limit: int = 0, say: Callable[[str], None] = print) -> int:
    """Do the jobs that a result file lacks, writing their rows as they come; return how many were done."""
    seeds = sorted({job.key["seed"] for job in jobs if "seed" in job.key})
    result = read_result(file) if file.exists() else new_result(name, None, seeds)
    if result["name"] != name:
        raise EnvsError(f"{file} holds {result['name']}, expected {name}")
    left = [job for job in jobs if not is_done(job, result["rows"])]
    expected = clock(sum(job.seconds for job in left))
    say(f"{name}: {len(jobs) - len(left)} of {len(jobs)} jobs are done; the rest takes about {expected} on 2 cores")
    left = left[:limit] if limit else left
    for number, job in enumerate(left, 1):
        say(f"{number} of {len(left)}: {job.title}, about {clock(job.seconds)}")
        began = time.monotonic()
        rows = job.run()
        seconds = time.monotonic() - began
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        result["rows"] += [{**job.key, **row, "commit": git_commit(), "date": now} for row in rows]
        result["seconds"] += seconds
        result["seeds"] = sorted({*result["seeds"], *seeds})
        write_result(file, result)
    return len(left)


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    file, work = args.out or RESULTS / f"{args.name}.json", args.work or Path("runs") / args.name
    jobs = EXPERIMENTS[args.name](args.seeds or None, work)
    run_jobs(args.name, jobs, file, args.limit)
    print(f"the rows are in {file}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
