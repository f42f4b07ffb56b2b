"""Search on cloned emulator states: a value for every action of any game, without training.

Every rollout draws the sticky actions anew, so that a value is an estimate over them. Search reads the simulator's
state, which no human player sees: report it as an expert with access to the simulator.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Float32

from envs.atari import Emulator

ActionValues = Float32[np.ndarray, " actions"]


@dataclass(frozen=True)
class RewardShaping:
    """Prices of what a game takes from a player, in points."""

    life: float = 500.0  # also of the end of the episode
    ram: dict[int, float] = field(default_factory=dict)  # address of a counter: price of a unit, lost or gained


class Search(Protocol):
    """Estimates action values in an emulator's current state, which it leaves unchanged."""

    def values(self, emulator: Emulator, rng: np.random.Generator) -> ActionValues:
        """Return the estimated value of each action, -inf for an action that was not searched."""
        ...


class _Rollout:
    """An emulator that is stepped forward and restored, with its discounted, shaped return."""

    def __init__(self, emulator: Emulator, shaping: RewardShaping, discount: float):
        self.emulator, self.shaping, self.discount = emulator, shaping, discount
        self.value, self.weight = 0.0, 1.0
        self.lives, self.counters = emulator.lives, self._read_counters()

    def _read_counters(self) -> list[int]:
        ram = self.emulator.ram if self.shaping.ram else ()
        return [int(ram[address]) for address in self.shaping.ram]

    def save(self) -> tuple:
        """Return the state for `restore`."""
        return self.emulator.clone(), self.value, self.weight, self.lives, self.counters

    def restore(self, saved: tuple) -> None:
        """Return to a state of `save`."""
        state, self.value, self.weight, self.lives, self.counters = saved
        self.emulator.restore(state)

    def step(self, action: int) -> bool:
        """Take one step; return False once a life or the episode is lost, which ends a rollout."""
        reward = self.emulator.act(action)
        counters = self._read_counters()
        for price, before, after in zip(self.shaping.ram.values(), self.counters, counters, strict=True):
            reward += price * (after - before)
        self.counters = counters
        lives, over = self.emulator.lives, self.emulator.game_over
        lost = over or lives < self.lives
        self.lives = lives
        self.value += self.weight * (reward - self.shaping.life * lost)
        self.weight *= self.discount
        return not lost

    def run(self, actions: list[int]) -> float:
        """Take steps until a life is lost; return the value."""
        for action in actions:
            if not self.step(action):
                break
        return self.value


@dataclass(frozen=True)
class FireLookahead:
    """Values of actions by the best single shot that can follow them: when to shoot.

    A shot has the return of the `rollout_horizon` steps that it starts. A move (or no-op) has that of the best of:
    hold it for one of `hold_lengths` steps, then shoot; hold it for the longest and never shoot.
    """

    moves: tuple[int, ...]
    shots: tuple[int, ...]
    num_actions: int
    fire: int
    shaping: RewardShaping = RewardShaping()
    hold_lengths: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 12)
    rollout_horizon: int = 10
    discount: float = 0.97

    def values(self, emulator: Emulator, rng: np.random.Generator) -> ActionValues:
        """See `Search.values`; only the sticky actions are random."""
        values = np.full(self.num_actions, -np.inf, dtype=np.float32)
        rollout = _Rollout(emulator, self.shaping, self.discount)
        start = rollout.save()
        for shot in self.shots:
            values[shot] = rollout.run([shot] + [0] * (self.rollout_horizon - 1))
            rollout.restore(start)
        for move in self.moves:
            values[move] = self._move_value(rollout, move)
            rollout.restore(start)
        return values

    def _move_value(self, rollout: _Rollout, move: int) -> float:
        best, wait = -np.inf, [0] * (self.rollout_horizon - 1)
        for held in range(1, max(self.hold_lengths) + 1):
            if not rollout.step(move):
                return max(best, rollout.value)
            if held in self.hold_lengths:
                before_shot = rollout.save()
                best = max(best, rollout.run([self.fire, *wait]))
                rollout.restore(before_shot)
        return max(best, rollout.run([0, *wait]))


@dataclass
class RandomRolloutSearch:
    """Values of actions by random rollouts that start with them, `num_rollouts` of `horizon` steps each: where to go.

    A rollout holds each action for two to eight steps and rarely reverses, so that it covers distance in a maze. The
    best rollout of the last step is tried again (shift buffer of rolling-horizon search, Gaina et al. 2017). The value
    of an action is `max_weight` times its best rollout plus the rest times their mean: a mean alone counts rollouts
    that no player would choose, a maximum alone counts luck. Where no rollout gains anything, such as far from the last
    pellets, rollouts of `extended_horizon` steps are added.
    """

    moves: tuple[int, ...]
    num_actions: int
    opposites: dict[int, int] = field(default_factory=dict)
    shaping: RewardShaping = RewardShaping()
    num_rollouts: int = 3
    horizon: int = 30
    extended_horizon: int = 120
    discount: float = 0.97
    max_weight: float = 0.5
    reversal_probability: float = 0.1
    _best_actions: list[int] | None = None

    def values(self, emulator: Emulator, rng: np.random.Generator) -> ActionValues:
        """See `Search.values`."""
        rollout = _Rollout(emulator, self.shaping, self.discount)
        start = rollout.save()
        returns: dict[int, list[float]] = {move: [] for move in self.moves}
        best_return, best_actions = -np.inf, None
        for horizon in (self.horizon, self.extended_horizon):
            for actions in self._action_sequences(rng, horizon):
                value = rollout.run(actions)
                rollout.restore(start)
                returns[actions[0]].append(value)
                if value > best_return:
                    best_return, best_actions = value, actions
            if best_return > 0:
                break
        self._best_actions = best_actions
        values = np.full(self.num_actions, -np.inf, dtype=np.float32)
        for move, found in returns.items():
            values[move] = self.max_weight * max(found) + (1 - self.max_weight) * np.mean(found)
        return values

    def _action_sequences(self, rng: np.random.Generator, horizon: int) -> list[list[int]]:
        sequences = [self._random_actions(move, rng, horizon) for move in self.moves for _ in range(self.num_rollouts)]
        if self._best_actions is not None:
            sequences += [[*self._best_actions[1:], int(rng.choice(self.moves))]] * 2
        return sequences

    def _random_actions(self, first: int, rng: np.random.Generator, horizon: int) -> list[int]:
        actions = [first] * int(rng.integers(2, 9))
        while len(actions) < horizon:
            reversal = self.opposites.get(actions[-1])
            onward = [move for move in self.moves if move != reversal]
            choices = self.moves if rng.random() < self.reversal_probability else onward
            actions += [int(rng.choice(choices))] * int(rng.integers(2, 9))
        return actions[:horizon]
