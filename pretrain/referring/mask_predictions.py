"""Predicted masks in a JSON Lines file, to be scored later without the model.

One line for each expression, its mask as COCO's compressed RLE, null if the model gave none:

    {"sent_id": 12, "ref_id": 3, "mask": {"size": [480, 640], "counts": "..."}}
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

from common.files import atomic_file
from pretrain.referring.coco_masks import MaskError, decode_mask


class MaskPrediction(TypedDict):
    """The prediction for one expression."""

    sent_id: int
    ref_id: int
    mask: dict[str, Any] | None  # of `encode_mask`; None if it is missing


def write_predictions(file: Path, predictions: Iterable[MaskPrediction]) -> None:
    """Write predictions as they come; the file appears when all are written."""
    with atomic_file(file) as temporary, temporary.open("w") as stream:
        stream.writelines(json.dumps(prediction) + "\n" for prediction in predictions)


def read_predictions(file: Path) -> dict[int, MaskPrediction]:
    """Return the predictions of a file by their `sent_id`; `MaskError` names a line that is damaged or a duplicate."""
    if not file.is_file():
        raise MaskError(f"expected a file of predictions, one line of JSON each, got {file}")
    predictions: dict[int, MaskPrediction] = {}
    with file.open() as stream:
        for number, line in enumerate(stream, 1):
            try:
                row = json.loads(line)
                sent_id, ref_id, mask = int(row["sent_id"]), int(row["ref_id"]), row["mask"]
                if mask is not None:
                    decode_mask(mask)  # here, where the line of a damaged mask is known
            except (MaskError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                raise MaskError(f"{file}, line {number} is damaged: {type(error).__name__}: {error}") from error
            if sent_id in predictions:
                raise MaskError(f"{file}, line {number}: expression {sent_id} has a second prediction")
            predictions[sent_id] = {"sent_id": sent_id, "ref_id": ref_id, "mask": mask}
    return predictions
