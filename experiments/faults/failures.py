"""Failures of the machine in the middle of a command: one line tells of each, and what was finished stays whole.

A disk that is full or read-only, a second run into the same folder, a reader while another process appends, a clock
that jumps, and no more memory. After each the same command is repeated with the failure gone; its files must then be
those of an unbroken run.
"""

import errno
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from agents import play
from agents.score_table import format_table
from common.errors import UserError
from envs.episodes import INFO, EpisodeDataset
from experiments.faults.conditions import (
    FailingFileEvents,
    can_mount,
    let_clock_jump,
    limit_memory,
    memory,
    scatter_times,
    small_disk,
)
from experiments.faults.kills import MAX_EXAMPLES, MAX_SECONDS, last_line
from experiments.faults.outputs import contents, differences, leftovers, torn_files
from experiments.faults.processes import Ended, FileEvents, Kill, run_in_child
from experiments.faults.tiny_commands import TinyCommand, prepare, tiny_commands
from experiments.report import read_results
from vlm.training import fit

COMMANDS = ("record", "clone", "pvp", "captions", "contrastive", "referring", "dagger", "ppo", "score", "play")
DISK_CASES = 3  # sizes of a disk, and file events from which on it is full
MEMORY_SHARES = (0.3, 0.8)  # of the memory that an unbroken run takes
FAULTS = ("untold", "torn", "hurt", "stuck", "lost", "doubled", "different", "left", "older", "unread")
OLDER = "an older checkpoint was chosen"
WAITING = "waiting"  # a file beside a run that waits for the other one
POLL_SECONDS = 0.005
PATIENT = Kill(seconds=MAX_SECONDS)
Case = tuple[str, Ended, dict[str, list[str]]]  # what was done, how the command ended, the paths of each fault
Row = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """A command, the directory that it runs in, and its unbroken run: its end, files, bytes and memory."""

    command: TinyCommand
    directory: Path
    unbroken: Ended
    whole: dict[str, Any]
    size: int
    memory: int
    mounts: bool

    @classmethod
    def of(cls, command: TinyCommand, directory: Path, mounts: bool) -> "Trial":
        """Run a command unbroken."""
        shutil.rmtree(directory, ignore_errors=True)
        taken = directory.with_name(f"{directory.name}.memory")
        unbroken = run_in_child(lambda: _run_and_tell_memory(command, taken), directory)
        if unbroken.code:
            raise RuntimeError(f"{command.name}, unbroken: {last_line(unbroken)}")
        size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
        return cls(command, directory, unbroken, contents(directory), size, int(taken.read_text()), mounts)

    def run(self, before: Callable[[], object] = lambda: None, kill: Kill = PATIENT) -> Ended:
        """Run the command after `before`, which is called in its process."""
        return run_in_child(lambda: (before(), self.command.run())[1], self.directory, kill)

    def repeat(self) -> dict[str, list[str]]:
        """Repeat the command; return how it differs from the unbroken run."""
        ended = self.run()
        faults = {"stuck": [last_line(ended)] if ended.code else []}
        return faults | differences(self.whole, contents(self.directory)) | {"left": leftovers(self.directory)}

    def events(self, cases: int) -> list[int]:
        """Return file events that are spread over the run."""
        return sorted({1 + self.unbroken.events * number // cases for number in range(cases)})


def _run_and_tell_memory(command: TinyCommand, file: Path) -> int:
    before, code = memory("VmSize"), command.run()
    file.write_text(str(memory("VmPeak") - before))
    return code


def untold(ended: Ended) -> list[str]:
    """Return the end of a command that failed with anything but one line and exit code 2."""
    lines = [line for line in re.split(r"[\r\n]+", ended.log) if "error: " in line]
    is_told = ended.code == 2 and len(lines) == 1 and "Traceback" not in ended.log
    if ended.code == 0 or is_told:
        return []
    errors = [line for line in ended.log.splitlines() if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return [f"exit {ended.code}: {errors[-1]}" if errors else last_line(ended)]


def fill_small_disk(trial: Trial) -> Iterator[Case]:
    """Run in a file system that is too small, which then grows."""
    for number in range(DISK_CASES):
        shutil.rmtree(trial.directory, ignore_errors=True)
        size = int(trial.size * (number + 0.5) / DISK_CASES)
        with small_disk(trial.directory, size) as remount:
            ended = trial.run(_need_no_space)
            faults = {"untold": untold(ended), "torn": torn_files(trial.directory)}
            remount("size=1g")
            yield f"{size} bytes", ended, faults | trial.repeat()


def _need_no_space() -> None:
    play.MIN_FREE_BYTES = 0  # else a play refuses a small disk before it begins


def fill_simulated_disk(trial: Trial) -> Iterator[Case]:
    """Let file events fail from the n-th on as on a full disk, which is then freed."""
    for event in trial.events(DISK_CASES):
        shutil.rmtree(trial.directory, ignore_errors=True)
        ended = trial.run(_hook(FailingFileEvents(trial.directory, event, errno.ENOSPC)))
        faults = {"untold": untold(ended), "torn": torn_files(trial.directory)}
        yield f"event {event}", ended, faults | trial.repeat()


def _hook(events: FileEvents) -> Callable[[], None]:
    return lambda: sys.addaudithook(events)


def forbid_writing(trial: Trial) -> Iterator[Case]:
    """Run in a read-only directory: an empty one, that of a killed run, and that of a finished one."""
    for when, event in (("empty", 0), ("after a kill", trial.unbroken.events // 2), ("finished", None)):
        shutil.rmtree(trial.directory, ignore_errors=True)
        with ExitStack() as stack:
            remount = stack.enter_context(small_disk(trial.directory)) if trial.mounts else None
            if event != 0:
                trial.run(kill=Kill(event=event))
            before = contents(trial.directory)
            if remount:
                remount("ro")
            simulated = FailingFileEvents(trial.directory, 1, errno.EROFS)
            ended = trial.run((lambda: None) if remount else _hook(simulated))
            faults = {"untold": untold(ended), "torn": torn_files(trial.directory)}
            faults["hurt"] = [
                name for paths in differences(before, contents(trial.directory)).values() for name in paths
            ]
            if remount:
                remount("rw")
            yield when, ended, faults | trial.repeat()


def run_twice(trial: Trial) -> Iterator[Case]:
    """Start the command again while it runs: the second is refused, or waits for nothing; the first is unhurt."""
    event = trial.unbroken.events // 2
    shutil.rmtree(trial.directory, ignore_errors=True)
    beside = trial.directory.with_name(f"{trial.directory.name}-second")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(trial.run, partial(_wait_before, event, trial.directory, beside))
        while not ((beside / WAITING).exists() or first.done()):
            time.sleep(POLL_SECONDS)
        second = run_in_child(partial(_run_in, trial), beside)
        (beside / WAITING).unlink(missing_ok=True)
        ended = first.result()
    faults = {"untold": untold(second) if second.code else ["it was not refused"]}
    faults["hurt"] = [last_line(ended)] if ended.code else []
    yield f"event {event}", second, faults | differences(trial.whole, contents(trial.directory))


def _run_in(trial: Trial) -> int:
    os.chdir(trial.directory)
    return trial.command.run()


def _wait_before(event: int, directory: Path, beside: Path) -> None:
    """Let this process wait before a file event until the other run has ended."""

    def wait(count: int) -> None:
        if count == event:
            (beside / WAITING).touch()
            while (beside / WAITING).exists():
                time.sleep(POLL_SECONDS)

    sys.addaudithook(FileEvents(directory, None, wait))


def let_clocks_jump(trial: Trial) -> Iterator[Case]:
    """Kill the command, change the times of its files, and repeat it while the clock jumps back and forth."""
    for event in (2 * trial.unbroken.events // 3, trial.unbroken.events):
        shutil.rmtree(trial.directory, ignore_errors=True)
        trial.run(let_clock_jump, Kill(event=event))
        scatter_times(trial.directory, event)
        ended = trial.run(_jump_and_watch)
        faults = {"untold": untold(ended), "stuck": [last_line(ended)] if ended.code else []}
        faults["older"] = [OLDER] if OLDER in ended.log else []
        yield f"event {event}", ended, faults | differences(trial.whole, contents(trial.directory))


def _jump_and_watch() -> None:
    """Let the clock jump, and print a line where a training resumes from another checkpoint than the newest."""
    choose = fit.newest_complete_checkpoint

    def chosen(directory: Path) -> Path | None:
        steps = {int(place.parent.name.split("-")[1]) for place in directory.glob("checkpoint-*/trainer_state.json")}
        found = choose(directory)
        if found != (directory / f"checkpoint-{max(steps)}" if steps else None):
            print(OLDER)
        return found

    fit.newest_complete_checkpoint = chosen
    let_clock_jump()


def with_checkpoints(command: TinyCommand) -> TinyCommand:
    """Return a training that keeps several checkpoints; other commands as they are."""
    if "--trainer" not in command.words:
        return command
    *words, flag, out = command.words
    return replace(command, words=(*words, "save_steps=1", "save_total_limit=3", flag, out))


def limit_memories(trial: Trial) -> Iterator[Case]:
    """Run with less memory than the command takes."""
    for share in MEMORY_SHARES:
        shutil.rmtree(trial.directory, ignore_errors=True)
        ended = trial.run(partial(limit_memory, int(trial.memory * share)))
        faults = {"untold": untold(ended), "torn": torn_files(trial.directory)}
        yield f"{share:.0%} of {trial.memory // 2**20} MiB", ended, faults | trial.repeat()


def read_while_appending(trial: Trial, read: Callable[[Path], int | None]) -> Row:
    """Read the output again and again while its command runs; return the row."""
    shutil.rmtree(trial.directory, ignore_errors=True)
    reads, longest, errors = 0, 0, []
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(trial.run)
        while not writer.done():
            try:
                found = read(trial.directory)
            except Exception as error:  # all that a reader may raise is a fault
                errors.append(f"read {reads}: {type(error).__name__}: {error}")
                found = None
            if found is not None and found < longest:
                errors.append(f"read {reads}: {found} entries after {longest}")
            reads, longest = reads + 1, max(longest, found or 0)
        ended = writer.result()
    row = {"fault": "reading while appending", "command": trial.command.name, "how": "real", "cases": reads}
    counts = {"unread": len(errors), "hurt": int(ended.code != 0), "entries": longest}
    return row | counts | {"examples": errors[:MAX_EXAMPLES]}


def read_episodes(directory: Path) -> int | None:
    """Return the number of episodes of a dataset, or None before the first; all frames are decoded."""
    if not (directory / "out" / INFO).is_file():
        return None
    try:
        data = EpisodeDataset(directory / "out")
    except UserError as error:
        if "holds no complete episode" in str(error):
            return None
        raise
    for row in range(len(data)):
        data.frame(row)
    return len(data.seeds)


def read_scores(directory: Path) -> int | None:
    """Return the number of rows of a result, or None before it is there, as the report and the table read it."""
    if not any(directory.glob("*.json")):
        return None
    (result,) = read_results(directory).values()
    format_table(result)
    return len(result["rows"])


def longer(command: TinyCommand) -> TinyCommand:
    """Return a recording or a scoring of more games, which appends more often."""
    words = " ".join(command.words).replace("--episodes 3", "--episodes 30").replace("--seeds 0 1", "--seeds 0 1 2 3")
    return replace(command, words=tuple(words.split()))


FAILURES: dict[str, Callable[[Trial], Iterator[Case]]] = {
    "disk full": fill_small_disk,
    "disk full, simulated": fill_simulated_disk,
    "read-only folder": forbid_writing,
    "two runs at once": run_twice,
    "clock jump": let_clocks_jump,
    "out of memory": limit_memories,
}
READERS = {"record": read_episodes, "score": read_scores}


def measure_failure(fault: str, trial: Trial) -> Row:
    """Return the row of a failure: its cases, how many made the command fail, and how often each fault came."""
    cases = list(FAILURES[fault](trial))
    simulated = fault.endswith("simulated") or (fault == "read-only folder" and not trial.mounts)
    row: Row = {"fault": fault, "command": trial.command.name, "how": "simulated" if simulated else "real"}
    row |= {"cases": len(cases), "failed": sum(ended.code != 0 for _, ended, _ in cases)}
    row |= {
        name: sum(bool(faults.get(name)) for *_, faults in cases) for name in FAULTS if any(name in c[2] for c in cases)
    }
    told = (
        f"{when}: {name}: {', '.join(paths[:3])}"
        for when, _, faults in cases
        for name, paths in faults.items()
        if paths
    )
    return row | {"examples": list(told)[:MAX_EXAMPLES]}


def measure_failures(work: Path, seed: int, names: tuple[str, ...] = COMMANDS) -> Iterator[Row]:
    """Yield a row for each command and failure; the seed is not used, since nothing is drawn."""
    commands, mounts = tiny_commands(prepare(work / "inputs")), can_mount(work / "mounted")
    for name in names:
        trial = Trial.of(commands[name], work / name, mounts)
        for fault in FAILURES if mounts else FAILURES.keys() - {"disk full"}:
            if fault == "clock jump" and (command := with_checkpoints(commands[name])) != commands[name]:
                yield measure_failure(fault, Trial.of(command, work / name, mounts))
            else:
                yield measure_failure(fault, trial)
    for name in [name for name in names if name in READERS]:
        yield read_while_appending(Trial.of(longer(commands[name]), work / name, mounts), READERS[name])
