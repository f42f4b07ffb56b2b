"""Files and directories that a reader finds whole: the old version or the new one, never a part.

What is being written has a hidden name beside its own, `.NAME.PROCESS.tmp`; a killed process leaves it there, and the
next writer of the same name removes it.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """Yield a temporary path of the same suffix; it replaces `file` when the block ends without an error."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(file)
    try:
        yield temporary
        replace_file(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(file: Path, text: str) -> None:
    """Write a text file in one step; its directory is made if it is missing."""
    with atomic_file(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
    """Yield an empty temporary directory; it replaces `directory` when the block ends without an error."""
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(directory)
    temporary.mkdir()
    try:
        yield temporary
        replace_directory(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_path(path: Path) -> Path:
    """Return the hidden path of the same suffix that this process writes before `path`; remove those of dead ones."""
    for leftover in [*_hidden(path, "tmp"), *(_hidden(path, "old") if path.exists() else ())]:
        _remove(leftover)
    return path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")


def replace_file(temporary: Path, file: Path) -> None:
    """Give a finished file its name, once its content is on the disk."""
    _write_out(temporary)
    os.replace(temporary, file)


def replace_directory(temporary: Path, directory: Path) -> None:
    """Give a finished directory its name, once its files are on the disk; an old one is removed."""
    for file in temporary.rglob("*"):
        if file.is_file():
            _write_out(file)
    old = directory.with_name(f".{directory.stem}.{os.getpid()}.old{directory.suffix}")
    if directory.exists():
        os.replace(directory, old)
    os.replace(temporary, directory)
    for replaced in _hidden(directory, "old"):
        _remove(replaced)


def restore_directory(directory: Path) -> None:
    """Bring back the old version of a directory that a process was replacing when it was killed, or remove it."""
    for old in _hidden(directory, "old"):
        if directory.exists():
            _remove(old)
        else:
            os.replace(old, directory)


def _hidden(path: Path, kind: str) -> list[Path]:
    """Return what this process or dead ones left under hidden names of `path`."""
    name = re.compile(rf"\.{re.escape(path.stem)}\.(\d+)\.{kind}{re.escape(path.suffix)}")
    found = [(entry, name.fullmatch(entry)) for entry in (os.listdir(path.parent) if path.parent.is_dir() else ())]
    return [path.with_name(entry) for entry, match in found if match and not _is_other_process(int(match[1]))]


def _is_other_process(pid: int) -> bool:
    """Return whether a process of this number runs that is not this one."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _write_out(file: Path) -> None:
    """Wait until a file's content is on the disk: after a power cut a name may survive without it."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
