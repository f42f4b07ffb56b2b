"""Values of moves and shots in Carnival: a teacher that sees what a player sees, and knows what pays.

What pays, found by playing shots out: the wheel above the gallery has eight pipes, of 200 points each, and **800 where
the pipe shot before had the same colour**. The wheel's colour goes round, 12 decisions each in turn, so who shoots at
green alone has 5,800 points for eight bullets. It is reached from two places, each two pixels wide, beside the bar that
covers it, and while no target crosses the line of fire. New targets come as long as there are pipes; so the wheel is
shot first and the gallery afterwards. A duck that flies down eats ten bullets, if it is not shot.

A shot is worth what it hits, found by playing it out on the emulator, which no player could: where bullets and targets
are going to be follows from rows and speeds, which two frames show. A move is worth minus the decisions that it leaves
to the place to shoot from. A move's last frame may repeat in the next decision (sticky actions), so that places between
two steps are reached by chance; how many decisions that takes is solved once, by value iteration.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from common.errors import UserError
from envs.atari import Emulator

AMMUNITION, PIPES, GUN = 3, 5, 2  # addresses of bullets, of pipes that are left, and of the gun
GUN_AT = -4  # pixels from the gun's number to its left edge on the frame
POSTS = ((69, 70), (95, 96))  # from where, by the gun's left edge, a bullet meets the wheel
MUZZLE = 2  # pixels from the gun's left edge to its bullet
GREEN = (26, 102, 26)
WHEEL = (slice(14, 27), slice(66, 104))  # where it is on a frame
AIR = (slice(106, 180), slice(8, 160))  # where ducks fly, below the rows
LANDS = 167  # row from which a duck eats
FLIGHT = 9  # decisions of a bullet's way to the wheel, with one to spare
FULL = 40  # bullets
STEP, STICK = 4, 0.25  # frames of a decision, and the chance that a frame repeats the one before
MOVES = {"left": -1, "noop": 0, "right": 1}
SPAN = 48  # pixels to either side of a post for which the way is solved; beyond it is proportional

Place = tuple[float, float]  # x, y in pixels


@dataclass(frozen=True)
class Observation:
    """What was seen: the console's memory, and the flying duck if there was one."""

    memory: bytes
    duck: Place | None


@dataclass(frozen=True)
class ShotOutcome:
    """What comes of pressing the button now.

    fired: a bullet left; points: what it made; colour: the wheel's when it did; bullets: gained or lost beside; duck: a
    flying one was shot.
    """

    fired: bool
    points: int
    colour: tuple[int, ...] | None
    bullets: int
    duck: bool


@dataclass
class CarnivalExpert:
    """Values of Carnival's actions, in points; see the head of this file and `agents.experts.search.Search`.

    pipe: what a green pipe is worth, and the price of one of another colour; bullet: the price of one; duck: what it is
    worth to shoot one that flies; target: what a target is worth once the wheel is gone; decision: the price of one.
    """

    action_names: tuple[str, ...]
    pipe: float = 400.0
    bullet: float = 60.0
    duck: float = 300.0
    target: float = 150.0
    decision: float = 30.0
    _seen: tuple[Observation, ...] = ()  # the last two looks, the newest last

    @classmethod
    def of(cls, name: str, action_names: tuple[str, ...]) -> "CarnivalExpert":
        """Return the search for a game by its name; `UserError` where it is another than Carnival."""
        if name != "Carnival":
            raise UserError(f"expected Carnival for carnival-expert, got {name}; nearest agent: planner")
        return cls(tuple(action_names))

    def values(self, emulator: Emulator, rng: np.random.Generator) -> np.ndarray:
        """Return float32[A], -inf for moves with the button pressed."""
        values = np.full(len(self.action_names), -np.inf, dtype=np.float32)
        memory = emulator.ram
        duck = self._look(emulator)
        low, high = self._aim(memory)
        ways = decisions_to(high - low + 1)
        offset = int(memory[GUN]) + GUN_AT - low
        for name, price in zip(MOVES, ways_from(ways, offset), strict=True):
            values[self.action_names.index(name)] = -self.decision * price
        noop, fire = (self.action_names.index(name) for name in ("noop", "fire"))
        values[fire] = values[noop] + self._worth(play_shot(emulator, fire, duck), memory)
        return values

    def _look(self, emulator: Emulator) -> Place | None:
        """Return the flying duck; a state is looked at once, since a shot that is played out leaves another frame."""
        memory = emulator.ram.tobytes()
        if not self._seen or self._seen[-1].memory != memory:
            self._seen = (*self._seen[-1:], Observation(memory, find_duck(emulator.frame())))
        return self._seen[-1].duck

    def _aim(self, memory: np.ndarray) -> tuple[int, int]:
        """Return from where to shoot next, the first and the last place of the gun's left edge."""
        duck, before = self._seen[-1].duck, self._seen[0].duck
        gun = int(memory[GUN]) + GUN_AT
        if duck:
            drift = duck[0] - before[0] if before and abs(duck[0] - before[0]) < STEP else 0.0
            middle = round(duck[0] + drift * (LANDS - duck[1]) / (5 * STEP)) - MUZZLE
            return middle - 4, middle + 4
        if memory[PIPES]:
            return min(POSTS, key=lambda post: abs(post[0] - gun))
        return gun, gun

    def _worth(self, shot: ShotOutcome, memory: np.ndarray) -> float:
        """Return what a shot is worth beside waiting."""
        if not shot.fired:
            return -self.bullet
        worth = self.duck * shot.duck - self.bullet
        room = FULL - int(memory[AMMUNITION])
        worth += self.bullet * min(shot.bullets, room) if shot.bullets > 0 else 0
        if shot.points in (200, 800):
            return worth + (self.pipe if shot.colour == GREEN else -self.pipe)
        return worth + (self.target if shot.points and not memory[PIPES] else 0)


