"""A command in a forked child of a process that has imported everything: it starts at once, and may be killed."""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink")
UNCOUNTED = "tfevents"  # logs are written by a thread, at any moment


@dataclass(frozen=True)
class Kill:
    """When a child is killed: before its n-th file event, from 1 on, or after some seconds; by default never."""

    event: int | None = None
    seconds: float | None = None


class FileEvents:
    """An audit hook that counts what a process changes below a directory, and kills it before one of these events.

    Libraries that write files without Python's `open` are seen when their files are renamed.
    """

    def __init__(self, directory: Path, kill_at: int | None, tell: Callable[[int], object]):
        self.root, self.kill_at, self.tell, self.count = f"{directory.resolve()}{os.sep}", kill_at, tell, 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Count an event; see `sys.addaudithook`."""
        if event not in CHANGES and not (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        if not self._is_inside(arguments[0], arguments[-1] if event in ("os.remove", "os.rmdir") else None):
            return
        self.count += 1
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.tell(self.count)

    def _is_inside(self, path: Any, folder: int | None) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        place = os.fsdecode(path)
        if folder is not None and folder >= 0:  # relative to an open folder
            with contextlib.suppress(OSError):
                place = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), place)
        return os.path.abspath(place).startswith(self.root) and UNCOUNTED not in place


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, negative for a signal; its file events; its seconds; what it printed."""

    code: int
    events: int
    seconds: float
    log: str


def run_in_child(main: Callable[[], int], directory: Path, kill: Kill = Kill()) -> Ended:
    """Run a command in a child process in a directory, which is made if it is missing; events are those below it."""
    directory = directory.resolve()  # the child changes its own
    directory.mkdir(parents=True, exist_ok=True)
    log = directory.with_name(f"{directory.name}.log")
    read, write = os.pipe()
    started, child = time.monotonic(), os.fork()
    if not child:
        os.close(read)
        _become_child(main, directory, log, kill, write)
    os.close(write)
    try:
        if kill.seconds is not None:
            _kill_after(child, kill.seconds)
        status = os.waitpid(child, 0)[1]
    except BaseException:  # this process is to end, and its child with it
        os.kill(child, signal.SIGKILL)
        raise
    with os.fdopen(read, "rb") as pipe:
        events = len(pipe.read())
    return Ended(os.waitstatus_to_exitcode(status), events, time.monotonic() - started, log.read_text(errors="replace"))


def _become_child(main: Callable[[], int], directory: Path, log: Path, kill: Kill, write: int) -> None:
    """Run the command and end the process, whatever happens."""
    code = 70
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
        os.chdir(directory)
        tqdm.set_lock(threading.RLock())  # its own is shared with later children, who would wait for a killed one
        sys.addaudithook(FileEvents(directory, kill.event, lambda _: os.write(write, b".")))
        code = main()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _kill_after(child: int, seconds: float) -> None:
    """Kill a child after some seconds, unless it has ended by then."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
