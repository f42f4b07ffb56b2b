"""The experiment `model-classes`: a tiny checkpoint of every class goes through every task.

    python -m experiments.run model-classes --processes 1

It takes what processors of some classes need beside: `pip install -e ".[vlm]"`. docs/model-classes.md is made from it.
"""

import importlib.util
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from common.errors import UserError
from experiments.model_classes.tasks import TASKS, Figures, Trial, try_task
from experiments.model_classes.tiny_checkpoints import CLASSES, PACKAGES
from experiments.studies.jobs import Job

SECONDS = 20.0  # of a class


def lacks_package(name: str) -> str | None:
    """Return the package that a class is not made without, if it is not installed."""
    package = PACKAGES.get(name)
    return package if package and importlib.util.find_spec(package) is None else None


def prepare() -> None:
    """Refuse to measure without the packages that some classes need."""
    needed = {*PACKAGES.values(), "num2words"}  # the latter is asked for by a processor
    if missing := sorted(package for package in needed if importlib.util.find_spec(package) is None):
        raise UserError(f"expected the packages {', '.join(missing)}, not installed; pip install -e '.[vlm]'")


def jobs(_seeds: Sequence[int] | None, work: Path) -> list[Job]:
    """Return a job for each class; nothing in it depends on a seed."""
    return [Job({"tiny_checkpoint": name}, SECONDS, partial(measure, name, work / name)) for name in CLASSES]


def measure(name: str, work: Path) -> Iterator[Figures]:
    """Yield the row of each task of a class; what an interrupted job left is removed."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    trial = Trial(name, work)
    for task in TASKS:
        yield try_task(trial, task)
