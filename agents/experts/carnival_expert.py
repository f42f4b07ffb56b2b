"""Action values for Carnival from shots played out on the emulator (docs/experts.md: why green pipes, and the sign).

A shot has the value of what it hits, found by playing it out. No player could, but the positions of bullets and targets
follow from rows and speeds, which two frames show. A move has minus the expected number of steps to the nearest firing
position: its last frame may repeat in the next step (sticky actions), so that the number comes from value iteration.
"""

import itertools
from collections import defaultdict
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float

from agents.experts.search import ActionValues
from envs.atari import Emulator, Frame, Ram
from envs.protocol import MACHADO2018

BULLETS, PIPES, GUN = 3, 5, 2  # addresses: bullets left, pipes left, the gun's coordinate
GUN_OFFSET = -4  # pixels from the gun's coordinate to its left edge on the frame
FIRING_POSITIONS = ((69, 70), (95, 96))  # first and last left edge of the gun from which a bullet hits the wheel
MUZZLE_OFFSET = 2  # pixels from the gun's left edge to its bullet
SIGN_POSITIONS = (30, 40)  # from which one hits the sign
MIN_SIGN = 100  # points that tell a hit of the sign, which shows up to 500 to win or to lose
GREEN = (26, 102, 26)
WHEEL = (slice(14, 27), slice(66, 104))  # its part of the frame
AIRSPACE = (slice(106, 180), slice(8, 160))  # below the rows of targets, where ducks fly
LANDING_ROW = 167  # of a duck that eats bullets
FLIGHT_STEPS = 9  # of a bullet to the wheel, and one more
MAX_BULLETS = 40
FRAME_SKIP, STICKY_PROBABILITY = MACHADO2018.frame_skip, MACHADO2018.repeat_action_probability
MOVES = {"left": -1, "noop": 0, "right": 1}  # pixels per frame
MAX_OFFSET = 48  # pixels to either side of a position within which `cost_to_go` is exact

Position = tuple[float, float]  # x, y in pixels


@dataclass(frozen=True)
class ShotOutcome:
    """The result of firing now."""

    fired: bool  # a bullet left
    points: int  # that it made
    wheel_color: tuple[int, ...] | None  # when it made them
    bullets: int  # gained or lost besides
    hit_duck: bool  # a flying one


@dataclass
class CarnivalExpert:
    """Values of Carnival's actions, in points; see `agents.experts.search.Search`."""

    action_names: tuple[str, ...]
    pipe_value: float = 400.0  # of a green one; one in another color costs as much, so the gun waits
    bullet_cost: float = 60.0
    duck_value: float = 300.0  # in flight
    step_cost: float = 30.0
    _observations: tuple[tuple[bytes, Position | None], ...] = ()  # the last two: memory, and the flying duck if any

    def values(self, emulator: Emulator, rng: np.random.Generator) -> ActionValues:
        """Return the action values, -inf for moves that fire."""
        values = np.full(len(self.action_names), -np.inf, dtype=np.float32)
        ram = emulator.ram
        duck = self._observe(emulator)
        first, last = self._firing_interval(ram)
        costs = cost_to_go(last - first + 1)
        offset = int(ram[GUN]) + GUN_OFFSET - first
        for name, cost in zip(MOVES, move_costs(costs, offset), strict=True):
            values[self.action_names.index(name)] = -self.step_cost * cost
        noop, fire = (self.action_names.index(name) for name in ("noop", "fire"))
        values[fire] = values[noop] + self._shot_value(play_shot(emulator, fire, duck), ram)
        return values

    def _observe(self, emulator: Emulator) -> Position | None:
        """Return the flying duck; once per state, because `play_shot` changes the frame on the screen."""
        ram = emulator.ram.tobytes()
        if not self._observations or self._observations[-1][0] != ram:
            self._observations = (*self._observations[-1:], (ram, find_duck(emulator.frame())))
        return self._observations[-1][1]

    def _firing_interval(self, ram: Ram) -> tuple[int, int]:
        """Return the first and last left edge of the gun from which to shoot next."""
        (_, previous), (_, duck) = self._observations[0], self._observations[-1]
        gun = int(ram[GUN]) + GUN_OFFSET
        if duck:
            drift = duck[0] - previous[0] if previous and abs(duck[0] - previous[0]) < FRAME_SKIP else 0.0
            center = round(duck[0] + drift * (LANDING_ROW - duck[1]) / (5 * FRAME_SKIP)) - MUZZLE_OFFSET
            return center - 4, center + 4
        if ram[PIPES]:
            return min(FIRING_POSITIONS, key=lambda interval: abs(interval[0] - gun))
        return SIGN_POSITIONS

    def _shot_value(self, shot: ShotOutcome, ram: Ram) -> float:
        """Return the value of a shot beyond that of a no-op."""
        if not shot.fired:
            return -self.bullet_cost
        value = self.duck_value * shot.hit_duck - self.bullet_cost
        if shot.bullets > 0:
            value += self.bullet_cost * min(shot.bullets, MAX_BULLETS - int(ram[BULLETS]))
        if not ram[PIPES]:
            return value + (shot.points if abs(shot.points) >= MIN_SIGN else 0)
        if shot.points in (200, 800):
            return value + (self.pipe_value if shot.wheel_color == GREEN else -self.pipe_value)
        return value


