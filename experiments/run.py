"""Named experiments: rows accumulate in a result file, and what is finished is not done again.

    python -m experiments.run pvp-nano
    python -m experiments.run refer-nano
    python -m experiments.run games-nano
    python -m experiments.run pvp-nano --seeds 0 --out runs/try.json

An experiment is a list of jobs, each told apart by a few words (its arm and its seed) and giving one row or more. A
job is finished when its rows are in the file; one that was interrupted goes on from its own checkpoint, so a run that
was killed is repeated to go on. Rows carry the commit, the device and the date that made them, since a file may be
filled over days. Beside the file lies a picture of what the models answered, where they are still there.
"""

import datetime
import difflib
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from PIL import Image

from common.command import run as run_command
from common.errors import UserError
from common.provenance import git_commit
from common.results import RESULTS, new_result, read_result, write_result
from experiments.studies import games_nano, pvp_nano, refer_nano
from experiments.studies.jobs import Job
from vlm.device import best_device, device_name


@dataclass(frozen=True)
class Experiment:
    """What a named run is made of.

    prepare: makes what its jobs share, where it is not there yet; jobs: its jobs, for seeds other than the published
    ones if there are any, at work in a directory; draw: a picture of what they have done there, if any.
    """

    prepare: Callable[[], None]
    jobs: Callable[[Sequence[int] | None, Path], list[Job]]
    draw: Callable[[Sequence[int] | None, Path], Image.Image | None] = lambda _seeds, _work: None


EXPERIMENTS = {
    "pvp-nano": Experiment(pvp_nano.prepare, pvp_nano.jobs, pvp_nano.draw),
    "refer-nano": Experiment(refer_nano.prepare, refer_nano.jobs, refer_nano.draw),
    "games-nano": Experiment(games_nano.prepare, games_nano.jobs),
}


@dataclass
class Args:
    """Run a named experiment, or what is left of it."""

    name: tyro.conf.Positional[str]
    """The experiment: pvp-nano, refer-nano or games-nano."""
    out: Path | None = None
    """The result file; experiments/results/NAME.json by default."""
    work: Path | None = None
    """Where its models and checkpoints go; runs/NAME by default."""
    seeds: tuple[int, ...] = ()
    """Seeds in place of the experiment's own."""
    limit: int = 0
    """Stop after this many unfinished jobs; 0 does them all."""
    processes: int = 2
    """Jobs at a time, each with its share of the cores; with more than one, each writes to a log of its own."""

    def __post_init__(self) -> None:
        if self.name not in EXPERIMENTS:
            near = difflib.get_close_matches(self.name, EXPERIMENTS, n=1, cutoff=0.0)[0]
            known = ", ".join(EXPERIMENTS)
            raise UserError(f"expected an experiment ({known}), got {self.name!r}; nearest: {near}")
        if self.limit < 0:
            raise UserError(f"--limit must be at least 0, got {self.limit}")
        if self.processes < 1:
            raise UserError(f"--processes must be at least 1, got {self.processes}")


def is_done(job: Job, rows: list[dict[str, Any]]) -> bool:
    """Return whether the rows of a job are among rows."""
    return any(all(row.get(name) == value for name, value in job.key.items()) for row in rows)


def format_duration(seconds: float) -> str:
    """Return a span of time in words: 2 h 05 min, 7 min."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


JobResult = tuple[Job, list[dict[str, Any]], float]  # a job, its rows, its seconds


def run_job(job: Job) -> JobResult:
    """Do a job here and now."""
    began = time.monotonic()
    return job, job.run(), time.monotonic() - began


def exit_with_parent(parent: int) -> None:
    """Watch from a thread, and end this process when the one that began it has ended, by a kill say."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_in_subprocess(job: Job, log: Path, threads: int, parent: int) -> JobResult:
    """Do a job in a process of its own, on so many threads; what it says goes to a file."""
    exit_with_parent(parent)
    torch.set_num_threads(threads)
    multiprocessing.set_start_method(None, force=True)  # what this process starts, it starts as any other would
    with log.open("a") as file, redirect_stdout(file), redirect_stderr(file):
        return run_job(job)


def run_parallel(jobs: list[Job], processes: int, logs: Path, say: Callable[[str], None]) -> Iterator[JobResult]:
    """Do jobs, so many at a time, and yield each as it ends; if some fail, the first error is raised after the last."""
    logs.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // processes)
    spawn = multiprocessing.get_context("spawn")  # a process that was forked from one with threads may hang
    errors: list[BaseException] = []
    with ProcessPoolExecutor(processes, mp_context=spawn, max_tasks_per_child=1) as pool:
        names = ["-".join(str(value) for value in job.key.values()) for job in jobs]
        started = [
            pool.submit(run_in_subprocess, job, logs / f"{name}.log", threads, os.getpid())
            for job, name in zip(jobs, names, strict=True)
        ]
        say(f"{processes} at a time; what they say is in {logs}/*.log")
        try:
            for future in as_completed(started):
                if error := future.exception():
                    errors.append(error)
                    say(f"{names[started.index(future)]} failed: {error}")
                else:
                    yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if errors:
        raise errors[0]


def run_jobs(
    name: str,
    jobs: list[Job],
    file: Path,
    limit: int = 0,
    processes: int = 1,
    logs: Path = Path("runs"),
    say: Callable[[str], None] = print,
) -> int:
    """Do the jobs that a result file lacks, writing their rows as they come; return how many were done."""
    seeds = sorted({job.key["seed"] for job in jobs if "seed" in job.key})
    result = read_result(file) if file.exists() else new_result(name, None, seeds)
    if result["name"] != name:
        raise UserError(f"{file} holds {result['name']}, expected {name}")
    left = [job for job in jobs if not is_done(job, result["rows"])]
    expected = format_duration(sum(job.seconds for job in left) / processes)
    say(f"{name}: {len(jobs) - len(left)} of {len(jobs)} jobs are done; the rest takes about {expected} on 2 cores")
    left = left[:limit] if limit else left
    done = run_parallel(left, processes, logs, say) if processes > 1 else (run_job(job) for job in left)
    for number, (job, rows, seconds) in enumerate(done, 1):
        say(f"{number} of {len(left)}: {job.title}, {format_duration(seconds)}")
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        origin = {"commit": git_commit(), "device": device_name(best_device()), "date": now}
        result["rows"] += [{**job.key, **row, **origin} for row in rows]
        result["seconds"] += seconds
        result["seeds"] = sorted({*result["seeds"], *seeds})
        write_result(file, result)
    return len(left)


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    file, work = args.out or RESULTS / f"{args.name}.json", args.work or Path("runs") / args.name
    experiment = EXPERIMENTS[args.name]
    experiment.prepare()
    run_jobs(args.name, experiment.jobs(args.seeds or None, work), file, args.limit, args.processes, work)
    print(f"the rows are in {file}")
    if picture := experiment.draw(args.seeds or None, work):
        picture.save(file.with_suffix(".png"), optimize=True)
        print(f"a picture is in {file.with_suffix('.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
