"""Action values for Pong and Breakout from where the ball will reach the paddle's line.

The emulator plays no-ops until the ball reaches the line; a move has minus the distance, in pixels, that it leaves
between paddle and ball there. The bounces are the game's own; the positions of ball and paddle come from the console's
memory, but two frames show them too. While no ball is in play, serving has the highest value.
"""

from dataclasses import dataclass

import numpy as np

from agents.experts.search import ActionValues
from envs.atari import Emulator

MAX_STEPS = 60  # until the ball reaches the line
NO_SERVE_COST = 20.0  # pixels


@dataclass(frozen=True)
class RamLayout:
    """Memory addresses of a game, found by comparing memory and frames."""

    ball_along: int  # address of the ball's coordinate along the paddle's line
    ball_across: int  # address of the one across it
    in_play: int  # address of a byte that is 0 while no ball is in play
    line: int  # coordinate across the paddle's line; larger ones lie behind it
    paddle: int  # address of the paddle's coordinate along its line
    center_offset: int  # from the paddle's coordinate to the ball's where its center meets the ball


RAM_LAYOUTS = {
    "Pong": RamLayout(ball_along=54, ball_across=49, in_play=54, line=184, paddle=51, center_offset=7),
    "Breakout": RamLayout(ball_along=99, ball_across=101, in_play=101, line=172, paddle=72, center_offset=8),
}


@dataclass(frozen=True)
class PaddleExpert:
    """Values of no-op, right and left, in pixels; see `agents.experts.search.Search`."""

    layout: RamLayout
    action_names: tuple[str, ...]

    def values(self, emulator: Emulator, rng: np.random.Generator) -> ActionValues:
        """Return the action values, -inf for moves that fire; only the sticky actions are random."""
        values = np.full(len(self.action_names), -np.inf, dtype=np.float32)
        moves = [self.action_names.index(name) for name in ("noop", "right", "left")]
        if not emulator.ram[self.layout.in_play]:
            values[moves], values[self.action_names.index("fire")] = -NO_SERVE_COST, 0
            return values
        start = emulator.clone()
        values[moves] = 0
        if (target := self._paddle_target(emulator)) is not None:
            for move in moves:
                emulator.restore(start)
                emulator.act(move)
                emulator.act(0)  # the paddle does not stop at once
                values[move] = -abs(int(emulator.ram[self.layout.paddle]) - target)
        emulator.restore(start)
        return values

    def _paddle_target(self, emulator: Emulator) -> int | None:
        """Return where the paddle meets the ball, or None if the ball does not come; this steps the emulator."""
        for _ in range(MAX_STEPS):
            ram = emulator.ram
            if not ram[self.layout.in_play]:
                return None
            if ram[self.layout.ball_across] >= self.layout.line:
                return int(ram[self.layout.ball_along]) - self.layout.center_offset
            emulator.act(0)
        return None
