"""Agents around an agent: action repeat, random actions, labels by an expert."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, cast

import numpy as np

from agents.agent import Actions, Agent
from agents.env_rngs import EnvRngs


class ActionRepeatAgent:
    """Asks its agent at every `repeat`-th step and repeats the action in between, with NaN for its scores.

    For one environment.
    """

    def __init__(self, agent: Agent, repeat: int):
        self.name = f"{agent.name}, action repeat {repeat}"
        self.agent, self.repeat = agent, repeat
        self._steps = 0
        self._last: Actions | None = None

    def reset(self, seeds: Sequence[int | None]) -> None:
        """Start new episodes; see `agents.agent.Agent`."""
        self.agent.reset(seeds)
        self._steps = 0

    def act(self, frames: np.ndarray) -> Actions:
        """Return the agent's actions, or the last ones again."""
        if self._last is None or self._steps % self.repeat == 0:
            self._last = self.agent.act(frames)
        else:
            scores = None if self._last.scores is None else np.full_like(self._last.scores, np.nan)
            self._last = replace(self._last, scores=scores)
        self._steps += 1
        return self._last


class RandomActionAgent:
    """Replaces its agent's action, with some probability, by a random legal one for one to four steps.

    Recordings then show how an expert recovers from mistakes (DART, Laskey et al. 2017).
    """

    def __init__(self, agent: Agent, probability: float, action_names: Sequence[str]):
        self.name = f"{agent.name}, random actions {probability:g}"
        self.agent, self.probability, self.action_names = agent, probability, tuple(action_names)
        self._rngs = EnvRngs(0x511)
        self._random_actions: list[tuple[int, int]] = []  # (action, steps left)

    def reset(self, seeds: Sequence[int | None]) -> None:
        """Start new episodes; see `agents.agent.Agent`."""
        self.agent.reset(seeds)
        self._rngs.reset(seeds)
        if len(self._random_actions) != len(seeds):
            self._random_actions = [(0, 0)] * len(seeds)
        for env_index, seed in enumerate(seeds):
            if seed is not None:
                self._random_actions[env_index] = (0, 0)

    def act(self, frames: np.ndarray) -> Actions:
        """Return the agent's actions, some of them replaced."""
        actions = self.agent.act(frames)
        indices = actions.indices.copy()
        for env_index, rng in enumerate(self._rngs):
            action, steps_left = self._random_actions[env_index]
            if steps_left == 0 and rng.random() < self.probability:
                action, steps_left = int(rng.integers(len(self.action_names))), int(rng.integers(1, 5))
            if steps_left > 0:
                indices[env_index] = action
            self._random_actions[env_index] = (action, max(steps_left - 1, 0))
        return replace(actions, indices=indices, texts=tuple(self.action_names[i] for i in indices))


class ActionValueExpert(Agent, Protocol):
    """An agent that values every action in an environment's current state, whichever agent plays there."""

    def values(self, env_index: int) -> np.ndarray:
        """Return float32[A]."""
        ...


class ExpertLabelledAgent:
    """Plays its agent's actions; `scores` are an expert's values at every `label_every`-th step, NaN at the others.

    A search runs at these steps only; an expert that acts on frames follows the whole episode.
    """

    def __init__(self, agent: Agent, expert: Agent, label_every: int, num_actions: int):
        self.name = f"{agent.name} labelled by {expert.name}"
        self.agent, self.expert, self.label_every, self.num_actions = agent, expert, label_every, num_actions
        self._steps = np.zeros(0, dtype=int)

    def reset(self, seeds: Sequence[int | None]) -> None:
        """Start new episodes with both; see `agents.agent.Agent`."""
        self.agent.reset(seeds)
        self.expert.reset(seeds)
        if len(self._steps) != len(seeds):
            self._steps = np.zeros(len(seeds), dtype=int)
        for env_index, seed in enumerate(seeds):
            if seed is not None:
                self._steps[env_index] = seed % self.label_every  # the offset differs from episode to episode

    def act(self, frames: np.ndarray) -> Actions:
        """Return the agent's actions with the expert's values."""
        actions = self.agent.act(frames)
        labelled = self._steps % self.label_every == 0
        self._steps += 1
        return replace(actions, scores=self._values(frames, labelled))

    def _values(self, frames: np.ndarray, labelled: np.ndarray) -> np.ndarray:
        """Return the expert's values float32[n, A], NaN except in the environments `labelled`, bool[n]."""
        values = np.full((len(frames), self.num_actions), np.nan, dtype=np.float32)
        if hasattr(self.expert, "values"):
            expert = cast(ActionValueExpert, self.expert)
            for env_index in np.flatnonzero(labelled):
                values[env_index] = expert.values(int(env_index))
        else:
            scores = self.expert.act(frames).scores
            assert scores is not None
            values[labelled] = scores[labelled]
        return values
