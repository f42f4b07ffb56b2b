"""One writer of an output: a second command that would write the same file or directory is refused.

The locks are files of this machine's temporary directory, so that nothing of them is left among a user's files.
"""

import contextlib
import getpass
import hashlib
import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from common.errors import UserError
from common.processes import is_main_process


@contextlib.contextmanager
def output_lock(out: Path, wait: bool = False) -> Iterator[None]:
    """Be the one process that writes `out` within the context; the main process locks for all of its launcher.

    Args:
        out: a file or a directory.
        wait: for another writer to end, instead of a `UserError`.
    """
    if not is_main_process():
        yield
        return
    lock = _lock(lock_file(out))
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise UserError(f"another command is writing {out}; wait for its end or choose another --out") from None
    try:
        yield
    finally:
        lock.release()


def output_of(args: Any) -> Path | None:
    """Return the output that a command's arguments name, `out` or that of a training's `run`, if there is one."""
    return getattr(args, "out", None) or getattr(getattr(args, "run", None), "out", None)


def lock_file(out: Path) -> Path:
    """Return the lock's file, the same for every name of an output."""
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()  # a user of a container may have no name
    folder = Path(tempfile.gettempdir()) / f"pvplay-locks-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{hashlib.sha256(str(Path(out).resolve()).encode()).hexdigest()[:32]}.lock"


@cache
def _lock(file: Path) -> FileLock:
    """Return this process's lock of a file, which it may take several times."""
    return FileLock(file)
