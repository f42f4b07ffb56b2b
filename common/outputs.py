"""Where a command writes, checked once, before it computes: nothing is written over what is not the command's own."""

import itertools
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.errors import UserError


def require_output_files(
    files: Sequence[Path], inputs: Iterable[Path] = (), own: Path | None = None, flag: str = "--out"
) -> None:
    """Refuse files to write that are one file, or are read, or cannot be written, or are someone else's.

    Args:
        files: to be written; existing ones are replaced.
        inputs: files and directories that are read; an output may not lie in one.
        own: a file that the command writes; without it, existing `files` are not the command's. By default they are.
        flag: that tells where to write, for messages.
    """
    for one, other in itertools.combinations(files, 2):
        if _same(one, other):
            raise UserError(f"{one} would be written twice; choose another {flag} or rename an input")
    for file, read in itertools.product(files, inputs):
        if _same(file, read) or (read.is_dir() and _is_in(file, read)):
            raise UserError(f"{file} would be written over what is read, {read}; choose another {flag}")
    for file in files:
        if file.is_dir():
            raise UserError(f"{flag} {file} is a directory, expected a file to write")
        if file.exists() and own and not own.exists():
            raise UserError(f"{file} exists and is not of this command; move it or choose another {flag}")
    for directory in dict.fromkeys(file.parent for file in files):
        require_writable(directory, flag)


def require_output_directory(directory: Path, mark: str, inputs: Iterable[Path] = (), flag: str = "--out") -> None:
    """Refuse a directory to write that is read, or cannot be written, or holds other files than the command's.

    Args:
        directory: new, empty, or one that the command wrote before.
        mark: the name of a file in every directory that the command writes.
        inputs: files and directories that are read.
        flag: that names the directory, for messages.
    """
    for read in inputs:
        if _same(directory, read) or _is_in(read, directory):
            raise UserError(f"{directory} would be written over what is read, {read}; choose another {flag}")
    if directory.is_dir() and not (directory / mark).exists():
        others = sorted(file.name for file in directory.iterdir() if not file.name.startswith("."))
        if others:
            raise UserError(
                f"expected {flag} to be a new directory or one with {mark}, got {directory}, which holds {others[0]}"
            )
    require_writable(directory, flag)


def require_writable(directory: Path, flag: str = "--out") -> Path:
    """Refuse a directory that cannot be made or written; return it, or the nearest above it that exists."""
    found = directory
    while not found.exists() and found != found.parent:
        found = found.parent
    try:
        tempfile.TemporaryFile(dir=found).close()
    except OSError as error:
        raise UserError(f"{flag} {directory} cannot be written: {error.strerror or error}") from error
    return found


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other))


def _is_in(path: Path, directory: Path) -> bool:
    return path.resolve().is_relative_to(directory.resolve())
