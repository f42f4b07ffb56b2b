"""Image sources: recorded games, folders of pictures and the synthetic generator.

    data/random-Pong            an episode dataset of `agents.record`, or one split of it
    photos/                     a folder of PNG and JPEG files, at any depth
    synthetic                   the word itself: images of `pretrain.data.synthetic_images`

Every image is uint8[H, W, 3]. Greyscale, palette, 16-bit and transparent pictures are converted; transparent pixels
become black. A folder skips the pictures that cannot be read and reports them.
"""

import io
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps

from common.errors import UserError
from common.text import printable
from envs.episodes import INFO, EpisodeDataset
from pretrain.data.splits import split_rows
from pretrain.data.synthetic_images import synthetic_image

SYNTHETIC = "synthetic"
SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_PIXELS = 2**25  # about 5,800 x 5,800: 100 MB in memory
Decoded = TypeVar("Decoded")


class ImageError(UserError):
    """An image or image source that cannot be used; the message names it."""


class ImageSource(ABC):
    """An indexed set of images. name: of the source, in files and tables."""

    name: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Return one image."""

    def frame_stack(self, index: int, history: int) -> UInt8[np.ndarray, "history H W 3"]:
        """Return an image behind the frames before it, oldest first; a still image is repeated."""
        return np.stack([self.image(index)] * history)


def read_image(file: Path) -> UInt8[np.ndarray, "H W 3"]:
    """Return a PNG or JPEG file as RGB; `ImageError` if it is missing, empty, damaged, too large or no such file."""
    return decode_image(file, _to_rgb)


def read_image_bytes(content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "H W 3"]:
    """Return the bytes of a PNG or JPEG as RGB; `ImageError` names it as for `read_image`."""
    if not content:
        raise ImageError(f"{name} is empty")
    return _decode(io.BytesIO(content), name, _to_rgb, ("PNG", "JPEG"), max_pixels)


def decode_image(
    file: Path, convert: Callable[[Image.Image], Decoded], formats: tuple[str, ...] = ("PNG", "JPEG")
) -> Decoded:
    """Return what `convert` makes of a picture; `ImageError` as for `read_image`. formats: Pillow's names."""
    kinds = " or ".join(formats)
    if not file.is_file():
        raise ImageError(f"expected a {kinds} file, got {file}, which is not a file")
    if not file.stat().st_size:
        raise ImageError(f"{file} is empty")
    return _decode(file, str(file), convert, formats, MAX_PIXELS)


def _decode(
    source: Path | io.BytesIO,
    name: str,
    convert: Callable[[Image.Image], Decoded],
    formats: tuple[str, ...],
    max_pixels: int,
) -> Decoded:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # sizes are checked here
            with Image.open(source, formats=formats) as picture:
                width, height = picture.size
                if width * height > max_pixels:
                    raise ImageError(f"{name}: expected at most {max_pixels:,} pixels, got {width} x {height}")
                return convert(picture)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: expected at most {max_pixels:,} pixels; {error}") from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises SyntaxError on a broken PNG chunk
        kinds = " or ".join(formats)
        raise ImageError(f"{name} is not a {kinds} picture, or is damaged: {str(error).splitlines()[0]}") from error


def _to_rgb(picture: Image.Image) -> np.ndarray:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16-bit grey
        grey = np.asarray(picture).astype(np.int64).clip(0, 65535) // 257
        return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
    if "A" in picture.mode or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    return np.array(picture.convert("RGB"))


class EpisodeFrames(ImageSource):
    """The frames of one split (`split_rows`) of a dataset of `agents.record`."""

    def __init__(self, path: Path, split: str = "all", num_val: int = 0):
        self.data = EpisodeDataset(path)
        self.name = self.data.info.game
        self.rows = split_rows(self.data, split, num_val)

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Return one frame."""
        return self.data.frame(self.rows[index])

    def frame_stack(self, index: int, history: int) -> UInt8[np.ndarray, "history H W 3"]:
        """Return the last frames up to this one, oldest first; see `EpisodeDataset.frames`."""
        return self.data.frames(self.rows[index], history)

    def motion_mask(self, index: int) -> Bool[np.ndarray, "H W"]:
        """Return the pixels that differ from the previous frame; none at the start of a game."""
        row = self.rows[index]
        previous = max(row - 1, self.data.starts[row])
        return (self.data.frame(row) != self.data.frame(previous)).any(-1)


class ImageFolder(ImageSource):
    """The pictures in a folder and its subfolders, sorted by path; `skipped` lists why files could not be read."""

    def __init__(self, path: Path):
        self.name = path.name
        if not path.is_dir():
            raise ImageError(f"expected a folder of PNG or JPEG files, got {path}")
        found = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix.lower() in SUFFIXES)
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

    def image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Return one picture."""
        return read_image(self.files[index])


@dataclass(frozen=True)
class SyntheticImages(ImageSource):
    """Generated images; image `index` depends on the seed and the index alone."""

    seed: int
    height: int = 210
    width: int = 160
    name: str = SYNTHETIC

    def __len__(self) -> int:
        return 1_000_000  # each is generated when it is read

    def image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Return one image."""
        return synthetic_image(np.random.default_rng([self.seed, index]), self.height, self.width)


def open_image_source(location: str, split: str = "all", num_val: int = 0) -> ImageSource:
    """Return the source at a location: `synthetic`, a split of an episode dataset or a folder of pictures."""
    if location == SYNTHETIC:
        return SyntheticImages(0)
    if (Path(location) / INFO).exists():
        return EpisodeFrames(Path(location), split, num_val)
    folder = ImageFolder(Path(location))
    if folder.skipped:
        print(f"skipped {len(folder.skipped)} of {len(folder.skipped) + len(folder)} pictures in {location}:")
        print("\n".join(f"  {printable(reason)}" for reason in folder.skipped))
    return folder
