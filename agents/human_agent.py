"""A human player at the keyboard: arrows to move, space to fire; the same window shows other agents.

Needs pygame, which is not installed by default: `pip install -e ".[human]"`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from agents.agent import Actions
from common.errors import UserError
from envs.games import Game

SCALE, STEPS_PER_SECOND = 4, 15


class Window:
    """Shows frames at the game's own speed; `UserError` names the command that installs pygame."""

    def __init__(self, game: Game):
        try:
            import pygame
        except ImportError as error:
            raise UserError('a window needs pygame; install it with: pip install -e ".[human]"') from error
        self.pygame: Any = pygame
        with self._display_errors():
            self.pygame.init()
            self.pygame.display.init()  # which init() leaves out in silence where there is no display
            self.pygame.display.set_caption(game.title)
        self._screen: Any = None
        self._clock = self.pygame.time.Clock()

    @contextmanager
    def _display_errors(self) -> Iterator[None]:
        try:
            yield
        except self.pygame.error as error:
            raise UserError(f"a window needs a display: {error}; without one, play with --render none") from error

    def show(self, frame: np.ndarray, scale: int = SCALE) -> None:
        """Draw a frame uint8[H, W, 3], enlarged `scale` times, and wait until the next is due.

        Closing the window acts as Ctrl-C.
        """
        height, width, _ = frame.shape
        size = (width * scale, height * scale)
        if self._screen is None:
            with self._display_errors():
                self._screen = self.pygame.display.set_mode(size)
        surface = self.pygame.surfarray.make_surface(frame.swapaxes(0, 1))
        self._screen.blit(self.pygame.transform.scale(surface, size), (0, 0))
        self.pygame.display.flip()
        if any(event.type == self.pygame.QUIT for event in self.pygame.event.get()):
            raise KeyboardInterrupt
        self._clock.tick(STEPS_PER_SECOND)

    def keys(self) -> set[str]:
        """Return the pressed keys: up, down, left, right, fire."""
        pressed = self.pygame.key.get_pressed()
        codes = {"up": "K_UP", "down": "K_DOWN", "left": "K_LEFT", "right": "K_RIGHT", "fire": "K_SPACE"}
        return {word for word, code in codes.items() if pressed[getattr(self.pygame, code)]}


def nearest_action(keys: set[str], action_names: Sequence[str]) -> int:
    """Return the legal action that combines the most pressed keys and no other; noop if there is none."""
    candidates = [(len(words), i) for i, words in enumerate(set(n.split()) for n in action_names) if words <= keys]
    return max(candidates)[1] if candidates else list(action_names).index("noop")


class HumanAgent:
    """Shows the game and reads the keyboard."""

    name = "human"

    def __init__(self, game: Game, action_names: Sequence[str]):
        self.action_names, self._window = tuple(action_names), Window(game)

    def reset(self, seeds: Sequence[int | None]) -> None:
        """Check that there is one environment."""
        if len(seeds) != 1:
            raise UserError(f"a human plays one game at a time, got {len(seeds)} environments")

    def act(self, frames: np.ndarray) -> Actions:
        """Show the frame, wait until the next is due, read the keys."""
        self._window.show(frames[0])
        action = nearest_action(self._window.keys(), self.action_names)
        return Actions.legal(np.array([action]), self.action_names)
