"""Where the images come from that are asked about: recorded games, folders of pictures, and the generator.

    data/random-Pong            an episode dataset of `agents.record`; its last games can be held out
    photos/                     a folder of PNG and JPEG files, at any depth
    synthetic                   the word: images of `pretrain.data.synthetic_images`

Every image is uint8[H, W, 3]. Greyscale, palette, 16-bit and transparent pictures are converted, transparency over
black. A picture that cannot be read is left out, counted and named; a folder of nothing else is refused.
"""

import os
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageOps

from common.errors import UserError
from envs.episodes import INFO, EpisodeDataset
from pretrain.data.synthetic_images import synthetic_image

SYNTHETIC = "synthetic"
SUFFIXES = (".png", ".jpg", ".jpeg")
MOST_PIXELS = 2**25  # 33 million, about 5,800 x 5,800: 100 MB in memory


class ImageError(UserError):
    """A picture or a source of pictures that is of no use; the message names it."""


class ImageSource(Protocol):
    """A numbered set of images."""

    @property
    def name(self) -> str:
        """What it is called in files and tables."""
        ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> np.ndarray:
        """Return uint8[H, W, 3]."""
        ...

    def stack(self, index: int, history: int) -> np.ndarray:
        """Return the image and what was seen before it, oldest first, uint8[history, H, W, 3]."""
        ...


class StillImageSource(ABC):
    """Images without a past: the image itself stands for it."""

    @abstractmethod
    def image(self, index: int) -> np.ndarray:
        """Return uint8[H, W, 3]."""

    def stack(self, index: int, history: int) -> np.ndarray:
        """Return uint8[history, H, W, 3], all the same."""
        return np.stack([self.image(index)] * history)


def read_image(file: Path) -> np.ndarray:
    """Return a picture file as uint8[H, W, 3]; `ImageError` says what is wrong with it."""
    file = Path(file)
    if not file.is_file():
        raise ImageError(f"expected a PNG or JPEG file, got {file}, which is not a file")
    if not file.stat().st_size:
        raise ImageError(f"{file} is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # sizes are checked here
            with Image.open(file, formats=("PNG", "JPEG")) as picture:
                width, height = picture.size
                if width * height > MOST_PIXELS:
                    raise ImageError(f"{file}: expected at most {MOST_PIXELS:,} pixels, got {width} x {height}")
                return _to_rgb(picture)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{file}: expected at most {MOST_PIXELS:,} pixels; {error}") from error
    except (OSError, SyntaxError, ValueError) as error:  # a PNG with a broken chunk is a SyntaxError to Pillow
        raise ImageError(f"{file} is not a PNG or JPEG picture, or is damaged: {str(error).splitlines()[0]}") from error


def _to_rgb(picture: Image.Image) -> np.ndarray:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits of grey
        grey = np.asarray(picture).astype(np.int64).clip(0, 65535) // 257
        return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
    if "A" in picture.mode or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    return np.array(picture.convert("RGB"))


class EpisodeFrames:
    """The frames of a recorded dataset, or of some of its games.

    Args:
        path: a directory of `agents.record`.
        held_out: how many games at the end of the dataset are held out.
        which: "all", "training" (without the games held out) or "held out" (those alone).
    """

    def __init__(self, path: Path, held_out: int = 0, which: str = "all"):
        self.data = EpisodeDataset(path)
        self.name = self.data.info.game
        first = np.unique(self.data.starts)
        if which != "all" and not 0 < held_out < len(first):
            raise ImageError(f"{path} holds {len(first)} games: expected from 1 to {len(first) - 1} held out")
        border = int(first[-held_out]) if which != "all" else 0
        self._first: int = 0 if which == "training" else border
        self._end: int = border if which == "training" else len(self.data)

    def __len__(self) -> int:
        return self._end - self._first

    def image(self, index: int) -> np.ndarray:
        """Return a frame, uint8[H, W, 3]."""
        return self.data.frame(self._first + index)

    def stack(self, index: int, history: int) -> np.ndarray:
        """Return the last frames up to this one, uint8[history, H, W, 3]; see `EpisodeDataset.frames`."""
        return self.data.frames(self._first + index, history)

    def moved(self, index: int) -> np.ndarray:
        """Return bool[H, W]: the pixels that differ from the frame before; none at the start of a game."""
        row = self._first + index
        before = max(row - 1, int(self.data.starts[row]))
        return (self.data.frame(row) != self.data.frame(before)).any(-1)


class ImageFolder(StillImageSource):
    """The pictures below a folder, in the order of their names; `skipped` tells which could not be read, and why."""

    def __init__(self, path: Path):
        path = Path(path)
        self.name = path.name
        if not path.is_dir():
            raise ImageError(f"expected a folder of PNG or JPEG files, got {path}")
        found = sorted(Path(place) / file for place, _, files in os.walk(path) for file in files)
        found = [file for file in found if file.suffix.lower() in SUFFIXES]
        if not found:
            raise ImageError(f"expected PNG or JPEG files in {path}, found none")
        self.files: list[Path] = []
        self.skipped: list[str] = []
        for file in found:
            try:
                read_image(file)
                self.files.append(file)
            except ImageError as error:
                self.skipped.append(str(error))
        if not self.files:
            raise ImageError(f"none of the {len(found)} pictures in {path} can be read; the first: {self.skipped[0]}")

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> np.ndarray:
        """Return a picture, uint8[H, W, 3]."""
        return read_image(self.files[index])


@dataclass(frozen=True)
class SyntheticImages(StillImageSource):
    """Images of the generator; number `index` is drawn from the seed and the index alone, at a given level."""

    seed: int
    height: int = 210
    width: int = 160
    count: int = 1_000_000
    level: float = 1.0
    name: str = SYNTHETIC

    def __len__(self) -> int:
        return self.count

    def image(self, index: int) -> np.ndarray:
        """Return uint8[height, width, 3]."""
        return synthetic_image(np.random.default_rng([self.seed, index]), self.height, self.width, self.level)


def open_source(place: str, held_out: int = 0, which: str = "all", seed: int = 0) -> ImageSource:
    """Return the images of a place: the word `synthetic`, an episode dataset or a folder of pictures."""
    if place == SYNTHETIC:
        return SyntheticImages(seed)
    if (Path(place) / INFO).exists():
        return EpisodeFrames(Path(place), held_out, which)
    folder = ImageFolder(Path(place))
    if folder.skipped:
        print(f"{len(folder.skipped)} of {len(folder.skipped) + len(folder)} pictures in {place} left out:")
        print("\n".join(f"  {reason}" for reason in folder.skipped))
    return folder
