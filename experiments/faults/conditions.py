"""What a machine may do to a process: a full or read-only disk, little memory, a clock that jumps.

The disks are real, small file systems where this process may mount one, else simulated in the process.
"""

import contextlib
import errno
import itertools
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.faults.processes import FileEvents

REMOVALS = ("os.remove", "os.rmdir")
ROOM = 2**30  # bytes of a disk with enough space
YEAR = 365 * 24 * 3600.0
PAGE = resource.getpagesize()
BUSY_TRIES, BUSY_SECONDS = 20, 0.2


class FailingFileEvents(FileEvents):
    """An audit hook that lets file events below a directory fail from the n-th on; a full disk still removes."""

    def __init__(self, directory: Path, first: int, number: int):
        super().__init__(directory, None, self._fail)
        self.first, self.number = first, number

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count an event; see `sys.addaudithook`."""
        if event not in REMOVALS or self.number == errno.EROFS:
            super().__call__(event, arguments)

    def _fail(self, count: int) -> None:
        if count >= self.first:
            raise OSError(self.number, os.strerror(self.number))


def can_mount(directory: Path) -> bool:
    """Return whether this process may mount file systems."""
    if os.geteuid():
        return False
    try:
        with small_disk(directory):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def small_disk(directory: Path, size: int = ROOM) -> Iterator[Callable[[str], None]]:
    """Mount an empty file system of a size at a directory; yield a function that mounts it anew with other options."""
    directory.mkdir(parents=True, exist_ok=True)
    while directory.is_mount():  # left by a killed process
        _run("umount", "-l", str(directory))
    _run("mount", "-t", "tmpfs", "-o", f"size={max(size, PAGE)}", "tmpfs", str(directory))
    try:
        yield lambda options: _run("mount", "-o", f"remount,{options}", str(directory))
    finally:
        _run("umount", "-l", str(directory))


def _run(*words: str) -> None:
    """Run a program; a disk is busy while an encoder that lost its parent closes its file."""
    for _ in range(BUSY_TRIES):
        if not subprocess.run(words, capture_output=True).returncode:
            return
        time.sleep(BUSY_SECONDS)
    raise OSError(errno.EBUSY, f"{words[0]} failed", words[-1])


def memory(name: str, process: int | None = None) -> int:
    """Return bytes of memory of a process, by default this one: VmSize, VmPeak, VmRSS or VmHWM, its peak."""
    lines = Path(f"/proc/{process or 'self'}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def limit_memory(extra: int) -> None:
    """Let this process have so many bytes more than it has."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + extra, hard))


def let_clock_jump(every: int = 7) -> None:
    """Let `time.time` of this process jump two years back or forth at every n-th call."""
    now, calls = time.time, itertools.count()
    time.time = lambda: now() + (YEAR if next(calls) // every % 2 else -YEAR)


def scatter_times(directory: Path, seed: int) -> None:
    """Give the files below a directory, and itself, times in reverse order, some of them in the future."""
    paths = sorted([directory, *directory.rglob("*")], key=lambda path: path.lstat().st_mtime, reverse=True)
    start = time.time() - YEAR
    for number, path in enumerate(paths):
        moment = start + (number + seed % 7) * 2 * YEAR / len(paths)
        os.utime(path, (moment, moment), follow_symlinks=False)
