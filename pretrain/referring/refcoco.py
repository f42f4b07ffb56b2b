"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO: expressions, images of COCO's `train2014`, and masks.

The layout on disk is that of `pretrain.referring.refer_files`; `pretrain.referring.dataset_report` lists what is there.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from common.errors import UserError
from common.images import read_image
from common.text import printable
from pretrain.referring.coco_masks import check_compat, decode_segmentation
from pretrain.referring.refer_files import (
    IMAGES,
    PARTITIONS,
    Ref,
    ReferError,
    find_dataset,
    find_split,
    in_split,
    list_images,
    read_refs,
)
from pretrain.referring.samples import ReferringSample
from vlm.image_input import resize_image

MAX_NAMED_IMAGES = 3  # of the missing ones, in messages


@dataclass(frozen=True)
class RefExpression:
    """A text that refers to one object of an image."""

    sent_id: int
    text: str
    ref: Ref


class RefCocoDataset:
    """The expressions of a split in the order of its file; images and masks are decoded on access.

    Expressions whose image is missing are left out: `missing_images` lists the images, `num_left_out` counts the
    expressions. `images` is the folder of COCO's train2014 if it is not in `root`; `compat` is that of `coco_masks`.

    Raises:
        ReferError: files are missing or damaged, the split is empty, or all of its images are missing.
    """

    def __init__(self, root: Path, dataset: str, split: str, images: Path | None = None, compat: str = "plain"):
        check_compat(compat)
        dataset, split = find_dataset(dataset), find_split(split)
        partition = PARTITIONS[dataset][0]
        self.name, self.compat, self.image_dir = f"{dataset}-{partition}-{split}", compat, images or root / IMAGES
        all_refs = read_refs(root, dataset)
        refs = [ref for ref in all_refs if ref.sentences and in_split(ref.split, split)]
        if not refs:
            splits = ", ".join(sorted({ref.split for ref in all_refs})) or "none"
            raise ReferError(f"{dataset} {partition} has no expressions in the split {split}; its splits: {splits}")
        available = list_images(self.image_dir)
        self.missing_images = sorted({ref.file_name for ref in refs} - available)
        self.expressions = [
            RefExpression(sent_id, text, ref)
            for ref in refs
            if ref.file_name in available
            for sent_id, text in ref.sentences
        ]
        self.num_left_out = sum(len(ref.sentences) for ref in refs) - len(self.expressions)
        if not self.expressions:
            first = refs[0].file_name
            raise ReferError(f"none of the images of {self.name} is in {self.image_dir}; the first: {first}")

    def __len__(self) -> int:
        return len(self.expressions)

    def __getitem__(self, index: int) -> ReferringSample:
        item = self.expressions[index]
        ids = (item.sent_id,), (item.ref.ref_id,)
        return ReferringSample(self.image(index)[None], (item.text,), self.mask(index)[None], item.ref.file_name, *ids)

    def image(self, index: int) -> UInt8[np.ndarray, "H W 3"]:
        """Return an expression's image; `ReferError` if its size is not that of its annotation."""
        ref = self.expressions[index].ref
        file = self.image_dir / ref.file_name
        image = read_image(file, upright=False)
        if image.shape[:2] != (ref.height, ref.width):
            image = read_image(file)  # annotated as it is shown
        if image.shape[:2] != (ref.height, ref.width):
            size, found = f"{ref.height} x {ref.width}", f"{image.shape[0]} x {image.shape[1]}"
            raise ReferError(f"{file}: expected {size} pixels as the annotations say, got {found}")
        return image

    def mask(self, index: int) -> Bool[np.ndarray, "H W"] | UInt8[np.ndarray, "H W"]:
        """Return an expression's mask at its image's size, of all its objects; bool, or uint8 under "lisa"."""
        ref = self.expressions[index].ref
        mask = decode_segmentation([], ref.height, ref.width, self.compat)
        for ann_id, segmentation in zip(ref.ann_ids, ref.segmentations, strict=True):
            try:
                mask = np.maximum(mask, decode_segmentation(segmentation, ref.height, ref.width, self.compat))
            except UserError as error:
                raise ReferError(f"annotation {ann_id} of {self.name} is damaged: {error}") from error
        return mask

    @property
    def note(self) -> str:
        """What was left out, one line to print; empty if nothing was."""
        if not self.missing_images:
            return ""
        return printable(
            f"{self.name}: {len(self.missing_images)} images missing in {self.image_dir} and {self.num_left_out} "
            f"expressions left out: {', '.join(self.missing_images[:MAX_NAMED_IMAGES])}"
            f"{' ...' if len(self.missing_images) > MAX_NAMED_IMAGES else ''}"
        )


class RefCocoSampler:
    """Draws images of a split uniformly, resized to fit one batch, each with expressions of its objects."""

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
