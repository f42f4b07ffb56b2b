"""The interface of all agents."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Actions:
    """An agent's actions in n parallel environments.

    indices: int[n], the environments' actions; texts: the agent's answer in each, verbatim; scores: float32[n, A], the
    probability (of a search: the value) of every legal action, or None; invalid: bool[n], where the answer named no
    legal action and no-op stands in for it.
    """

    indices: np.ndarray
    texts: tuple[str, ...]
    scores: np.ndarray | None
    invalid: np.ndarray


class Agent(Protocol):
    """Plays n environments in parallel. It sees true frames: preprocessing and memory are its own."""

    name: str

    def reset(self, seeds: Sequence[int | None]) -> None:
        """Start a new episode in every environment that has a seed; one with None continues.

        The first call fixes n. Random agents draw from the episode's seed, so that an episode does not depend on n.
        """
        ...

    def act(self, frames: np.ndarray) -> Actions:
        """Return the actions for the frames uint8[n, H, W, 3] of all environments."""
        ...
