"""A command in a child process that starts at once, since it is a fork of a server that has imported everything.

The server runs nothing itself. A fork of the process that measures would lack its threads, those of OpenVINO and of
Arrow among them, and crash now and then.
"""

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import cloudpickle

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink")
UNCOUNTED = "tfevents"  # logs are written by a thread, at any moment
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["experiments.faults.formats", "experiments.faults.tiny_commands"])


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
    """Run a command in a child process in a directory, which is made if it is missing; events are those below it.

    The child has this process's environment and a copy of what `main` refers to.
    """
    directory = directory.resolve()  # the child changes its own
    directory.mkdir(parents=True, exist_ok=True)
    log = directory.with_name(f"{directory.name}.log")
    child, told = start_child(partial(_run_watched, main, directory, log, kill.event))
    started = time.monotonic()
    code = wait_or_kill(child, kill.seconds)
    return Ended(code, len(told()), time.monotonic() - started, log.read_text(errors="replace"))


def start_child(main: Callable[[int], int]) -> tuple[BaseProcess, Callable[[], bytes]]:
    """Run a function in a child, which gets a file descriptor; return the child, and what returns the bytes written."""
    read, write = SERVER.Pipe(duplex=False)
    child = SERVER.Process(target=_call_and_exit, args=(cloudpickle.dumps(main), dict(os.environ), write))
    child.start()
    write.close()

    def told() -> bytes:
        with os.fdopen(os.dup(read.fileno()), "rb") as pipe:
            return pipe.read()

    return child, told


def wait_or_kill(child: BaseProcess, seconds: float | None, before_kill: Callable[[], object] = lambda: None) -> int:
    """Return the exit code of a child; it is killed after some seconds, and when this process is to end."""
    try:
        child.join(seconds)
        if child.exitcode is None:
            before_kill()
    finally:
        child.kill()
        child.join()
    assert child.exitcode is not None
    return child.exitcode


def _call_and_exit(main: bytes, environment: dict[str, str], write: Connection) -> None:
    """Call a function and end the process, whatever happens."""
    code = 70
    try:
        faulthandler.enable()  # a crash of native code tells where
        os.environ.update(environment)
        code = cloudpickle.loads(main)(write.fileno())
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _run_watched(main: Callable[[], int], directory: Path, log: Path, kill_at: int | None, pipe: int) -> int:
    redirect(log, log)
    os.chdir(directory)
    sys.addaudithook(FileEvents(directory, kill_at, lambda _: os.write(pipe, b".")))
    return main()


def redirect(output: Path, errors: Path) -> None:
    """Write what this process prints to files, which may be one, line by line."""
    files = {path: os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for path in (output, errors)}
    for stream, path in enumerate((output, errors), 1):
        os.dup2(files[path], stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
