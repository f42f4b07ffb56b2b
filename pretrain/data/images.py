"""Image sources: recorded games, folders of pictures and the synthetic generator.

    data/random-Pong            an episode dataset of `agents.record`, or one split of it
    hf://owner/set:split        recorded games on the hub, see `envs.hub_sets`
    photos/                     a folder of PNG and JPEG files, at any depth
    synthetic                   the word itself: images of `pretrain.data.synthetic_images`

Every image is uint8[H, W, 3], as `common.images` reads it. A folder skips the pictures that cannot be read and reports
them.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8

from common.images import ImageError, read_image
from common.text import printable
from envs.hub_sets import is_dataset, open_dataset
from pretrain.data.splits import split_rows
from pretrain.data.synthetic_images import synthetic_image

SYNTHETIC = "synthetic"
SUFFIXES = (".png", ".jpg", ".jpeg")


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


class EpisodeFrames(ImageSource):
    """The frames of one split (`split_rows`) of a dataset of `agents.record`."""

    def __init__(self, path: Path, split: str = "all", num_val: int = 0):
        self.data = open_dataset(path)
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
    if is_dataset(location):
        return EpisodeFrames(Path(location), split, num_val)
    folder = ImageFolder(Path(location))
    if folder.skipped:
        print(f"skipped {len(folder.skipped)} of {len(folder.skipped) + len(folder)} pictures in {location}:")
        print("\n".join(f"  {printable(reason)}" for reason in folder.skipped))
    return folder
