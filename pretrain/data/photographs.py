"""Fetch photographs for pixel value prediction: from scikit-image and from packages of Debian.

    python -m pretrain.data.photographs --out data/photographs
    python -m pretrain.data.photographs --out data/photographs --packages scikit-image mate-backgrounds

The pictures of each package are cut to their opaque part, laid on mid-grey, reduced to a short side of 256 pixels, and
written below `OUT/train` and `OUT/test`. A hash of its name puts every tenth picture into `test`, as are those of
scikit-image that `experiments` evaluates on; that choice never changes. Left out are pictures that cannot be read, are
smaller than 200 pixels, are drawings (by folder, or of few colors), are mostly transparent, or look like another one.
`OUT/sources.json` tells each package's version, licences and counts, and `OUT/copyright` holds the copyright files.

A package needs apt-get and dpkg, but not root; about 280 MB are downloaded. Finished packages are not fetched again;
one that was interrupted is made anew. A package that the system's release does not have is skipped.
Train on them: `--data data/photographs/train` of `pretrain.pvp`.
"""

import hashlib
import json
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from tqdm import tqdm

from common.command import command, run
from common.errors import UserError
from common.files import atomic_file, write_text_atomically
from common.images import ImageError, decode_picture, read_image, read_picture_bytes
from common.provenance import command_line
from common.text import printable
from pretrain.data.debian_packages import (
    PackageNotFoundError,
    check_package_name,
    download_package,
    licenses,
    package_version,
    require_debian_tools,
    unpack_package,
)
from pretrain.data.qt_resources import read_resources
from pretrain.data.scikit_image_photographs import (
    EVALUATION_PHOTOGRAPHS,
    TRAINING_PHOTOGRAPHS,
    scikit_image_copyright,
    scikit_image_folder,
)

SCIKIT_IMAGE = "scikit-image"
SOURCES, COPYRIGHT, SPLITS = "sources.json", "copyright", ("train", "test")
FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MIN_SIDE = 200  # pixels of the short side, after transparent borders are cut
SIDE = 256  # pixels of the short side, as written; smaller pictures are not enlarged
MIN_OPAQUE = 0.25  # of the area
MIN_COLORS = 0.1  # distinct colors per opaque pixel; drawings have fewer
TEST_EVERY = 10
DRAWING_FOLDERS = {"cartoon", "words_sample", "paintings"}  # of Tux Paint and GCompris; the last has parts of pictures
BACKGROUND = (128, 128, 128)
THUMBNAIL = 16  # pixels of each side
MIN_DIFFERENCE = 4.0  # grey levels between the thumbnails of two pictures, on average


@dataclass
class Args:
    """Fetch photographs to train pixel value prediction on."""

    out: Path
    """The folder of the photographs; packages that it lacks are added."""
    packages: tuple[str, ...] = (
        SCIKIT_IMAGE,
        "tuxpaint-stamps-default",
        "gcompris-qt-data",
        "mate-backgrounds",
        "lomiri-wallpapers-16.04",
        "lomiri-wallpapers-20.04",
    )
    """scikit-image, which must be installed, and names of Debian packages with pictures in them."""

    def __post_init__(self) -> None:
        for name in self.packages:
            check_package_name(name)


@dataclass(frozen=True)
class Picture:
    """A picture file of a package. name: its path there, without suffix."""

    file: Path
    name: str


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


class Thumbnails:
    """The thumbnails of all pictures so far, by which another one of the same is recognized."""

    def __init__(self) -> None:
        self._all = np.empty((0, THUMBNAIL, THUMBNAIL, 3), np.int16)

    def add(self, image: UInt8[np.ndarray, "H W 3"]) -> bool:
        """Add an image and return True; return False if it, or its mirror image, is there already."""
        small = Image.fromarray(image).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        thumbnail = np.asarray(small).astype(np.int16)
        for seen in (thumbnail, thumbnail[:, ::-1]):
            if (np.abs(self._all - seen).mean((1, 2, 3)) < MIN_DIFFERENCE).any():
                return False
        self._all = np.concatenate([self._all, thumbnail[None]])
        return True


def is_held_out(package: str, name: str) -> bool:
    """Return whether a picture belongs to the test split; it depends on the names alone."""
    if package == SCIKIT_IMAGE and name in {Path(file).stem for file in EVALUATION_PHOTOGRAPHS}:
        return True
    return int(hashlib.sha256(f"{package}/{name}".encode()).hexdigest(), 16) % TEST_EVERY == 0


def to_photograph(picture: Image.Image, any_colors: bool = False) -> UInt8[np.ndarray, "H W 3"]:
    """Return a picture as it is written; `DroppedError` if it is too small, too transparent or has few colors."""
    has_alpha = "A" in picture.mode or "transparency" in picture.info
    picture = picture.convert("RGBA" if has_alpha else "RGB").convert("RGBA")
    picture = picture.crop(picture.getchannel("A").getbbox())
    short = min(picture.size)
    if short < MIN_SIDE:
        raise DroppedError("small")
    scale = min(1.0, SIDE / short)
    size = round(picture.width * scale), round(picture.height * scale)
    picture = picture.resize(size, Image.Resampling.BOX)
    opaque = np.asarray(picture)[..., 3] == 255
    if opaque.mean() < MIN_OPAQUE:
        raise DroppedError("transparent")
    image = np.array(Image.alpha_composite(Image.new("RGBA", size, (*BACKGROUND, 255)), picture).convert("RGB"))
    if not any_colors and len(np.unique(image[opaque], axis=0)) < MIN_COLORS * opaque.sum():
        raise DroppedError("few colors")
    return image


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
                    target = file.with_suffix("").joinpath(*filter(None, map(_file_name, path.split("/"))))
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(content)
        except UserError as error:
            print(printable(f"skipped: {error}"))


