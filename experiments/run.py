"""Named experiments: rows accumulate in a result file, and finished jobs are not repeated.

    python -m experiments.run optimizers
    python -m experiments.run pvp-levers
    python -m experiments.run pvp-nano
    python -m experiments.run reader
    python -m experiments.run one-model
    python -m experiments.run refer-nano
    python -m experiments.run games-nano
    python -m experiments.run model-classes --processes 1
    python -m experiments.run eight-games --processes 1
    python -m experiments.run from-rewards
    python -m experiments.run pvp-nano --seeds 0 --out runs/try.json

An experiment is a list of jobs. A key (its condition and seed, say) identifies a job, and a job gives one row or more.
A job is finished when its rows are in the file; an interrupted one resumes from its own checkpoint, so repeat the
command to resume a killed run. Rows carry the commit, device and date that made them, since a file may fill over days.
"""

import datetime
import multiprocessing
import os
import signal
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

from common.command import command, require_at_least
from common.command import run as run_command
from common.errors import UserError, nearest
from common.files import atomic_file
from common.interruption import interruptible
from common.output_lock import output_lock
from common.outputs import require_output_files
from common.provenance import changed, git_commit
from common.results import RESULTS, new_result, read_result, write_result
from experiments.model_classes import jobs as model_classes
from experiments.studies import (
    eight_games,
    from_rewards,
    games_nano,
    one_model,
    optimizers,
    pvp_levers,
    pvp_nano,
    reader,
    refer_nano,
)
from experiments.studies.jobs import Job
from vlm.device import best_device, device_name


@dataclass(frozen=True)
class Experiment:
    """A named experiment. Seeds are the published ones if None; checkpoints are in the directory."""

    prepare: Callable[[], None]  # makes the inputs that its jobs share
    jobs: Callable[[Sequence[int] | None, Path], list[Job]]
    draw: Callable[[Sequence[int] | None, Path], Image.Image | None] = lambda _seeds, _work: None  # their predictions


EXPERIMENTS = {
    "optimizers": Experiment(optimizers.prepare, optimizers.jobs),
    "pvp-levers": Experiment(pvp_levers.prepare, pvp_levers.jobs),
    "pvp-nano": Experiment(pvp_nano.prepare, pvp_nano.jobs, pvp_nano.draw),
    "reader": Experiment(reader.prepare, reader.jobs, reader.draw),
    "one-model": Experiment(one_model.prepare, one_model.jobs, one_model.draw),
    "refer-nano": Experiment(refer_nano.prepare, refer_nano.jobs, refer_nano.draw),
    "games-nano": Experiment(games_nano.prepare, games_nano.jobs),
    "model-classes": Experiment(model_classes.prepare, model_classes.jobs),
    "eight-games": Experiment(eight_games.prepare, eight_games.jobs),
    "from-rewards": Experiment(from_rewards.prepare, from_rewards.jobs, from_rewards.draw),
}


@dataclass
class Args:
    """Run a named experiment, or resume it."""

    name: tyro.conf.Positional[str]
    """The experiment: optimizers, pvp-levers, pvp-nano, reader, one-model, refer-nano, games-nano, model-classes,
    eight-games or from-rewards."""
    out: Path | None = None
    """The result file; experiments/results/NAME.json by default."""
    work: Path | None = None
    """Directory of its models and checkpoints; runs/NAME by default."""
    seeds: tuple[int, ...] = ()
    """Training seeds instead of the experiment's own."""
    limit: int = 0
    """Stop after this many unfinished jobs; 0 runs all."""
    processes: int = 2
    """Jobs in parallel, which divide the cores; with more than one, each writes its own log file."""

    def __post_init__(self) -> None:
        if self.name not in EXPERIMENTS:
            known, near = ", ".join(EXPERIMENTS), nearest(self.name, EXPERIMENTS)
            raise UserError(f"expected an experiment ({known}), got {self.name!r}; nearest: {near}")
        require_at_least(self, 0, "limit")
        require_at_least(self, 1, "processes")


def is_done(job: Job, rows: list[dict[str, Any]]) -> bool:
    """Return whether the file holds rows of a job."""
    return any(all(row.get(name) == value for name, value in job.key.items()) for row in rows)


