"""Pictures of packages in a folder of two splits: found, filtered, written, and told of in `sources.json`.

A hash of a picture's name puts it into `train` or `test`; that choice never changes. Finished packages are not fetched
again; one that was interrupted is made anew.
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from tqdm import tqdm

from common.errors import UserError
from common.files import write_text_atomically
from common.images import ImageError, decode_picture, read_picture_bytes
from common.provenance import command_line
from common.text import printable
from pretrain.data.debian_packages import (
    PackageNotFoundError,
    download_package,
    licenses,
    package_version,
    require_debian_tools,
    unpack_package,
)
from pretrain.data.qt_resources import read_resources

SOURCES, COPYRIGHT, SPLITS = "sources.json", "copyright", ("train", "test")
FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
TEST_EVERY = 10


@dataclass(frozen=True)
class Picture:
    """A picture file of a package. name: its path there, without suffix."""

    file: Path
    name: str

    def open(self) -> Image.Image:
        """Return the picture; `ImageError` if it cannot be read."""
        return decode_picture(read_picture_bytes(self.file, FORMATS), str(self.file), FORMATS)


@dataclass
class Source:
    """A package as `sources.json` tells of it. dropped: the number of pictures left out, by reason."""

    package: str
    version: str
    licenses: list[str]
    command: str
    images: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    dropped: dict[str, int] = field(default_factory=dict)


class DroppedError(UserError):
    """A picture that is left out; the text is the reason."""


@dataclass(frozen=True)
class Package:
    """An unpacked package. copyright: the text of its copyright file."""

    name: str
    version: str
    copyright: str
    folder: Path


def is_held_out(package: str, name: str, every: int = TEST_EVERY) -> bool:
    """Return whether a picture belongs to the test split; it depends on the names alone."""
    return int(hashlib.sha256(f"{package}/{name}".encode()).hexdigest(), 16) % every == 0


def find_pictures(folder: Path) -> list[Picture]:
    """Return the picture files below a folder by name; links are not followed."""
    files = [file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES]
    files = sorted(file for file in files if file.is_file() and not file.is_symlink())
    return [Picture(file, file.relative_to(folder).with_suffix("").as_posix()) for file in files]


def unpack_resources(folder: Path) -> None:
    """Write the pictures in the Qt resource files below a folder beside these; damaged ones are skipped by name."""
    for file in sorted(folder.rglob("*.rcc")):
        try:
            for path, content in read_resources(file):
                if Path(path).suffix.lower() in SUFFIXES:
                    target = file.with_suffix("").joinpath(*filter(None, map(file_name, path.split("/"))))
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content)
        except UserError as error:
            print(printable(f"skipped: {error}"))


@contextmanager
def open_package(name: str) -> Iterator[Package]:
    """Download and unpack a Debian package; it is removed when the context ends."""
    require_debian_tools()
    with tempfile.TemporaryDirectory() as temporary:
        archive, folder = download_package(name, Path(temporary)), Path(temporary) / "unpacked"
        unpack_package(archive, folder)
        unpack_resources(folder)
        file = folder / "usr/share/doc" / name / "copyright"
        text = file.read_text(errors="replace") if file.is_file() else ""
        yield Package(name, package_version(archive), text, folder)


def fetch_packages(out: Path, names: Iterable[str], add: Callable[[str], None], others: Sequence[str] = ()) -> None:
    """Add every package that the folder lacks and print the counts; those that apt does not know are skipped."""
    names = list(dict.fromkeys(names))
    finished = {source["package"] for source in read_sources(out, others)}
    for name in names:
        if name in finished:
            continue
        try:
            add(name)
        except PackageNotFoundError as error:
            print(printable(f"skipped {name}: {error}; if other packages are missing as well, run apt-get update"))
    if not (sources := read_sources(out, others)):
        raise UserError(f"expected at least one package that apt knows, got {', '.join(names) or 'none'}")
    print(describe(sources))


S = TypeVar("S", bound=Source)


def start_source(out: Path, kind: type[S], package: str, version: str, copyright_text: str) -> S:
    """Write a package's copyright file, remove what an interrupted call left, and return its source."""
    write_text_atomically(out / COPYRIGHT / f"{package}.txt", copyright_text)
    for split in SPLITS:
        shutil.rmtree(out / split / package, ignore_errors=True)
    return kind(package, version, licenses(copyright_text), command_line())


def write_pictures(
    out: Path,
    source: Source,
    pictures: Sequence[Picture],
    write: Callable[[Picture, Path], None],
    held_out: Callable[[str], bool],
) -> None:
    """Write pictures, each without those that are dropped, then `sources.json` with the package in it.

    Args:
        out: the folder.
        source: of the package.
        pictures: of the package.
        write: writes a picture to a file, whose suffix it adds, or raises `DroppedError`.
        held_out: whether the picture of a name belongs to the test split.
    """
    done, dropped = _read(out), Counter[str]()
    for picture in tqdm(pictures, desc=f"pictures of {source.package}", unit="image"):
        split = SPLITS[held_out(picture.name)]
        try:
            write(picture, out / split / source.package / file_name(picture.name))
        except (DroppedError, ImageError) as reason:
            dropped[str(reason) if isinstance(reason, DroppedError) else "unreadable"] += 1
        else:
            source.images[split] += 1
    source.dropped = dict(dropped)
    write_text_atomically(out / SOURCES, json.dumps([*done, asdict(source)], indent=1) + "\n")


def read_sources(out: Path, others: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return what `sources.json` tells of the finished packages; nothing in a new folder.

    `others` are names that a folder without it may hold, beside its own.
    """
    if not (out / SOURCES).exists():
        found = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
        if other := {name for name in found if not name.startswith(".")} - {*SPLITS, COPYRIGHT, *others}:
            raise UserError(f"expected a new folder or one with {SOURCES}, got {out}, which holds {min(other)}")
    return _read(out)


def _read(out: Path) -> list[dict[str, Any]]:
    file = out / SOURCES
    try:
        return list(json.loads(file.read_text())) if file.exists() else []
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}; delete {out} and repeat the command") from error


def describe(sources: list[dict[str, Any]]) -> str:
    """Return a table of the packages: pictures in train and test, pictures left out by reason."""
    lines = [f"{'package':26s}{'train':>6s}{'test':>6s}  left out"]
    for source in sources:
        dropped = ", ".join(f"{count} {reason}" for reason, count in source["dropped"].items()) or "none"
        lines.append(f"{source['package']:26s}{source['images']['train']:6d}{source['images']['test']:6d}  {dropped}")
    total = [sum(source["images"][split] for source in sources) for split in SPLITS]
    return "\n".join([*lines, f"{'all':26s}{total[0]:6d}{total[1]:6d}"])


def file_name(path: str) -> str:
    """Return a path as the name of one file, without characters that a file system may refuse."""
    return re.sub(r"[^\w.-]+", "-", path, flags=re.ASCII).lstrip("-.")
