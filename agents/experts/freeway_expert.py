"""Action values for Freeway from how far the chicken gets when each action is played out.

After the action the chicken waits for none, three or six steps and then walks up, as long as the horizon lasts; the
best of the three counts. The value is the height gained, in pixels, and a tenth of the mean gain on the way, so that
sooner is better; a crossing is the height of the road.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from agents.experts.search import ActionValues
from envs.atari import Emulator

HEIGHT = 14  # memory address of the chicken's height, found by comparing memory and frames
ROAD = 171  # pixels from the start to the other side
HORIZON = 12  # steps after the action; a lane takes four
WAITS = (0, 3, 6)  # steps
SOONER = 0.1  # of the mean height on the way


@dataclass(frozen=True)
class FreewayExpert:
    """Values of no-op, up and down, in pixels; see `agents.experts.search.Search`."""

    action_names: tuple[str, ...]

    def values(self, emulator: Emulator, rng: np.random.Generator) -> ActionValues:
        """Return the action values; only the sticky actions are random."""
        start, values = emulator.clone(), np.full(len(self.action_names), -np.inf, dtype=np.float32)
        before = int(emulator.ram[HEIGHT])
        for name in ("up", "noop", "down"):
            action = self.action_names.index(name)
            for wait in WAITS:
                gains = self._play_out(emulator, action, wait) - before
                values[action] = max(values[action], gains[-1] + SOONER * gains.mean())
                emulator.restore(start)
        return values

    def _play_out(self, emulator: Emulator, action: int, wait: int) -> Int64[np.ndarray, " steps"]:
        """Return the chicken's height after every step, crossings added; this steps the emulator."""
        up, heights, crossings = self.action_names.index("up"), [], 0.0
        for move in (action, *[0] * wait, *[up] * (HORIZON - wait)):
            crossings += emulator.act(move)
            heights.append(int(crossings) * ROAD + int(emulator.ram[HEIGHT]))
        return np.array(heights, dtype=np.int64)
