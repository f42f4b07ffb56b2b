"""Several tasks in one training, at given shares: the paper's pixel value prediction is one of its tasks.

A task is a lesson over the same model and its batches. Each step draws a task by its share, from the seed and the step
alone, and is that task's step: its batch of that number, its loss, its figures under its name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from common.errors import UserError
from vlm.training.trainer import Objective


class Batches(Protocol):
    """Whole batches by number, as `vlm.training.trainer.train` takes them."""

    def __len__(self) -> int: ...

    def __getitem__(self, step: int) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Task:
    """A lesson in a mixture. name: what its figures are logged under; share: its weight among the tasks."""

    name: str
    lesson: Objective
    batches: Batches
    share: float

    def __post_init__(self) -> None:
        if self.share <= 0:
            raise UserError(f"expected a share above 0 for {self.name}, got {self.share}")


class MixtureDataset(Dataset):
    """Step i's task, drawn by share from the seed and i alone, and that task's batch i."""

    def __init__(self, tasks: Sequence[Task], steps: int, seed: int):
        if not tasks or any(len(task.batches) < steps for task in tasks):
            raise UserError(f"expected tasks of at least {steps} batches each")
        self.tasks, self.steps, self.seed = tuple(tasks), steps, seed
        shares = np.array([task.share for task in tasks])
        self.shares = shares / shares.sum()

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        which = int(np.random.default_rng([self.seed, step, len(self.tasks)]).choice(len(self.tasks), p=self.shares))
        return {"task": torch.tensor(which), **self.tasks[which].batches[step]}


class MixtureObjective(Objective):
    """Gives each batch to its task's lesson; all lessons teach one model, each with attention as it computes it."""

    def __init__(self, tasks: Sequence[Task]):
        first = tasks[0].lesson
        if any(task.lesson.vlm is not first.vlm for task in tasks):
            raise UserError("expected tasks over one model")
        super().__init__(first.vlm, first.bf16, first.attention)
        self.names = [task.name for task in tasks]
        self.lessons: Any = nn.ModuleList(task.lesson for task in tasks)

    def save_auxiliary(self, directory: Path) -> None:
        """Write what each task's lesson trains beside the model."""
        for lesson in self.lessons:
            lesson.save_auxiliary(directory)

    def load_auxiliary(self, directory: Path) -> None:
        """Take what `save_auxiliary` wrote."""
        for lesson in self.lessons:
            lesson.load_auxiliary(directory)

    def forward(self, task: Tensor, **batch: Any) -> dict[str, Tensor]:
        """Return the task's loss, and under the task's name its loss and figures."""
        name, lesson = self.names[int(task)], self.lessons[int(task)]
        if self.attention != lesson.attention:
            self.vlm.set_attn_implementation(lesson.attention)
            self.attention = lesson.attention
        out = lesson(**batch)
        return {"loss": out["loss"]} | {f"{name}_{figure}": value for figure, value in out.items()}
