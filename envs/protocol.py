"""Evaluation protocols: everything that a score depends on, except the agent.

`machado2018` follows Machado et al. 2018, "Revisiting the Arcade Learning Environment", section 5, with the minimal
action set of gymnasium's v5 environments; `mnih2015` has the no-op starts of Mnih et al. 2015 (extended data table 2).
Frames are emulator frames, 60 per second.
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import ConfigDict, Field

from common.errors import UserError

EPISODES_PER_SEED = 10_000
PUBLISHED_SEEDS = range(1000, 2000)
NUM_PLAIN_SEEDS = 100_000  # those from here on draw their emulator seeds from the numbers that these leave free


@dataclass(frozen=True)
class Protocol:
    """The rules of an evaluation episode."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # checks a protocol in a file

    name: str
    # sticky actions, drawn for every emulator frame
    repeat_action_probability: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
    frame_skip: Annotated[int, Field(ge=1, le=60)]  # emulator frames per agent step
    noop_max: Annotated[int, Field(ge=0, le=10**6)]  # largest number of no-op steps at the start
    full_action_space: bool  # all 18 actions of the console in place of the game's minimal set
    max_episode_frames: Annotated[int, Field(ge=1, lt=2**31)]  # after which an episode is truncated

    def to_dict(self) -> dict:
        """Return the fields as plain values, for JSON."""
        return dataclasses.asdict(self)


MACHADO2018 = Protocol("machado2018", 0.25, 4, 0, False, 108_000)
MNIH2015 = Protocol("mnih2015", 0.0, 4, 30, False, 108_000)
PROTOCOLS = {protocol.name: protocol for protocol in (MACHADO2018, MNIH2015)}


def find_protocol(name: str) -> Protocol:
    """Return a protocol by name; `UserError` lists the known ones."""
    if name not in PROTOCOLS:
        raise UserError(f"expected a protocol, {' or '.join(PROTOCOLS)}; got {name!r}")
    return PROTOCOLS[name]


def episode_seeds(seed: int, episodes: int) -> list[int]:
    """Return the emulator seed, of 31 bits, of each episode of a seed.

    No two pairs of seed and episode share one; two of seeds above `NUM_PLAIN_SEEDS` may.
    """
    if seed < 0:
        raise UserError(f"expected a seed of at least 0, got {seed}")
    if not 0 <= episodes <= EPISODES_PER_SEED:
        raise UserError(f"expected at most {EPISODES_PER_SEED} episodes a seed, got {episodes}")
    if seed < NUM_PLAIN_SEEDS:
        return [1 + seed * EPISODES_PER_SEED + episode for episode in range(episodes)]
    first_free = 1 + NUM_PLAIN_SEEDS * EPISODES_PER_SEED
    return [int(np.random.default_rng([seed, episode]).integers(first_free, 2**31)) for episode in range(episodes)]
