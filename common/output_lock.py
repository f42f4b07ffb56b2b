"""One writer of an output: a second command that would write the same file or directory is refused."""

import contextlib
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
        out: a file or a directory, which is made if it is missing, and removed if nothing is written into it.
        wait: for another writer to end, instead of a `UserError`.
    """
    if not is_main_process():
        yield
        return
    file = lock_file(out)
    made = [parent for parent in file.parents if not parent.exists()]
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock(file)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise UserError(f"another command is writing {out}; wait for its end or choose another --out") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # a directory that holds more stays
            if made and [entry.name for entry in made[0].rglob("*") if not entry.is_dir()] == [file.name]:
                file.unlink()
                for parent in made:
                    parent.rmdir()
        lock.release()


def output_of(args: Any) -> Path | None:
    """Return the output that a command's arguments name, `out` or that of a training's `run`, if there is one."""
    return getattr(args, "out", None) or getattr(getattr(args, "run", None), "out", None)


def lock_file(out: Path) -> Path:
    """Return the lock's file: beside a file, which has a suffix as in .json, and in a directory."""
    out = Path(out).absolute()
    is_file = out.suffix[1:].isalnum() and not out.suffix[1:].isdigit()
    return out.with_name(f".{out.name}.lock") if is_file else out / ".lock"


@cache
def _lock(file: Path) -> FileLock:
    """Return this process's lock of a file, which it may take several times."""
    return FileLock(file)
