"""Conditions of play that a human would hardly mind: other colours, a shifted picture, no points shown, other luck.

A condition changes the rules of the emulator, or the frames that the agent sees, and nothing else. Changed frames are
the agent's alone: the loop, the score and an expert that searches the emulator keep the true ones.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import UInt8

from common.errors import UserError
from envs.games import Game
from envs.protocol import Protocol

Frames = UInt8[np.ndarray, "num_envs height width 3"]
FrameChange = Callable[[Frames], Frames]

SHIFT = 4  # pixels to the right and down
# game -> top, bottom, left, right of the points on the screen; the colour of their left edge is behind them. Games
# whose points share these rows with objects (Space Invaders, Q*bert) are left out.
SCORE_DISPLAYS = {
    "Breakout": (4, 16, 34, 81),
    "Carnival": (1, 11, 8, 160),
    "Freeway": (4, 14, 8, 160),
    "MsPacman": (186, 196, 8, 160),
    "Pong": (0, 22, 8, 160),
    "Seaquest": (8, 18, 8, 160),
}


def permute_channels(frames: Frames, order: tuple[int, int, int]) -> Frames:
    """Return frames whose red, green and blue are those channels of the true ones."""
    return np.ascontiguousarray(frames[..., order])


def shift_frames(frames: Frames, down: int, right: int) -> Frames:
    """Return frames moved down and to the right, by less than 0 for up and left; their edges fill what is uncovered."""
    _, height, width, _ = frames.shape
    margins = ((0, 0), *((max(pixels, 0), max(-pixels, 0)) for pixels in (down, right)), (0, 0))
    top, left = max(-down, 0), max(-right, 0)
    return np.pad(frames, margins, mode="edge")[:, top : top + height, left : left + width]


def hide_box(frames: Frames, box: tuple[int, int, int, int]) -> Frames:
    """Return frames in which every row of a box (top, bottom, left, right) has the colour of its first pixel."""
    top, bottom, left, right = box
    hidden = frames.copy()
    hidden[:, top:bottom, left:right] = frames[:, top:bottom, left : left + 1]
    return hidden


def _in_every_game(change: FrameChange) -> Callable[[Game], FrameChange | None]:
    return lambda game: change


def _hide_score(game: Game) -> FrameChange | None:
    box = SCORE_DISPLAYS.get(game.name)
    return partial(hide_box, box=box) if box else None


@dataclass(frozen=True)
class PlayCondition:
    """What differs from plain play.

    Args:
        name: in flags and in result rows.
        meaning: what is changed, in words.
        rules: fields of the protocol with other values.
        frame_change: returns how the frames of a game change, None where that is not known of the game.
    """

    name: str
    meaning: str
    rules: Mapping[str, Any] = field(default_factory=dict)
    frame_change: Callable[[Game], FrameChange | None] | None = None

    def protocol(self, protocol: Protocol) -> Protocol:
        """Return the protocol with the condition's rules."""
        return replace(protocol, **self.rules)

    def applies(self, game: Game) -> bool:
        """Return whether the condition is known in a game."""
        return self.frame_change is None or self.frame_change(game) is not None

    def change_of(self, game: Game) -> FrameChange | None:
        """Return how the frames of a game change, or None where they stay; `UserError` where it is not known."""
        if self.frame_change is None:
            return None
        change = self.frame_change(game)
        if change is None:
            known = ", ".join(SCORE_DISPLAYS)
            raise UserError(f"{self.name} is known in {known}, not in {game.name}; leave it or the game out")
        return change


UNCHANGED = PlayCondition("unchanged", "plain play")
CONDITIONS = {
    condition.name: condition
    for condition in (
        UNCHANGED,
        PlayCondition(
            "palette-bgr",
            "red and blue swapped",
            frame_change=_in_every_game(partial(permute_channels, order=(2, 1, 0))),
        ),
        PlayCondition(
            "palette-rotated",
            "every hue turned by 120 degrees",
            frame_change=_in_every_game(partial(permute_channels, order=(2, 0, 1))),
        ),
        PlayCondition(
            "shifted",
            f"the picture moved by {SHIFT} pixels to the right and down",
            frame_change=_in_every_game(partial(shift_frames, down=SHIFT, right=SHIFT)),
        ),
        PlayCondition("score-hidden", "no points on the screen", frame_change=_hide_score),
        PlayCondition("sticky-0", "no sticky actions", {"repeat_action_probability": 0.0}),
        PlayCondition("sticky-0.5", "sticky actions with probability 0.5", {"repeat_action_probability": 0.5}),
        PlayCondition("noop-30", "up to 30 no-ops at the start", {"noop_max": 30}),
    )
}
ALL = "all"


def find_condition(name: str) -> PlayCondition:
    """Return a condition by name; `UserError` names the nearest."""
    if name not in CONDITIONS:
        nearest = (difflib.get_close_matches(name, CONDITIONS, n=1, cutoff=0.0) or [UNCHANGED.name])[0]
        expected = ", ".join((*CONDITIONS, ALL))
        raise UserError(f"expected a condition ({expected}), got {name!r}; nearest: {nearest}")
    return CONDITIONS[name]


def game_conditions(names: Iterable[str], game: Game) -> list[PlayCondition]:
    """Return the conditions of these names, each once; all: every one that is known in the game."""
    found: dict[str, PlayCondition] = {}
    for name in names:
        if name == ALL:
            found |= {one.name: one for one in CONDITIONS.values() if one.applies(game)}
        else:
            condition = find_condition(name)
            condition.change_of(game)  # refuses a game in which it is not known
            found[name] = condition
    return list(found.values())
