"""A job: the unit of an experiment that runs once."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """One job and its rows.

    key: identifies the job, in every row of it; seconds: about how long it takes; run: does it, resumes it where it was
    interrupted, and returns its rows without the key.
    """

    key: dict[str, Any]
    seconds: float
    run: Callable[[], Iterable[dict[str, Any]]]

    @property
    def title(self) -> str:
        """The key in words."""
        return ", ".join(f"{name} {value}" for name, value in self.key.items())
