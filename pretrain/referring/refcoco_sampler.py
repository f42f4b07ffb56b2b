"""RefCOCO, RefCOCO+ and RefCOCOg as a source to train on: a picture, some of its expressions and their masks."""

from collections import defaultdict

import numpy as np
from PIL import Image

from pretrain.referring.refcoco import RefCocoDataset
from pretrain.referring.samples import ReferringSample
from vlm.training_resolution import resize_image


class RefCocoSampler:
    """Draws pictures of a split, each as likely as another, with expressions of its objects.

    Args:
        data: the split; its convention of masks must be the plain one.
        size: rows and columns that pictures are brought to, whatever their shape: several share a batch.
        history: frames that a model sees; a picture is repeated.
    """

    def __init__(self, data: RefCocoDataset, size: tuple[int, int], history: int = 1):
        self.data, self.size, self.history = data, size, history
        found: dict[str, list[int]] = defaultdict(list)
        for index, expression in enumerate(data.expressions):
            found[expression.image.name].append(index)
        self.pictures = list(found.values())

    def draw(self, rng: np.random.Generator, count: int) -> ReferringSample:
        """Return `count` expressions about one picture, some twice if it has fewer."""
        own = self.pictures[int(rng.integers(len(self.pictures)))]
        chosen = [int(index) for index in np.resize(rng.permutation(own), count)]
        image = resize_image(self.data.image(chosen[0]), self.size)
        masks = np.stack([resize_mask(self.data.mask(index), self.size) for index in chosen])
        words = tuple(self.data.expressions[index].text for index in chosen)
        return ReferringSample(np.stack([image] * self.history), words, masks)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a mask bool[H, W] at rows and columns of `size`, by nearest pixel."""
    picture = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.NEAREST)) > 0
