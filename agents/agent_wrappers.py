"""Agents around an agent: action repeat, random actions, labels by an expert, changed frames."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from agents.agent import Actions, Agent, Rngs, reset_rngs, reset_states


class ActionRepeatAgent:
    """Asks its agent at every `repeat`-th step of one environment; in between, repeats the action with NaN scores."""

    def __init__(self, agent: Agent, repeat: int):
        self.name = f"{agent.name}, action repeat {repeat}"
        self.agent, self.repeat = agent, repeat
        self._steps = 0
        self._last: Actions | None = None

    def reset(self, seeds: Sequence[int | None]) -> None:
        """See `agents.agent.Agent`."""
        self.agent.reset(seeds)
        self._steps = 0

    def act(self, frames: np.ndarray) -> Actions:
        """Return the agent's actions, or the last ones again."""
        if self._last is None or self._steps % self.repeat == 0:
            self._last = self.agent.act(frames)
        elif self._last.scores is not None:
            self._last = replace(self._last, scores=np.full_like(self._last.scores, np.nan))
        self._steps += 1
        return self._last


class RandomActionAgent:
    """Replaces its agent's action, with some probability, by a random legal one for one to four steps.

    Recordings then show how an expert recovers from mistakes (DART, Laskey et al. 2017).
    """

    def __init__(self, agent: Agent, probability: float, action_names: Sequence[str]):
        self.name = f"{agent.name}, random actions {probability:g}"
        self.agent, self.probability, self.action_names = agent, probability, tuple(action_names)
        self._rngs: Rngs = []
        self._random_actions: list[tuple[int, int]] = []  # (action, steps left)

    def reset(self, seeds: Sequence[int | None]) -> None:
        """See `agents.agent.Agent`."""
        self.agent.reset(seeds)
        self._rngs = reset_rngs(self._rngs, seeds, 0x511)
        self._random_actions = reset_states(self._random_actions, seeds, lambda _: (0, 0))

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


class ExpertLabelledAgent:
    """Plays its agent's actions; `scores` are an expert's values at every `label_every`-th step, NaN at the others.

    An expert with a method `values(env_index)` is asked at these steps only; another one acts on every frame.
    """

    def __init__(self, agent: Agent, expert: Any, label_every: int, num_actions: int):
        self.name = f"{agent.name} labelled by {expert.name}"
        self.agent, self.expert, self.label_every, self.num_actions = agent, expert, label_every, num_actions
        self._steps: list[int] = []

    def reset(self, seeds: Sequence[int | None]) -> None:
        """See `agents.agent.Agent`."""
        self.agent.reset(seeds)
        self.expert.reset(seeds)
        self._steps = reset_states(self._steps, seeds, lambda seed: seed % self.label_every)  # offsets differ

    def act(self, frames: np.ndarray) -> Actions:
        """Return the agent's actions with the expert's values."""
        actions = self.agent.act(frames)
        labelled = [env_index for env_index, step in enumerate(self._steps) if step % self.label_every == 0]
        self._steps = [step + 1 for step in self._steps]
        values = np.full((len(frames), self.num_actions), np.nan, dtype=np.float32)
        if not hasattr(self.expert, "values"):
            values[labelled] = self.expert.act(frames).scores[labelled]
        else:
            for env_index in labelled:
                values[env_index] = self.expert.values(env_index)
        return replace(actions, scores=values)


class ChangedFramesAgent:
    """Lets its agent see changed frames; nobody else does."""

    def __init__(self, agent: Agent, change: Callable[[np.ndarray], np.ndarray]):
        self.name = agent.name
        self.agent, self.change = agent, change

    def reset(self, seeds: Sequence[int | None]) -> None:
        """See `agents.agent.Agent`."""
        self.agent.reset(seeds)

    def act(self, frames: np.ndarray) -> Actions:
        """Return the agent's actions for the changed frames."""
        return self.agent.act(self.change(frames))