def format_duration(seconds: float) -> str:
    """Return a duration in words: 2 h 05 min, 7 min."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


JobResult = tuple[Job, list[dict[str, Any]], float]  # a job, its rows, its seconds


def run_job(job: Job) -> JobResult:
    """Run a job in this process."""
    started = time.monotonic()
    return job, list(job.run()), time.monotonic() - started


def run_in_subprocess(job: Job, log_file: Path, threads: int, parent: int) -> JobResult:
    """Run a job in a worker process on `threads` threads; its output goes to a file."""

    def exit_with_parent() -> None:  # which may be killed
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    multiprocessing.set_start_method(None, force=True)  # this process may start its own with the default method
    with interruptible(), log_file.open("a") as file, redirect_stdout(file), redirect_stderr(file):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent as well, which asks for the end
        return run_job(job)


def run_parallel(jobs: list[Job], processes: int, logs: Path, log: Callable[[str], None]) -> Iterator[JobResult]:
    """Run jobs in parallel and yield each as it ends; if some fail, raise the first error after the last job."""
    logs.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // processes)
    spawn = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    errors: list[BaseException] = []
    with ProcessPoolExecutor(processes, mp_context=spawn, max_tasks_per_child=1) as pool:
        names = {}
        for job in jobs:
            name = "-".join(str(value) for value in job.key.values())
            names[pool.submit(run_in_subprocess, job, logs / f"{name}.log", threads, os.getpid())] = name
        log(f"{processes} in parallel; their output is in {logs}/*.log")
        try:
            for future in as_completed(names):
                if error := future.exception():
                    errors.append(error)
                    log(f"{names[future]} failed: {error}")
                else:
                    yield future.result()
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()  # it saves first
            pool.shutdown(cancel_futures=True)
            raise
    if errors:
        raise errors[0]


def open_result(name: str, file: Path, seeds: list[int]) -> dict[str, Any]:
    """Return the result of a file, or a new one if there is none; `UserError` for that of another experiment."""
    result = new_result(name, None, seeds)
    if not file.exists():
        return result
    found = read_result(file)
    if found["name"] != name:
        raise UserError(f"{file} holds {found['name']}, expected {name}")
    seeds = sorted({*found["seeds"], *seeds})  # the command is the one that goes on, the rest that of the start
    return {**found, "command": result["command"], "seeds": seeds}


def row_provenance() -> dict[str, Any]:
    """Return what tells where a row comes from, since a file may fill over days."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    device = device_name(best_device())
    return {"commit": git_commit(), "dirty": changed(), "device": device, "date": now}


def run_jobs(
    name: str,
    jobs: list[Job],
    file: Path,
    limit: int = 0,
    processes: int = 1,
    logs: Path = Path("runs"),
    log: Callable[[str], None] = print,
) -> int:
    """Run the jobs that a result file lacks and write their rows as they come; return the number of jobs run."""
    seeds = sorted({job.key["seed"] for job in jobs if "seed" in job.key})
    result = open_result(name, file, seeds)
    missing = [job for job in jobs if not is_done(job, result["rows"])]
    expected = format_duration(sum(job.seconds for job in missing) / processes)
    log(f"{name}: {len(jobs) - len(missing)} of {len(jobs)} jobs are done; the rest takes about {expected} on 2 cores")
    missing = missing[:limit] if limit else missing
    done = run_parallel(missing, processes, logs, log) if processes > 1 else (run_job(job) for job in missing)
    for number, (job, rows, seconds) in enumerate(done, 1):
        log(f"{number} of {len(missing)}: {job.title}, {format_duration(seconds)}")
        provenance = row_provenance()
        result["rows"] += [{**job.key, **row, **provenance} for row in rows]
        result["seconds"] += seconds
        write_result(file, result)
    return len(missing)


def run_experiment(args: Args) -> Path:
    """Run the jobs that are missing; return the result file. A picture is beside it where the experiment draws one."""
    file, work = args.out or RESULTS / f"{args.name}.json", args.work or Path("runs") / args.name
    experiment, picture_file = EXPERIMENTS[args.name], file.with_suffix(".png")
    require_output_files([file, picture_file], own=file)
    with output_lock(file), output_lock(work):
        experiment.prepare()
        run_jobs(args.name, experiment.jobs(args.seeds or None, work), file, args.limit, args.processes, work)
        picture = experiment.draw(args.seeds or None, work)
    if picture:
        with atomic_file(picture_file) as temporary:
            picture.save(temporary, optimize=True)
        print(f"a picture is in {picture_file}")
    return file


main = command(Args, run_experiment, __doc__, "the rows are in {}")


if __name__ == "__main__":
    sys.exit(run_command(main))
