"""A piece of an experiment that is done once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """What gives rows to a result.

    key: what tells the job apart, in every row of it; seconds: how long it takes, about; run: does it, going on from
    where it was interrupted, and returns its rows without the key.
    """

    key: dict[str, Any]
    seconds: float
    run: Callable[[], list[dict[str, Any]]]

    @property
    def title(self) -> str:
        """The key in words."""
        return ", ".join(f"{name} {value}" for name, value in self.key.items())