def find_duck(frame: np.ndarray) -> Place | None:
    """Return the middle of what flies, or None."""
    red, green, blue = np.moveaxis(frame[AIR], -1, 0)
    rows, columns = np.nonzero((red > 150) & (green > 150) & (blue < 100))
    if len(rows) < 25:  # a bullet has the duck's colour
        return None
    return float(columns.mean()) + AIR[1].start, float(rows.mean()) + AIR[0].start


def wheel_colour(frame: np.ndarray) -> tuple[int, ...] | None:
    """Return the colour of the wheel, or None where it is not there."""
    pixels = frame[WHEEL].reshape(-1, 3)
    lit = pixels[pixels.any(axis=1)]
    return tuple(lit[len(lit) // 2].tolist()) if len(lit) else None


def play_shot(emulator: Emulator, fire: int, duck: Place | None) -> ShotOutcome:
    """Play a shot out and go back to where the emulator was; `duck` is the one that flies."""
    start, had = emulator.clone(), int(emulator.ram[AMMUNITION])
    points, frame = emulator.step(fire)
    fired = int(emulator.ram[AMMUNITION]) < had
    killed, left = False, int(emulator.ram[AMMUNITION])
    for _ in range(FLIGHT if fired else 0):
        if points or killed:
            break
        points, frame = emulator.step(0)
        now = find_duck(frame)
        killed = duck is not None and now is None and duck[1] < LANDS
        duck = now
    colour, gained = wheel_colour(frame) if points else None, int(emulator.ram[AMMUNITION]) - left
    emulator.restore(start)
    return ShotOutcome(fired, int(points), colour, gained, killed)


@cache
def transition_distribution(move: int, last: int) -> tuple[tuple[int, int, float], ...]:
    """Return (pixels, way of the last frame, chance) of what a decision comes to that follows a frame of `last`."""
    found = {(0, last): 1.0}
    for _ in range(STEP):
        onward: dict[tuple[int, int], float] = {}
        for (moved, way), chance in found.items():
            for next_way, share in ((way, STICK), (move, 1 - STICK)):
                key = (moved + next_way, next_way)
                onward[key] = onward.get(key, 0.0) + chance * share
        found = onward
    return tuple((moved, way, chance) for (moved, way), chance in found.items())


@cache
def decisions_to(width: int) -> np.ndarray:
    """Return float[W, 3, 3]: decisions from an offset to standing within [0, width), by the last way and the next move.

    Offsets run from -SPAN to SPAN + width - 1; ways and moves as in `MOVES`.
    """
    ways = tuple(MOVES.values())
    offsets = np.arange(-SPAN, SPAN + width)
    inside = (offsets >= 0) & (offsets < width)
    best, costs = np.zeros((len(offsets), 3)), np.zeros((len(offsets), 3, 3))
    for _ in range(60):
        for last in ways:
            for move in ways:
                there = np.zeros(len(offsets))
                for moved, way, chance in transition_distribution(move, last):
                    at = np.clip(np.arange(len(offsets)) + moved, 0, len(offsets) - 1)
                    there += chance * best[at, way + 1]
                costs[:, last + 1, move + 1] = there + (1.0 if move else ~inside)
        best = costs.min(axis=2)
    return costs


def ways_from(costs: np.ndarray, offset: int) -> np.ndarray:
    """Return the decisions of `decisions_to` for each move from an offset, far ones too, of a gun that stands."""
    near = int(np.clip(offset, STEP - SPAN, len(costs) - SPAN - 1 - STEP))
    return costs[near + SPAN, 1] + abs(offset - near) / STEP
