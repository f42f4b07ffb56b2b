"""Action values for Pong and Breakout from where the ball will reach the paddle's line.

The emulator plays no-ops until the ball reaches the line; a move has minus the distance, in pixels, that it leaves
between the ball there and the part of the paddle that is to meet it. In Breakout that is the middle. In Pong it is
found anew whenever the ball turns towards the paddle: the emulator plays out what follows from each part, several
times, since actions stick, until someone scores or the ball comes back. From the middle nearly every ball comes back;
of the other parts now and then one wins the point, which one depends on the ball and on where the opponent stands.

The bounces are the game's own; the positions of ball and paddle come from the console's memory, but two frames show
them too. While no ball is in play, serving has the highest value.
"""

from dataclasses import dataclass

import numpy as np
from ale_py import ALEState

from agents.experts.search import ActionValues
from envs.atari import Emulator

MAX_STEPS = 60  # until the ball reaches the line
MAX_RALLY_STEPS = 140  # until someone scores or the ball comes back
NO_SERVE_COST = 20.0  # pixels
ROLLOUTS = 2  # of each aim in a round of successive halving
NEAR = 8  # pixels from its target at which a rollout's paddle rests


@dataclass(frozen=True)
class RamLayout:
    """Memory addresses of a game, found by comparing memory and frames."""

    ball_along: int  # address of the ball's coordinate along the paddle's line
    ball_across: int  # address of the one across it
    in_play: int  # address of a byte that is 0 while no ball is in play
    line: int  # coordinate across the paddle's line; larger ones lie behind it
    paddle: int  # address of the paddle's coordinate along its line
    center_offset: int  # from the paddle's coordinate to the ball's where its center meets the ball
    aims: tuple[int, ...] = ()  # such offsets of all parts of the paddle, where it matters which one meets the ball


RAM_LAYOUTS = {
    "Pong": RamLayout(
        ball_along=54,
        ball_across=49,
        in_play=54,
        line=184,
        paddle=51,
        center_offset=7,
        aims=(-8, -4, 0, 4, 7, 12, 16, 20),
    ),
    "Breakout": RamLayout(ball_along=99, ball_across=101, in_play=101, line=172, paddle=72, center_offset=8),
}


@dataclass
class PaddleExpert:
    """Values of no-op, right and left, in pixels; see `agents.experts.search.Search`.

    It remembers which part of the paddle is to meet the ball that comes.
    """

    layout: RamLayout
    action_names: tuple[str, ...]
    _aim: int | None = None
    _last_across: int = 0

    def values(self, emulator: Emulator, rng: np.random.Generator) -> ActionValues:
        """Return the action values, -inf for moves that fire; only the sticky actions are random."""
        values, moves = np.full(len(self.action_names), -np.inf, dtype=np.float32), self._moves()
        if not emulator.ram[self.layout.in_play]:
            values[moves], values[self.action_names.index("fire")] = -NO_SERVE_COST, 0
            return values
        start = emulator.clone()
        values[moves] = 0
        if (ball := self._meeting_place(emulator)) is not None:
            emulator.restore(start)
            target = ball - self._offset(emulator, ball)
            for move, distance in self._distances(emulator, target).items():
                values[move] = -distance
        emulator.restore(start)
        return values

    def _moves(self) -> list[int]:
        return [self.action_names.index(name) for name in ("noop", "right", "left")]

    def _meeting_place(self, emulator: Emulator) -> int | None:
        """Return where the ball crosses the paddle's line, or None if it does not come; this steps the emulator."""
        for _ in range(MAX_STEPS):
            ram = emulator.ram
            if not ram[self.layout.in_play]:
                return None
            if ram[self.layout.ball_across] >= self.layout.line:
                return int(ram[self.layout.ball_along])
            emulator.act(0)
        return None

    def _distances(self, emulator: Emulator, target: int) -> dict[int, int]:
        """Return by move the distance from a paddle's place that it leaves, and restore the emulator."""
        start, found = emulator.clone(), {}
        for move in self._moves():
            emulator.act(move)
            emulator.act(0)  # the paddle does not stop at once
            found[move] = abs(int(emulator.ram[self.layout.paddle]) - target)
            emulator.restore(start)
        return found

    def _offset(self, emulator: Emulator, ball: int) -> int:
        """Return which part of the paddle is to meet the ball, chosen as it turns towards the paddle."""
        across, center = int(emulator.ram[self.layout.ball_across]), self.layout.center_offset
        comes = across > self._last_across
        if not comes:
            self._aim = None
        elif self._aim is None and self._last_across and self.layout.aims:
            self._aim = self._best_aim(emulator, ball)
        self._last_across = across
        return center if self._aim is None else self._aim

    def _best_aim(self, emulator: Emulator, ball: int) -> int:
        """Return the offset that wins most points, less those lost; of equals the one nearest the center.

        The better half of the offsets is played out again until one is left (successive halving, Karnin et al. 2013).
        """
        start, points, aims = emulator.clone(), dict.fromkeys(self.layout.aims, 0.0), list(self.layout.aims)
        while len(aims) > 1:
            for aim in aims:
                points[aim] += sum(self._play_out(emulator, start, ball - aim) for _ in range(ROLLOUTS))
            aims.sort(key=lambda aim: (-points[aim], abs(aim - self.layout.center_offset)))
            aims = aims[: (len(aims) + 1) // 2]
        return aims[0]

    def _play_out(self, emulator: Emulator, start: ALEState, target: int) -> float:
        """Return the next reward with the paddle at a place when the ball comes, 0 if the ball comes back."""
        emulator.restore(start)
        last, has_turned, reward = int(emulator.ram[self.layout.ball_across]), False, 0.0
        for _ in range(MAX_RALLY_STEPS):
            reward = emulator.act(0 if has_turned else self._move_to(emulator, target))
            across = int(emulator.ram[self.layout.ball_across])
            if reward or (has_turned and across > last):
                break
            has_turned, last = has_turned or across < last, across
        emulator.restore(start)
        return reward

    def _move_to(self, emulator: Emulator, target: int) -> int:
        """Return the move that brings the paddle to a place, as `values` does but for small corrections."""
        if abs(int(emulator.ram[self.layout.paddle]) - target) < NEAR:
            return 0
        distances = self._distances(emulator, target)
        return min(distances, key=lambda move: distances[move])