def add_photographs(out: Path, source: Source, pictures: Iterable[Picture], any_colors: bool = False) -> None:
    """Write the pictures of a package that are photographs, then the folder's `sources.json` with the package in it."""
    done = read_sources(out)
    thumbnails, dropped = Thumbnails(), Counter[str]()
    for split in SPLITS:
        shutil.rmtree(out / split / source.package, ignore_errors=True)  # of an interrupted call
        for file in sorted((out / split).rglob("*.jpg")):
            thumbnails.add(read_image(file))
    for picture in tqdm(list(pictures), desc=f"pictures of {source.package}", unit="image"):
        try:
            if DRAWING_FOLDERS & set(picture.name.split("/")):
                raise DroppedError("drawing")
            content = read_picture_bytes(picture.file, FORMATS)
            image = to_photograph(decode_picture(content, str(picture.file), FORMATS), any_colors)
            if not thumbnails.add(image):
                raise DroppedError("duplicate")
        except (DroppedError, ImageError) as reason:
            dropped[str(reason) if isinstance(reason, DroppedError) else "unreadable"] += 1
            continue
        split = SPLITS[is_held_out(source.package, picture.name)]
        with atomic_file(out / split / source.package / f"{_file_name(picture.name)}.jpg") as file:
            Image.fromarray(image).save(file, quality=95, subsampling=0)
    source.images = {split: len(list((out / split / source.package).glob("*.jpg"))) for split in SPLITS}
    source.dropped = dict(dropped)
    write_text_atomically(out / SOURCES, json.dumps([*done, asdict(source)], indent=1) + "\n")


def read_sources(out: Path) -> list[dict[str, Any]]:
    """Return what `sources.json` tells of the finished packages; nothing in a new folder."""
    file = out / SOURCES
    if not file.exists():
        found = {entry.name for entry in out.iterdir()} if out.is_dir() else set()
        if other := {name for name in found if not name.startswith(".")} - {*SPLITS, COPYRIGHT}:
            raise UserError(f"expected a new folder or one with {SOURCES}, got {out}, which holds {min(other)}")
        return []
    try:
        return list(json.loads(file.read_text()))
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}; delete {out} and repeat the command") from error


def add_scikit_image(out: Path) -> None:
    """Add the photographs of the installed scikit-image; their grey ones have few colors by nature."""
    folder, text = scikit_image_folder(), scikit_image_copyright()
    files = [folder / name for name in (*EVALUATION_PHOTOGRAPHS, *TRAINING_PHOTOGRAPHS)]
    pictures = [Picture(file, file.stem) for file in files if file.is_file()]
    add_photographs(out, _source(out, SCIKIT_IMAGE, version(SCIKIT_IMAGE), text), pictures, any_colors=True)


def add_package(out: Path, name: str) -> None:
    """Download a Debian package and add its photographs."""
    require_debian_tools()
    with tempfile.TemporaryDirectory() as temporary:
        package, folder = download_package(name, Path(temporary)), Path(temporary) / "unpacked"
        unpack_package(package, folder)
        unpack_resources(folder)
        file = folder / "usr/share/doc" / name / "copyright"
        text = file.read_text(errors="replace") if file.is_file() else ""
        add_photographs(out, _source(out, name, package_version(package), text), find_pictures(folder))


def fetch(args: Args) -> Path:
    """Add every package that the folder lacks, print the counts and return the folder."""
    finished = {source["package"] for source in read_sources(args.out)}
    for name in sorted(dict.fromkeys(args.packages), key=lambda name: name != SCIKIT_IMAGE):
        if name in finished:
            continue
        try:
            add_scikit_image(args.out) if name == SCIKIT_IMAGE else add_package(args.out, name)
        except PackageNotFoundError as error:
            print(printable(f"skipped {name}: {error}; if other packages are missing as well, run apt-get update"))
    if not (sources := read_sources(args.out)):
        raise UserError(f"expected at least one package that apt knows, got {', '.join(args.packages) or 'none'}")
    print(describe(sources))
    return args.out


def describe(sources: list[dict[str, Any]]) -> str:
    """Return a table of the packages: pictures in train and test, pictures left out by reason, version, licences."""
    lines = [f"{'package':26s}{'train':>6s}{'test':>6s}  left out"]
    for source in sources:
        dropped = ", ".join(f"{count} {reason}" for reason, count in source["dropped"].items()) or "none"
        lines.append(f"{source['package']:26s}{source['images']['train']:6d}{source['images']['test']:6d}  {dropped}")
    total = [sum(source["images"][split] for source in sources) for split in SPLITS]
    return "\n".join([*lines, f"{'all':26s}{total[0]:6d}{total[1]:6d}"])


def _source(out: Path, package: str, release: str, copyright_text: str) -> Source:
    write_text_atomically(out / COPYRIGHT / f"{package}.txt", copyright_text)
    return Source(package, release, licenses(copyright_text), command_line())


def _file_name(path: str) -> str:
    """Return a path as the name of one file, without characters that a file system may refuse."""
    return re.sub(r"[^\w.-]+", "-", path, flags=re.ASCII).lstrip("-.")


main = command(Args, fetch, __doc__, "photographs in {}")

if __name__ == "__main__":
    sys.exit(run(main))
