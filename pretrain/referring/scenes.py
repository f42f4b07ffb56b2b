"""Scenes to refer to: an image, the frames before it, and its objects; those of recorded games."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from envs.hub_sets import open_dataset
from envs.objects import GameObject, find_objects
from pretrain.data.splits import split_rows


@dataclass(frozen=True)
class Scene:
    """An image behind the frames before it, and its objects."""

    frames: UInt8[np.ndarray, "history H W 3"]
    objects: Sequence[GameObject]


class SceneSource(Protocol):
    """Where scenes come from."""

    @property
    def name(self) -> str:
        """The game, or the kind of scenes."""
        ...

    @property
    def place(self) -> Path:
        """The folder."""
        ...

    @property
    def absent_nouns(self) -> Sequence[str] | None:
        """Nouns to ask for in vain; None for the classes of all games."""
        ...

    def draw(self, rng: np.random.Generator, history: int) -> Scene:
        """Return a scene; the generator's state alone decides which."""
        ...


class GameScenes:
    """The frames of one split of a game recorded by `agents.record`."""

    absent_nouns = None

    def __init__(self, path: Path, split: str, val_episodes: int):
        self.data = open_dataset(path)
        self.name, self.place = self.data.info.game, self.data.path
        self.rows = split_rows(self.data, split, val_episodes, val_episodes)

    def draw(self, rng: np.random.Generator, history: int) -> Scene:
        """Return a frame with its objects."""
        row = int(rng.choice(self.rows))
        objects = find_objects(self.data.frame(row), self.name)
        return Scene(self.data.frames(row, history), objects)
