"""Answers of an evaluation, kept as they come: one line of JSON each, so that a killed or failed one loses none.

Each process appends to a file of its own in the output directory; `remove_answers` deletes them once all are scored.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pretrain.referring.mask_predictions import MaskPrediction
from pretrain.referring.segmentation_metrics import Confusion

FILES = "answers-*.jsonl"


@dataclass(frozen=True)
class Answer:
    """What came of one expression of a test set: a prediction and its pixel counts, or the reason why none did."""

    index: int
    prediction: MaskPrediction | None = None
    confusion: Confusion | None = None
    reason: str = ""


def read_answers(directory: Path) -> dict[int, Answer]:
    """Return the kept answers by index; those without a prediction, and a line that was cut by a kill, are left out."""
    found = {}
    for file in sorted(directory.glob(FILES)):
        for line in file.read_text().splitlines():
            try:
                row = json.loads(line)
                answer = Answer(row["index"], row["prediction"], Confusion(**row["confusion"]))
            except (ValueError, KeyError, TypeError):
                continue
            found[answer.index] = answer
    return found


@contextmanager
def open_answers(directory: Path, process: int) -> Iterator[Callable[[Answer], None]]:
    """Yield a function that keeps an answer of this process."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / FILES.replace("*", str(process))).open("a") as stream:
        if stream.tell():
            stream.write("\n")  # behind a line that may have been cut

        def keep(answer: Answer) -> None:
            stream.write(json.dumps(asdict(answer)) + "\n")
            stream.flush()

        yield keep


def remove_answers(directory: Path) -> None:
    """Delete the kept answers of all processes."""
    for file in directory.glob(FILES):
        file.unlink()
