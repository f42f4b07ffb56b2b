"""Search on a cloned emulator state: a value for every action, with no training and for any game.

Two ways to look ahead. `FireLookahead` answers "when should I shoot?": hold a direction for k decisions, press one
firing action, then wait for what it brings. `RandomRolloutSearch` answers "where should I go?": random walks of held
actions, with the best walk of the last decision tried again (rolling-horizon search with a shift buffer,
Gaina et al. 2017, "Analysis of vanilla rolling horizon evolution parameters"). Both resample the stickiness of the
actions in every look-ahead, so that a value is an estimate over what the protocol may do to the player.

The searcher reads the simulator's state, which no player of the real game could: every table that shows its
scores must call it a teacher with access to the simulator.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from envs.atari import Emulator


@dataclass(frozen=True)
class RewardShaping:
    """What a game takes from a player besides points, in points.

    `life` is the price of a lost life, and of the end of the game. `ram` maps an address of the console's 128 bytes
    to the price of one unit of the counter kept there (bullets in Carnival): a falling one costs, a rising one pays.
    """

    life: float = 500.0
    ram: dict[int, float] = field(default_factory=dict)


class Search(Protocol):
    """Looks ahead from an emulator's present state and leaves that state as it was."""

    def values(self, emulator: Emulator, rng: np.random.Generator) -> np.ndarray:
        """Return float32[A]: the estimated value of each action, -inf for an action that was not looked at."""
        ...


class _Lookahead:
    """One emulator walked forward and back, with points and stakes added up."""

    def __init__(self, emulator: Emulator, stakes: RewardShaping, discount: float):
        self.emulator, self.stakes, self.discount = emulator, stakes, discount
        self.value, self.weight = 0.0, 1.0
        self.lives, self.counters = emulator.lives, self._counters()

    def _counters(self) -> list[int]:
        if not self.stakes.ram:
            return []
        ram = self.emulator.ram
        return [int(ram[address]) for address in self.stakes.ram]

    def mark(self) -> tuple:
        """Return a bookmark for `back`."""
        return self.emulator.clone(), self.value, self.weight, self.lives, self.counters

    def back(self, mark: tuple) -> None:
        """Return to a bookmark."""
        state, self.value, self.weight, self.lives, self.counters = mark
        self.emulator.restore(state)

    def step(self, action: int) -> bool:
        """Play one decision; return False once a life or the game is lost, where looking on would be idle."""
        gain = self.emulator.act(action)
        counters = self._counters()
        for price, before, after in zip(self.stakes.ram.values(), self.counters, counters, strict=True):
            gain += price * (after - before)
        self.counters = counters
        lives, over = self.emulator.lives, self.emulator.game_over
        lost = over or lives < self.lives
        gain -= self.stakes.life * lost
        self.lives = lives
        self.value += self.weight * gain
        self.weight *= self.discount
        return not lost

    def play(self, actions: list[int]) -> float:
        """Play a list of decisions, as far as the game goes on, and return the value so far."""
        for action in actions:
            if not self.step(action):
                break
        return self.value


@dataclass(frozen=True)
class FireLookahead:
    """Values of actions as the best single shot that can follow them.

    A firing action is worth what comes of it within `flight` decisions. A moving action (or waiting) is worth the
    best of: hold it for k of `holds` decisions, fire, wait for `flight` decisions; or hold it and never fire.
    """

    moves: tuple[int, ...]
    shots: tuple[int, ...]
    actions: int
    trigger: int
    stakes: RewardShaping = RewardShaping()
    holds: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 12)
    flight: int = 10
    discount: float = 0.97

    def values(self, emulator: Emulator, rng: np.random.Generator) -> np.ndarray:
        """See `Search.values`; the search has no randomness of its own beside the sticky actions."""
        values = np.full(self.actions, -np.inf, dtype=np.float32)
        ahead = _Lookahead(emulator, self.stakes, self.discount)
        start = ahead.mark()
        for shot in self.shots:
            values[shot] = ahead.play([shot] + [0] * (self.flight - 1))
            ahead.back(start)
        for move in self.moves:
            values[move] = self._best_after(ahead, move)
            ahead.back(start)
        return values

    def _best_after(self, ahead: _Lookahead, move: int) -> float:
        best, wait = -np.inf, [0] * (self.flight - 1)
        for held in range(1, max(self.holds) + 1):
            if not ahead.step(move):
                return max(best, ahead.value)
            if held in self.holds:
                here = ahead.mark()
                best = max(best, ahead.play([self.trigger, *wait]))
                ahead.back(here)
        return max(best, ahead.play([0, *wait]))


@dataclass
class RandomRolloutSearch:
    """Values of actions as what random walks that begin with them bring.

    From every one of `moves`, `walks` random walks of `depth` decisions. A walk holds an action for two to eight
    decisions and seldom turns straight back, since a walk that dithers sees nothing of a maze. The value of a move is
    `optimism` times its best walk plus the rest times its mean walk: a mean alone is too afraid of walks that no
    player would take, a maximum alone believes in luck. Where no walk gains anything (the last pellets are far away),
    walks of `far_depth` decisions look further.
    """

    moves: tuple[int, ...]
    actions: int
    opposite: dict[int, int] = field(default_factory=dict)
    stakes: RewardShaping = RewardShaping()
    walks: int = 3
    depth: int = 30
    far_depth: int = 120
    discount: float = 0.97
    optimism: float = 0.5
    turn_back: float = 0.1
    _plan: list[int] | None = None

    def values(self, emulator: Emulator, rng: np.random.Generator) -> np.ndarray:
        """See `Search.values`."""
        ahead = _Lookahead(emulator, self.stakes, self.discount)
        start = ahead.mark()
        found: dict[int, list[float]] = {move: [] for move in self.moves}
        best_value, best_plan = -np.inf, None
        for depth in (self.depth, self.far_depth):
            for plan in self._plans(rng, depth):
                value = ahead.play(plan)
                ahead.back(start)
                found[plan[0]].append(value)
                if value > best_value:
                    best_value, best_plan = value, plan
            if best_value > 0:
                break
        self._plan = best_plan
        values = np.full(self.actions, -np.inf, dtype=np.float32)
        for move, worths in found.items():
            values[move] = self.optimism * max(worths) + (1 - self.optimism) * np.mean(worths)
        return values

    def _plans(self, rng: np.random.Generator, depth: int) -> list[list[int]]:
        plans = [self._walk(move, rng, depth) for move in self.moves for _ in range(self.walks)]
        if self._plan is not None:
            plans += [[*self._plan[1:], int(rng.choice(self.moves))]] * 2
        return plans

    def _walk(self, first: int, rng: np.random.Generator, depth: int) -> list[int]:
        walk = [first] * int(rng.integers(2, 9))
        while len(walk) < depth:
            back = self.opposite.get(walk[-1])
            onward = [move for move in self.moves if move != back]
            choices = self.moves if rng.random() < self.turn_back else onward
            walk += [int(rng.choice(choices))] * int(rng.integers(2, 9))
        return walk[:depth]
