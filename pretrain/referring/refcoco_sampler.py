"""Training samples of RefCOCO, RefCOCO+ and RefCOCOg: an image, some of its expressions and their masks."""

from collections import defaultdict

import numpy as np
from jaxtyping import Bool
from PIL import Image

from pretrain.referring.refcoco import RefCocoDataset
from pretrain.referring.samples import ReferringSample
from vlm.image_input import resize_image


class RefCocoSampler:
    """Draws images of a split uniformly, each with expressions of its objects.

    Args:
        data: the split, with `compat="plain"`.
        size: rows and columns that images are resized to, so that they fit one batch.
        history: frames that the model sees; the image is repeated.
    """

    def __init__(self, data: RefCocoDataset, size: tuple[int, int], history: int = 1):
        self.data, self.size, self.history = data, size, history
        by_image: dict[str, list[int]] = defaultdict(list)
        for index, expression in enumerate(data.expressions):
            by_image[expression.ref.file_name].append(index)
        self.images = list(by_image.values())

    def draw(self, rng: np.random.Generator, count: int) -> ReferringSample:
        """Return `count` expressions about one image, some twice if it has fewer."""
        indices = self.images[int(rng.integers(len(self.images)))]
        chosen = [int(index) for index in np.resize(rng.permutation(indices), count)]
        image = resize_image(self.data.image(chosen[0]), self.size)
        expressions = [self.data.expressions[index] for index in chosen]
        return ReferringSample(
            np.stack([image] * self.history),
            tuple(expression.text for expression in expressions),
            np.stack([_resize_mask(self.data.mask(index), self.size) for index in chosen]),
            source=expressions[0].ref.file_name,
        )


def _resize_mask(mask: Bool[np.ndarray, "H W"], size: tuple[int, int]) -> Bool[np.ndarray, "h w"]:
    resized = Image.fromarray(mask.astype(np.uint8)).resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized) > 0
