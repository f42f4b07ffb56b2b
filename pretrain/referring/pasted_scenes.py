"""Scenes of named objects pasted on photographs: words about things beyond the games, without a hub.

    PastedScenes(Path("data/cutouts"), "train").draw(np.random.default_rng(0), history=1)

The folder is that of `pretrain.data.cutouts`, whose objects and photographs have a train and a test split. Two to five
objects, half of the time several of one noun, are mirrored at random, scaled to between an eighth and half of the short
side, and pasted without covering much of each other on a random part of a photograph. An object's nouns are its name,
the last word of it and its categories; a color is told of those that mostly have one. In both splits only nouns of
training objects are used: what a test asks for is a new object of a known word.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from common.errors import UserError
from envs.colors import color_word
from envs.objects import GameObject
from pretrain.data.cutouts import BACKGROUNDS, OPAQUE, resize_cutout
from pretrain.data.images import ImageFolder
from pretrain.data.package_pictures import SOURCES, SPLITS, Picture
from pretrain.referring.scenes import Scene

SIZE = (210, 160)  # rows and columns, those of a frame, so that batches need no padding
COUNTS = (2, 5)  # objects of a scene
SIDES = (0.125, 0.5)  # of an object's longer side, as a share of the scene's shorter side
MIN_CROP = 0.5  # of the largest part of a photograph that has the scene's shape
MAX_COVERED = 0.2  # of the smaller of two objects, by their boxes
MAX_ATTEMPTS = 20  # places tried for an object, which is left out then
MIN_COLOR_SHARE = 0.6  # of an object's pixels: less is no color of the object
Layer = tuple[GameObject, Image.Image]


def is_cutout_folder(place: Path) -> bool:
    """Return whether a folder is one of `pretrain.data.cutouts`."""
    return (place / SOURCES).is_file() and (place / BACKGROUNDS).is_dir()


class Cutout:
    """A picture with transparency, its nouns, the most special first, and its color, empty where it has several."""

    def __init__(self, picture: Picture, nouns: Sequence[str]):
        self.picture, self.nouns = picture.open().convert("RGBA"), tuple(nouns)
        pixels = np.asarray(self.picture)
        self.color = main_color(pixels[..., :3][pixels[..., 3] >= OPAQUE])


class PastedScenes:
    """Scenes of one split of a folder of `pretrain.data.cutouts`.

    Raises:
        UserError: the split has no objects, or the folder is damaged.
    """

    name = "pasted"

    def __init__(self, place: Path, split: str, size: tuple[int, int] = SIZE):
        if split not in SPLITS:
            raise UserError(f"expected a split of {place} ({', '.join(SPLITS)}), got {split!r}")
        self.place, self.size = place, size
        nouns = read_nouns(place)
        known = {noun for file, found in nouns.items() if file.startswith(f"{SPLITS[0]}/") for noun in found}
        kept = {file: [noun for noun in found if noun in known] for file, found in nouns.items()}
        files = [file for file in sorted(kept) if kept[file] and file.startswith(f"{split}/")]
        self.cutouts = [Cutout(Picture(place / file, file), kept[file]) for file in files]
        if not self.cutouts:
            raise UserError(f"expected pictures of the split {split} in {place}, found none")
        self.absent_nouns = sorted(known)
        self.by_noun: dict[str, list[Cutout]] = {}
        for cutout in self.cutouts:
            for noun in cutout.nouns:
                self.by_noun.setdefault(noun, []).append(cutout)
        self.shared_nouns = sorted(noun for noun, found in self.by_noun.items() if len(found) > 1)
        self.backgrounds = ImageFolder(place / BACKGROUNDS / split)

    def draw(self, rng: np.random.Generator, history: int) -> Scene:
        """Return a scene; its image stands still."""
        canvas = Image.fromarray(self.draw_background(rng)).convert("RGBA")
        objects: list[GameObject] = []
        for cutout in self.draw_cutouts(rng):
            placed = self.place_cutout(cutout, [thing.box for thing in objects], rng)
            if placed is None:
                continue
            thing, picture = placed
            canvas.alpha_composite(picture, thing.box[1::-1])
            objects = [*(uncover(other, thing) for other in objects), thing]
        return Scene(np.stack([np.asarray(canvas.convert("RGB"))] * history), objects)

    def draw_background(self, rng: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
        """Return a random part of a photograph, mirrored at random."""
        photograph = self.backgrounds.image(int(rng.integers(len(self.backgrounds))))
        height, width = photograph.shape[:2]
        rows, columns = self.size
        scale = min(height / rows, width / columns) * rng.uniform(MIN_CROP, 1)
        tall, wide = min(height, round(rows * scale)), min(width, round(columns * scale))
        top, left = int(rng.integers(height - tall + 1)), int(rng.integers(width - wide + 1))
        part = photograph[top : top + tall, left : left + wide, :: 1 if rng.random() < 0.5 else -1]
        return np.asarray(Image.fromarray(part).resize((columns, rows), Image.Resampling.BILINEAR, reducing_gap=2.0))

    def draw_cutouts(self, rng: np.random.Generator) -> list[Cutout]:
        """Return the objects of a scene, from the back to the front; of one noun several, half of the time."""
        count = int(rng.integers(COUNTS[0], COUNTS[1] + 1))
        alike: list[Cutout] = []
        if self.shared_nouns and rng.random() < 0.5:
            group = self.by_noun[self.shared_nouns[rng.integers(len(self.shared_nouns))]]
            number = int(rng.integers(2, count + 1))
            alike = [group[i] for i in rng.permutation(len(group))[:number]]
        others = [self.cutouts[i] for i in rng.permutation(len(self.cutouts)) if self.cutouts[i] not in alike]
        chosen = [*alike, *others[: max(0, count - len(alike))]]
        return [chosen[i] for i in rng.permutation(len(chosen))]

    def place_cutout(
        self, cutout: Cutout, taken: Sequence[tuple[int, int, int, int]], rng: np.random.Generator
    ) -> Layer | None:
        """Return an object at a free place with its picture, or None where none was found."""
        picture = cutout.picture
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        picture = resize_cutout(picture, min(self.size) * rng.uniform(*SIDES) / max(picture.size))
        patch = np.asarray(picture)[..., 3] >= OPAQUE
        if not patch.any():
            return None
        rows, columns = self.size
        for _ in range(MAX_ATTEMPTS):
            top = int(rng.integers(rows - picture.height + 1))
            left = int(rng.integers(columns - picture.width + 1))
            box = top, left, top + picture.height, left + picture.width
            if all(covered(box, other) <= MAX_COVERED for other in taken):
                return GameObject(cutout.nouns[0], cutout.color, box, patch, self.size, cutout.nouns[1:]), picture
        return None


def read_nouns(place: Path) -> dict[str, list[str]]:
    """Return the nouns of each picture in a folder of cut-outs."""
    file = place / SOURCES
    try:
        sources = json.loads(file.read_text())
        return {picture: nouns for source in sources for picture, nouns in source["nouns"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"expected {file} of pretrain.data.cutouts, got {type(error).__name__}: {error}") from error


def main_color(pixels: UInt8[np.ndarray, "N 3"]) -> str:
    """Return the word for most of the pixels, or an empty one where no color has most."""
    coarse = pixels.astype(np.int64) // 16 * 16 + 8
    values, counts = np.unique(coarse @ np.array([1 << 16, 1 << 8, 1]), return_counts=True)
    shares = Counter[str]()
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        shares[color_word(value)] += count
    word, most = shares.most_common(1)[0]
    return word if most >= MIN_COLOR_SHARE * len(pixels) else ""


def covered(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Return the share of the smaller of two boxes (top, left, bottom, right) that both cover."""
    height = min(one[2], other[2]) - max(one[0], other[0])
    width = min(one[3], other[3]) - max(one[1], other[1])
    areas = [(bottom - top) * (right - left) for top, left, bottom, right in (one, other)]
    return max(0, height) * max(0, width) / min(areas)


def uncover(behind: GameObject, front: GameObject) -> GameObject:
    """Return an object without the pixels that another one covers; its box stays."""
    top, left, bottom, right = behind.box
    patch: Bool[np.ndarray, "H W"] = behind.patch & ~front.mask[top:bottom, left:right]
    return GameObject(behind.name, behind.color, behind.box, patch, behind.frame_size, behind.categories)
