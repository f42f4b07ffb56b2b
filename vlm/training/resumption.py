"""The checkpoints that a training resumes from: which are complete, and which may go."""

import contextlib
import shutil
from pathlib import Path

from transformers.trainer_callback import TrainerState

from common.errors import UserError

UNFINISHED = ".unfinished"  # where a checkpoint is written, beside the complete ones


def non_finite_error(reason: str, directory: Path) -> UserError:
    """Return the error of a training that diverged; it names the last checkpoint, which is from before."""
    kept = newest_complete_checkpoint(directory)
    where = f"the last good checkpoint is {kept}" if kept else "no checkpoint was saved before"
    return UserError(f"{reason}, expected a finite number; {where}; choose a lower --learning-rate and another --out")


def complete_checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints whose files are all there, those of the most steps last."""
    steps: dict[Path, int] = {}
    for place in directory.glob("checkpoint-*"):
        with contextlib.suppress(OSError, ValueError, TypeError):  # the file is written last: missing or cut short
            steps[place] = TrainerState.load_from_json(str(place / "trainer_state.json")).global_step
    return sorted(steps, key=lambda place: steps[place])


def newest_complete_checkpoint(directory: Path) -> Path | None:
    """Return the checkpoint of the most steps whose files are all there, or None."""
    return next(reversed(complete_checkpoints(directory)), None)


def remove_old_checkpoints(directory: Path, limit: int | None) -> None:
    """Remove the checkpoints that are not complete, and but for the newest `limit` those that are."""
    complete = complete_checkpoints(directory)
    kept = set(complete[-limit:] if limit else complete)
    unfinished = directory / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)
    for place in sorted({*directory.glob("checkpoint-*")} - kept):
        place.rename(unfinished)  # a kill leaves no half of a checkpoint
        shutil.rmtree(unfinished, ignore_errors=True)