def find_duck(frame: Frame) -> Position | None:
    """Return the center of a flying duck, or None."""
    red, green, blue = np.moveaxis(frame[AIRSPACE], -1, 0)
    rows, columns = np.nonzero((red > 150) & (green > 150) & (blue < 100))
    if len(rows) < 25:  # a bullet has the duck's color
        return None
    return float(columns.mean()) + AIRSPACE[1].start, float(rows.mean()) + AIRSPACE[0].start


def wheel_color(frame: Frame) -> tuple[int, ...] | None:
    """Return the color of the wheel, or None if it is gone."""
    pixels = frame[WHEEL].reshape(-1, 3)
    lit = pixels[pixels.any(axis=1)]
    return tuple(lit[len(lit) // 2].tolist()) if len(lit) else None


def play_shot(emulator: Emulator, fire: int, duck: Position | None) -> ShotOutcome:
    """Return the outcome of a shot at the present flying duck, if any; the emulator's state is restored."""
    start, bullets_before = emulator.clone(), int(emulator.ram[BULLETS])
    points, frame = emulator.step(fire)
    bullets = int(emulator.ram[BULLETS])
    fired, hit_duck = bullets < bullets_before, False
    for _ in range(FLIGHT_STEPS if fired else 0):
        if points or hit_duck:
            break
        points, frame = emulator.step(0)
        next_duck = find_duck(frame)
        hit_duck = duck is not None and next_duck is None and duck[1] < LANDING_ROW
        duck = next_duck
    color, gained = wheel_color(frame) if points else None, int(emulator.ram[BULLETS]) - bullets
    emulator.restore(start)
    return ShotOutcome(fired, int(points), color, gained, hit_duck)


@cache
def transition_distribution(move: int, last: int) -> tuple[tuple[int, int, float], ...]:
    """Return (pixels, move of the last frame, probability) of the step `move` after a frame with the move `last`."""
    found = {(0, last): 1.0}
    for _ in range(FRAME_SKIP):
        extended: dict[tuple[int, int], float] = defaultdict(float)
        for (pixels, current), probability in found.items():
            extended[pixels + current, current] += probability * STICKY_PROBABILITY
            extended[pixels + move, move] += probability * (1 - STICKY_PROBABILITY)
        found = extended
    return tuple((pixels, current, probability) for (pixels, current), probability in found.items())


@cache
def cost_to_go(width: int) -> Float[np.ndarray, "offsets 3 3"]:
    """Return the expected steps until the gun rests within [0, width), by offset, last move and next move.

    Offsets run from -MAX_OFFSET to MAX_OFFSET + width - 1; moves are ordered as in `MOVES`.
    """
    offsets = np.arange(-MAX_OFFSET, MAX_OFFSET + width)
    inside = (offsets >= 0) & (offsets < width)
    best, costs = np.zeros((len(offsets), 3)), np.zeros((len(offsets), 3, 3))
    for _ in range(60):
        for last, move in itertools.product(MOVES.values(), repeat=2):
            expected = np.zeros(len(offsets))
            for pixels, current, probability in transition_distribution(move, last):
                reached = np.clip(np.arange(len(offsets)) + pixels, 0, len(offsets) - 1)
                expected += probability * best[reached, current + 1]
            costs[:, last + 1, move + 1] = expected + (1.0 if move else ~inside)
        best = costs.min(axis=2)
    return costs


def move_costs(costs: Float[np.ndarray, "offsets 3 3"], offset: int) -> Float[np.ndarray, "3"]:
    """Return `cost_to_go` of each move for a gun at rest at any offset, beyond MAX_OFFSET by distance."""
    near = int(np.clip(offset, FRAME_SKIP - MAX_OFFSET, len(costs) - MAX_OFFSET - 1 - FRAME_SKIP))
    return costs[near + MAX_OFFSET, 1] + abs(offset - near) / FRAME_SKIP
