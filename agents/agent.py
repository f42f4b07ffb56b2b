"""What every player is: told when a game begins, asked for an action in every lane."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Actions:
    """A decision in each of n lanes.

    indices: int[n], the environments' actions; texts: the answer in words, one a lane, as it was given;
    scores: float32[n, A], the probability (of a planner: the value) of every legal action, or None;
    invalid: bool[n], where the answer named no legal action and noop is played for it.
    """

    indices: np.ndarray
    texts: tuple[str, ...]
    scores: np.ndarray | None
    invalid: np.ndarray


class Agent(Protocol):
    """A player of n games in step. Preprocessing and memory are the agent's own; frames are the true ones."""

    name: str

    def reset(self, seeds: Sequence[int | None]) -> None:
        """A new game begins in each lane that has a seed; in a lane with None the game goes on.

        The first call fixes the number of lanes. An agent's chance is drawn from the game's seed, so that the same
        seed gives the same game whatever the number of lanes.
        """
        ...

    def act(self, frames: np.ndarray) -> Actions:
        """Answer the frames uint8[n, H, W, 3] of all lanes."""
        ...
