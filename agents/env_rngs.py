"""Random generators of parallel environments, seeded by their episodes."""

from collections.abc import Iterator, Sequence

import numpy as np


class EnvRngs:
    """One generator for each environment, so that an episode's draws depend on its seed alone.

    `stream` keeps apart the draws of agents that share an episode's seed.
    """

    def __init__(self, stream: int):
        self._stream = stream
        self._rngs: list[np.random.Generator] = []

    def reset(self, seeds: Sequence[int | None]) -> None:
        """Reseed each environment that has a seed; one with None keeps its generator."""
        if len(self._rngs) != len(seeds):
            self._rngs = [np.random.default_rng(0)] * len(seeds)
        for env_index, seed in enumerate(seeds):
            if seed is not None:
                self._rngs[env_index] = np.random.default_rng([seed, self._stream])

    def __iter__(self) -> Iterator[np.random.Generator]:
        return iter(self._rngs)

    def __getitem__(self, env_index: int) -> np.random.Generator:
        return self._rngs[env_index]
