"""Masks that a model answered with, in a file: scored later, without the model, to the same figures.

One line of JSON for each expression, its mask as COCO's packed run lengths, null where the model gave none:

    {"sent_id": 12, "ref_id": 3, "mask": {"size": [480, 640], "counts": "..."}}
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_file
from pretrain.referring.coco_masks import MaskError, decode_mask, encode_mask
from pretrain.referring.refcoco import RefCocoDataset
from pretrain.referring.segmentation_metrics import confusion, segmentation_metrics


@dataclass(frozen=True)
class MaskPrediction:
    """The answer to one expression; runs: the mask as packed run lengths, None where there was none."""

    sent_id: int
    ref_id: int
    runs: dict[str, Any] | None

    @classmethod
    def of(cls, sent_id: int, ref_id: int, mask: np.ndarray | None) -> "MaskPrediction":
        """Return the answer that holds a mask bool[H, W], or none."""
        return cls(sent_id, ref_id, None if mask is None else encode_mask(mask))

    @property
    def mask(self) -> np.ndarray | None:
        """The mask, bool[H, W], or None."""
        return None if self.runs is None else decode_mask(self.runs)


def write_predictions(file: Path, answers: Iterable[MaskPrediction]) -> int:
    """Write answers as they come, so that a reader finds all or none of them; return how many there were."""
    count = 0
    with atomic_file(file) as temporary, temporary.open("w") as stream:
        for answer in answers:
            row = {"sent_id": answer.sent_id, "ref_id": answer.ref_id, "mask": answer.runs}
            stream.write(json.dumps(row) + "\n")
            count += 1
    return count


def read_predictions(file: Path) -> dict[int, MaskPrediction]:
    """Return the answers of a file by their `sent_id`; masks stay packed until they are asked for.

    Raises:
        MaskError: the file is missing, a line is damaged or an expression is answered twice; the message names it.
    """
    file = Path(file)
    if not file.is_file():
        raise MaskError(f"expected a file of answers, one line of JSON each, got {file}")
    answers: dict[int, MaskPrediction] = {}
    with file.open() as stream:
        for number, line in enumerate(stream, 1):
            try:
                row = json.loads(line)
                answer = MaskPrediction(int(row["sent_id"]), int(row["ref_id"]), row["mask"])
                answer.mask  # noqa: B018  a damaged mask is to be found here, where its line is known
            except (MaskError, ValueError, KeyError, TypeError) as error:
                raise MaskError(f"{file}, line {number} is damaged: {type(error).__name__}: {error}") from error
            if answer.sent_id in answers:
                raise MaskError(f"{file}, line {number}: expression {answer.sent_id} is answered a second time")
            answers[answer.sent_id] = answer
    return answers


def score_predictions(data: RefCocoDataset, answers: dict[int, MaskPrediction]) -> dict[str, float]:
    """Return the figures of `pretrain.referring.segmentation_metrics` under the convention of `data`; no answer counts as empty.

    Raises:
        MaskError: an answer is to an expression that `data` does not hold, or differs from its picture in size.
    """
    strange = answers.keys() - {expression.sent_id for expression in data.expressions}
    if strange:
        raise MaskError(
            f"expected answers to {data.name}, got {len(strange)} to expressions that it does not hold, "
            f"the first {min(strange)}; score them with the split that they were made for"
        )
    found = (answers.get(expression.sent_id) for expression in data.expressions)
    masks = (None if answer is None else answer.mask for answer in found)
    return segmentation_metrics(
        (confusion(mask, data.mask(i), data.compat) for i, mask in enumerate(masks)), data.compat
    )
