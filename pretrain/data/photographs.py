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

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from common.command import command, run
from common.files import atomic_file
from common.images import read_image
from pretrain.data.debian_packages import check_package_name
from pretrain.data.package_pictures import (
    SPLITS,
    DroppedError,
    Picture,
    Source,
    fetch_packages,
    find_pictures,
    is_held_out,
    open_package,
    start_source,
    write_pictures,
)
from pretrain.data.scikit_image_photographs import (
    EVALUATION_PHOTOGRAPHS,
    TRAINING_PHOTOGRAPHS,
    scikit_image_copyright,
    scikit_image_folder,
)

SCIKIT_IMAGE = "scikit-image"
MIN_SIDE = 200  # pixels of the short side, after transparent borders are cut
SIDE = 256  # pixels of the short side, as written; smaller pictures are not enlarged
MIN_OPAQUE = 0.25  # of the area
MIN_COLORS = 0.1  # distinct colors per opaque pixel; drawings have fewer
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


def add_photographs(
    out: Path, source: Source, pictures: Sequence[Picture], held_out: Callable[[str], bool], any_colors: bool = False
) -> None:
    """Write the pictures of a package that are photographs and unlike all others."""
    thumbnails = Thumbnails()
    for split in SPLITS:
        for file in sorted((out / split).rglob("*.jpg")):
            thumbnails.add(read_image(file))

    def write(picture: Picture, target: Path) -> None:
        if DRAWING_FOLDERS & set(picture.name.split("/")):
            raise DroppedError("drawing")
        image = to_photograph(picture.open(), any_colors)
        if not thumbnails.add(image):
            raise DroppedError("duplicate")
        with atomic_file(target.with_name(f"{target.name}.jpg")) as file:
            Image.fromarray(image).save(file, quality=95, subsampling=0)

    write_pictures(out, source, pictures, write, held_out)


def add_scikit_image(out: Path) -> None:
    """Add the photographs of the installed scikit-image; their grey ones have few colors by nature."""
    folder, evaluated = scikit_image_folder(), {Path(name).stem for name in EVALUATION_PHOTOGRAPHS}
    files = [folder / name for name in (*EVALUATION_PHOTOGRAPHS, *TRAINING_PHOTOGRAPHS)]
    pictures = [Picture(file, file.stem) for file in files if file.is_file()]
    source = start_source(out, Source, SCIKIT_IMAGE, version(SCIKIT_IMAGE), scikit_image_copyright())
    held_out = partial(is_held_out, SCIKIT_IMAGE)
    add_photographs(out, source, pictures, lambda name: name in evaluated or held_out(name), any_colors=True)


def add_package(out: Path, name: str) -> None:
    """Download a Debian package and add its photographs."""
    with open_package(name) as package:
        source = start_source(out, Source, name, package.version, package.copyright)
        add_photographs(out, source, find_pictures(package.folder), partial(is_held_out, name))


def fetch(args: Args) -> Path:
    """Add every package that the folder lacks, print the counts and return the folder."""

    def add(name: str) -> None:
        add_scikit_image(args.out) if name == SCIKIT_IMAGE else add_package(args.out, name)

    fetch_packages(args.out, sorted(args.packages, key=lambda name: name != SCIKIT_IMAGE), add)
    return args.out


main = command(Args, fetch, __doc__, "photographs in {}")

if __name__ == "__main__":
    sys.exit(run(main))
