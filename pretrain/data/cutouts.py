"""Fetch cut-out pictures of named things, and photographs to paste them on, for referring segmentation.

    python -m pretrain.data.cutouts --out data/cutouts
    python -m pretrain.referring --data data/cutouts data/random-MsPacman --init runs/pvp/last --out runs/masks

The pictures come from packages of Debian: the stamps of Tux Paint have captions, the word pictures of GCompris are
named by their files. `OUT/train` and `OUT/test` hold them as PNG with transparency, at most 160 pixels long; a hash of
its name puts every fifth picture into `test` for good, so that no object of a test is ever trained on. Left out are
pictures without a name, symbols, and what is too small or not cut out. `OUT/sources.json` tells each package's version,
licences and counts and the nouns of each picture, the most special first; `OUT/copyright` holds the copyright files.
`OUT/backgrounds` holds photographs in the same two splits (`pretrain.data.photographs`).

apt-get and dpkg are needed, but not root; about 270 MB are downloaded and 15 MB kept.
`pretrain.referring.pasted_scenes` makes scenes and expressions of them.
"""

import re
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from common.command import command, run
from common.files import atomic_file
from envs.colors import COLORS
from pretrain.data import photographs
from pretrain.data.debian_packages import check_package_name
from pretrain.data.package_pictures import (
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

BACKGROUNDS = "backgrounds"
MIN_SIDE, MAX_SIDE = 24, 160  # pixels of a cut-out's longer side: smaller ones are left out, larger ones reduced
OPAQUE = 128  # of 255: least alpha of a pixel that belongs to the object
AREAS = (0.08, 0.95)  # of a cut-out's box: less is an outline, more was not cut out
TEST_EVERY = 5
MAX_WORDS = 3  # of a name
LEFT_OUT = {"symbols", "roadsigns", "planets", "moon"}  # folders of what is no thing on the ground
WORD_PICTURES = "words_sample"  # the folder of GCompris whose files are named after what they show
CATEGORIES = {  # folder: noun
    "animals": "animal", "amphibians": "amphibian", "birds": "bird", "fish": "fish", "insects": "insect",
    "mammals": "mammal", "bovines": "bovine", "cats": "cat", "deer": "deer", "dogs": "dog", "rodents": "rodent",
    "apes": "ape", "bears": "bear", "shellfish": "shellfish", "marsupials": "marsupial", "hats": "hat",
    "food": "food", "fruit": "fruit", "vegetables": "vegetable", "nuts": "nut", "dessert": "dessert",
    "plants": "plant", "flowers": "flower", "trees": "tree", "mushrooms": "mushroom", "tools": "tool",
    "dishes": "dish", "houses": "house", "flags": "flag", "monuments": "monument", "vehicles": "vehicle",
    "auto": "car", "ship": "ship", "locomotive": "train", "planes": "plane", "music": "instrument",
}  # fmt: skip
ARTICLES = ("a", "an", "the", "some", "one", "two", "three", "several", "this", "these", "those")
GROUPS = ("pair", "bunch", "cluster", "couple", "group", "piece", "slice", "baby")  # "a pair of pants"
BREAKS: tuple[str, ...] = ("of", "with", "in", "on", "for", "from", "to", "used", "has", "is", "are", "also")
BREAKS += ("stands", "playing", "dancing", "covered", "resembles", "resting")


@dataclass
class Args:
    """Fetch named cut-outs and photographs to paste them on."""

    out: Path
    """The folder of the set; packages that it lacks are added."""
    packages: tuple[str, ...] = ("tuxpaint-stamps-default", "gcompris-qt-data")
    """Names of Debian packages with named cut-outs in them."""
    backgrounds: tuple[str, ...] = (photographs.SCIKIT_IMAGE, "mate-backgrounds", "lomiri-wallpapers-16.04")
    """Packages of photographs; those of the cut-outs would show the objects again."""

    def __post_init__(self) -> None:
        for name in (*self.packages, *self.backgrounds):
            check_package_name(name)


@dataclass
class CutoutSource(Source):
    """A package of cut-outs. nouns: of each file, its path in the folder, the most special first."""

    nouns: dict[str, list[str]] = field(default_factory=dict)


def name_of_caption(caption: str) -> str | None:
    """Return the name in a caption such as "A great blue heron, in flight.", or None where it names nothing shortly."""
    words = re.split(r"[.,;:!?()—–“”\"]", caption.strip().lower())[0].split()
    most = MAX_WORDS if words and words[0] in ARTICLES else MAX_WORDS - 1  # without an article it may be a sentence
    while words and words[0] in ARTICLES:
        words = words[1:]
    if len(words) > 2 and words[0] in GROUPS and words[1] == "of":
        words = words[2:]
    for number, word in enumerate(words):
        if word in BREAKS:
            words = words[:number]
            break
    name = " ".join(words)
    return name if 0 < len(words) <= most and re.fullmatch(r"[a-z ]+", name) and name not in COLORS else None


def nouns_of(picture: Picture) -> list[str]:
    """Return a picture's name, its last word, and the categories of its folders, the most special first.

    Raises:
        DroppedError: it has no name, or its folder is left out.
    """
    *folders, stem = picture.name.split("/")
    if LEFT_OUT & set(folders):
        raise DroppedError("symbol")
    caption = picture.file.with_suffix(".txt")
    if caption.is_file():
        lines = caption.read_text(errors="replace").splitlines()
        name = name_of_caption(lines[0] if lines else "")
    else:
        name = name_of_caption(stem.replace("_", " ")) if WORD_PICTURES in folders else None
    if name is None:
        raise DroppedError("unnamed")
    categories = [CATEGORIES[folder] for folder in reversed(folders) if folder in CATEGORIES]
    return list(dict.fromkeys([name, name.split()[-1], *categories]))


def to_cutout(picture: Image.Image) -> Image.Image:
    """Return a picture with transparency, cut to what is opaque; `DroppedError` if it is small or not cut out."""
    if "A" not in picture.mode and "transparency" not in picture.info:
        raise DroppedError("opaque")
    cutout = picture.convert("RGBA")
    cutout = cutout.crop(cutout.getchannel("A").point(lambda alpha: 255 * (alpha >= OPAQUE)).getbbox())
    if max(cutout.size) < MIN_SIDE or min(cutout.size) < 2:
        raise DroppedError("small")
    area = (np.asarray(cutout)[..., 3] >= OPAQUE).mean()
    if not AREAS[0] <= area <= AREAS[1]:
        raise DroppedError("outline" if area < AREAS[0] else "opaque")
    return resize_cutout(cutout, min(1.0, MAX_SIDE / max(cutout.size)))


def resize_cutout(cutout: Image.Image, scale: float) -> Image.Image:
    """Return a cut-out at another scale; colors of transparent pixels do not bleed into it."""
    size = max(1, round(cutout.width * scale)), max(1, round(cutout.height * scale))
    return (
        cutout.convert("RGBa")
        .resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
        .convert("RGBA")
    )


def add_package(out: Path, name: str) -> None:
    """Download a Debian package and add its named cut-outs."""
    with open_package(name) as package:
        source = start_source(out, CutoutSource, name, package.version, package.copyright)

        def write(picture: Picture, target: Path) -> None:
            nouns, cutout = nouns_of(picture), to_cutout(picture.open())
            target = target.with_name(f"{target.name}.png")
            with atomic_file(target) as file:
                cutout.save(file)
            source.nouns[target.relative_to(out).as_posix()] = nouns

        write_pictures(out, source, find_pictures(package.folder), write, partial(is_held_out, name, every=TEST_EVERY))


def fetch(args: Args) -> Path:
    """Add every package that the folder lacks, print the counts and return the folder."""
    fetch_packages(args.out, args.packages, partial(add_package, args.out), [BACKGROUNDS])
    photographs.fetch(photographs.Args(args.out / BACKGROUNDS, args.backgrounds))
    return args.out


main = command(Args, fetch, __doc__, "cut-outs in {}")

if __name__ == "__main__":
    sys.exit(run(main))
