"""The interface of all agents."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

Rngs = list[np.random.Generator]
State = TypeVar("State")


@dataclass(frozen=True)
class Actions:
    """An agent's actions in n parallel environments."""

    indices: np.ndarray  # int[n]
    texts: tuple[str, ...]  # the agent's answers, verbatim
    scores: np.ndarray | None  # float32[n, A], the probability (of a search: the value) of every legal action
    invalid: np.ndarray  # bool[n], where the answer names no legal action and no-op stands in for it

    @classmethod
    def legal(cls, indices: np.ndarray, action_names: Sequence[str], scores: np.ndarray | None = None) -> "Actions":
        """Return actions whose answers are their names."""
        return cls(indices, tuple(action_names[i] for i in indices), scores, np.zeros(len(indices), dtype=bool))


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


def report_idle(agent: Any, idle: np.ndarray) -> None:
    """Tell an agent, also within others, which environments idle, bool[n], if it has a method `set_idle`.

    Such an agent pays for its answers; the others compute for idle environments, too.
    """
    while not hasattr(agent, "set_idle"):
        if not hasattr(agent, "agent"):
            return
        agent = agent.agent
    agent.set_idle(idle)


def reset_states(states: list[State], seeds: Sequence[int | None], new_state: Callable[[int], State]) -> list[State]:
    """Return the environments' states: `new_state(seed)` where an episode starts, the old one where it continues."""
    old = states if len(states) == len(seeds) else [new_state(0)] * len(seeds)
    return [state if seed is None else new_state(seed) for state, seed in zip(old, seeds, strict=True)]


def reset_rngs(rngs: Rngs, seeds: Sequence[int | None], stream: int) -> Rngs:
    """Return the environments' generators, new ones for new episodes; `stream` differs from agent to agent."""
    return reset_states(rngs, seeds, lambda seed: np.random.default_rng([seed, stream]))
