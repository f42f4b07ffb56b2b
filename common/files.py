"""Files and directories that a reader finds whole: the old version or the new one, never a part."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """Yield a temporary path of the same suffix; it replaces `file` when the block ends without an error."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.stem}.{os.getpid()}{file.suffix}")
    try:
        yield temporary
        os.replace(temporary, file)
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
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    old = directory.with_name(f".{directory.name}.old.{os.getpid()}")
    if directory.exists():
        os.replace(directory, old)
    os.replace(temporary, directory)
    shutil.rmtree(old, ignore_errors=True)
