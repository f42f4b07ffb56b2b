"""Mutations: files and requests that are damaged at random are opened, and what they do is counted.

None may run code, write outside the directory of the command, end in a traceback, take long or much memory, or reach
the terminal with a control sequence. It is refused in one line, or read.
"""

import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from experiments.faults.conditions import memory
from experiments.faults.corruption import CANARY, CLEAR, TITLE
from experiments.faults.formats import TARGET, Format
from experiments.faults.processes import CHANGES, WRITING, redirect, start_child, wait_or_kill

FAULTS = ("executions", "escapes", "tracebacks", "slow", "memory", "control_sequences")
RUNNING = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "os.startfile")
MAX_SECONDS = 30.0
MAX_BYTES = 2**30  # more than the undamaged file takes
MAX_EXAMPLES = 5
RAW = tuple(text.encode() for text in (TITLE[:4], CLEAR, TITLE[-1]))
DEVICES = ("/dev/", "/proc/")
PEAK = "peak "  # before the bytes of memory that a child took at most


@dataclass(frozen=True)
class Opened:
    """How a child ended that opened a file: its exit code, seconds, peak of memory, audited events and output."""

    code: int
    seconds: float
    peak_bytes: int
    events: tuple[str, ...]
    output: bytes
    errors: bytes
    is_canary: bool


class Watch:
    """An audit hook that tells what runs another program or a file's code, and what changes files outside a folder."""

    def __init__(self, folder: Path, pipe: int):
        self.root, self.pipe = f"{folder.resolve()}{os.sep}", pipe

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """See `sys.addaudithook`."""
        if event in RUNNING:
            self.tell("executions", event)
        elif event == "exec" and (file := arguments[0].co_filename)[:1] != "<" and self.is_inside(file):
            self.tell("executions", file)  # generated code has a name such as <string>
        elif event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
            paths = arguments[:2] if event in ("os.rename", "os.link", "os.symlink") else arguments[:1]
            for path in paths:
                if isinstance(path, (str, bytes, os.PathLike)) and not self.is_inside(path):
                    self.tell("escapes", f"{event} {os.fsdecode(path)}")

    def is_inside(self, path: Any) -> bool:
        """Return whether a path is below the folder, or a device."""
        place = os.path.abspath(os.fsdecode(path))
        return f"{place}{os.sep}".startswith(self.root) or place.startswith(DEVICES)

    def tell(self, fault: str, what: str) -> None:
        """Send a line to the parent."""
        os.write(self.pipe, f"{fault} {what!a:.300}\n".encode())


def open_in_child(form: Format, folder: Path) -> Opened:
    """Open the example in a folder by a child process, which is killed after `MAX_SECONDS`."""
    logs = folder.with_name(f"{folder.name}.out"), folder.with_name(f"{folder.name}.err")
    child, told = start_child(partial(_open, form, folder, logs))
    started, peaks = time.monotonic(), list[int]()
    code = wait_or_kill(child, MAX_SECONDS, lambda: peaks.append(memory("VmHWM", child.pid)))
    seconds, events = time.monotonic() - started, tuple(dict.fromkeys(told().decode().splitlines()))
    peaks += [int(event.removeprefix(PEAK)) for event in events if event.startswith(PEAK)]
    events = tuple(event for event in events if not event.startswith(PEAK))
    output, errors = (log.read_bytes() for log in logs)
    return Opened(code, seconds, max(peaks, default=0), events, output, errors, (folder / CANARY).exists())


def _open(form: Format, folder: Path, logs: tuple[Path, Path], pipe: int) -> int:
    """Open the example in a folder in this process; tell the pipe what is amiss, and at last the peak of memory."""
    redirect(*logs)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(folder)
    tempfile.tempdir = datasets.config.HF_DATASETS_CACHE = str(folder / "temporary")
    sys.dont_write_bytecode = True
    sys.addaudithook(Watch(folder, pipe))
    try:
        return form.open(Path(TARGET))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os.write(pipe, f"{PEAK}{memory('VmHWM')}\n".encode())


def faults_of(opened: Opened, normal_bytes: int) -> set[str]:
    """Return the names of the faults of an opened file."""
    found = {event.partition(" ")[0] for event in opened.events}
    if opened.is_canary:
        found.add("executions")
    if opened.seconds > MAX_SECONDS:
        found.add("slow")
    elif opened.code not in (0, 2) or b"Traceback" in opened.errors + opened.output or _is_silent(opened):
        found.add("tracebacks")
    if opened.peak_bytes > normal_bytes + MAX_BYTES:
        found.add("memory")
    if any(text in opened.output + opened.errors for text in RAW):
        found.add("control_sequences")
    return found


def _is_silent(opened: Opened) -> bool:
    """Return whether a refusal has no line that tells why; that of a wrong flag is tyro's own."""
    return opened.code == 2 and not any(text in opened.errors for text in (b"error: ", b"For full helptext"))


def mutate(form: Format, example: Path, folder: Path, seed: int) -> str:
    """Copy an example into a folder and damage it; return what was done."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "temporary").mkdir(parents=True)
    shutil.copytree(example, folder / TARGET)
    return form.damage(folder / TARGET, np.random.default_rng([seed, *form.name.encode()]))


def measure(form: Format, work: Path, seed: int, count: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield the row of a format: how many mutations were refused or read, and the faults, with examples.

    The seed of the n-th mutation is `seed` + n; there are `count`, by default as many as the format needs.
    """
    example, folder = work / "examples" / form.name, work / form.name
    shutil.rmtree(example, ignore_errors=True)
    example.parent.mkdir(parents=True, exist_ok=True)
    form.prepare(example)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "temporary").mkdir(parents=True)
    shutil.copytree(example, folder / TARGET)
    normal = open_in_child(form, folder)
    if normal.code or faults_of(normal, normal.peak_bytes):
        raise RuntimeError(f"{form.name}, undamaged: exit {normal.code}, {normal.events}, {normal.errors[-2000:]!r}")
    counts, examples = Counter[str](), []
    slowest = peak = 0.0
    for number in range(seed, seed + (form.count if count is None else count)):
        done = mutate(form, example, folder, number)
        opened = open_in_child(form, folder)
        slowest, peak = max(slowest, opened.seconds), max(peak, opened.peak_bytes - normal.peak_bytes)
        faults = faults_of(opened, normal.peak_bytes)
        counts.update(faults or {"refused" if opened.code == 2 else "accepted"})
        if faults:
            examples.append(f"seed {number}: {', '.join(sorted(faults))}: {done}: {_tell(opened)}")
    row: dict[str, Any] = {name: counts[name] for name in ("refused", "accepted", *FAULTS)}
    row |= {"slowest_seconds": round(slowest, 1), "most_additional_mb": round(peak / 2**20)}
    yield row | {"examples": examples[:MAX_EXAMPLES]}


def _tell(opened: Opened) -> str:
    """Return the end of what an opened file led to, in one line of ASCII."""
    lines = opened.errors.decode(errors="replace").strip().splitlines() or [""]
    return json.dumps(f"exit {opened.code}; {'; '.join(opened.events)}; {lines[-1]}")[:500]
