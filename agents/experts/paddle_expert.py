"""Values of moving a paddle from where the ball will come down: a teacher for Pong and Breakout.

A search that waits a few decisions for what a move brings does not see a ball come back. Here the emulator is played
on, the player waiting, until the ball reaches the paddle's line; a move is worth minus the distance, in pixels, that it
leaves between the paddle and that place. The bounces are the game's own; where ball and paddle are is read off the
console's memory, which is no more than two frames show. While no ball is in play the button that serves is worth most.
"""

from dataclasses import dataclass

import numpy as np

from common.errors import UserError
from envs.atari import Emulator

FAR = 60  # decisions after which a ball that has not come is not waited for
IDLE = 20.0  # what not to serve costs, in pixels


@dataclass(frozen=True)
class BallGame:
    """Where the memory of a game keeps its ball and paddle; found by comparing memory and frames.

    along, across: the addresses of the ball's coordinates along the paddle's line and across it; in_play: the address
    of the one that is 0 while no ball is in play; line: where across it the paddle is, larger values lying behind it;
    paddle: the address of the paddle's own coordinate; middle: how much less than the ball's it is where the paddle's
    middle meets the ball.
    """

    along: int
    across: int
    in_play: int
    line: int
    paddle: int
    middle: int


GAMES = {
    "Pong": BallGame(along=54, across=49, in_play=54, line=184, paddle=51, middle=7),
    "Breakout": BallGame(along=99, across=101, in_play=101, line=172, paddle=72, middle=8),
}


@dataclass(frozen=True)
class PaddleExpert:
    """Values of waiting and of moving either way, in pixels; see the head of this file and `agents.experts.search.Search`."""

    game: BallGame
    action_names: tuple[str, ...]

    @classmethod
    def of(cls, name: str, action_names: tuple[str, ...]) -> "PaddleExpert":
        """Return the search for a game by its name; `UserError` where its ball is not known."""
        if name not in GAMES:
            raise UserError(f"expected {' or '.join(GAMES)} for paddle-expert, got {name}; nearest agent: planner")
        return cls(GAMES[name], action_names)

    def values(self, emulator: Emulator, rng: np.random.Generator) -> np.ndarray:
        """Return float32[A], -inf for moves with the button pressed; sticky actions are the emulator's own."""
        values = np.full(len(self.action_names), -np.inf, dtype=np.float32)
        moves = [self.action_names.index(name) for name in ("noop", "right", "left")]
        if not emulator.ram[self.game.in_play]:
            values[moves], values[self.action_names.index("fire")] = -IDLE, 0
            return values
        start = emulator.clone()
        place = self._comes_down(emulator)
        for move in moves:
            emulator.restore(start)
            values[move] = 0 if place is None else -abs(self._after(emulator, move) - place)
        emulator.restore(start)
        return values

    def _comes_down(self, emulator: Emulator) -> int | None:
        """Play on until the ball is at the paddle's line; return where the paddle should be, or None."""
        for _ in range(FAR):
            memory = emulator.ram
            if not memory[self.game.in_play]:
                return None
            if memory[self.game.across] >= self.game.line:
                return int(memory[self.game.along]) - self.game.middle
            emulator.act(0)
        return None

    def _after(self, emulator: Emulator, move: int) -> int:
        """Return where the paddle is one decision after a move; it does not stop at once."""
        emulator.act(move)
        emulator.act(0)
        return int(emulator.ram[self.game.paddle])
