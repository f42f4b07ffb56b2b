"""Random, human and published scores, each with its protocol and source."""

from dataclasses import dataclass

from common.errors import UserError
from envs.games import Game

STICKY = "sticky 0.25, skip 4, 108,000 frames"
NOOPS = "up to 30 no-ops, skip 4, no sticky actions"
MEASURED = "measured here, ale-py 0.12.1, 200 games, minimal action set"
DOPAMINE = "Dopamine (Castro et al. 2018), baselines, mean of 5 runs, training epsilon 0.01"
DQN_ZOO = "DQN Zoo, atari_data.py (Wang et al. 2016 onward)"


@dataclass(frozen=True)
class ReferenceScore:
    """A score of `agent` on `game`, under `protocol`, from `source`."""

    game: str
    agent: str
    score: float
    protocol: str
    source: str


class MissingReferenceError(UserError):
    """No such reference score is known."""


REFERENCES = tuple(
    ReferenceScore(*row)
    for row in (
        ("Carnival", "random", 760.7, STICKY, MEASURED),
        ("Carnival", "DQN, 200 M frames", 4785, STICKY, DOPAMINE),
        ("Carnival", "Rainbow, 200 M frames", 4533, STICKY, DOPAMINE),
        ("Carnival", "IQN, 200 M frames", 5617, STICKY, DOPAMINE),
        ("MsPacman", "random", 241, STICKY, MEASURED),
        ("MsPacman", "human", 6951.6, NOOPS, DQN_ZOO),
        ("MsPacman", "DQN, 200 M frames", 3402, STICKY, DOPAMINE),
        ("MsPacman", "Rainbow, 200 M frames", 3861, STICKY, DOPAMINE),
        ("MsPacman", "IQN, 200 M frames", 5218, STICKY, DOPAMINE),
        ("MsPacman", "PPO, 40 M frames", 2096.5, NOOPS, "Schulman et al. 2017, table 6"),
        ("SpaceInvaders", "random", 144, STICKY, MEASURED),
        ("SpaceInvaders", "human", 1668.7, NOOPS, DQN_ZOO),
        ("SpaceInvaders", "DQN, 200 M frames", 1794, STICKY, DOPAMINE),
        ("SpaceInvaders", "IQN, 200 M frames", 4530, STICKY, DOPAMINE),
        ("Pong", "random", -20.2, STICKY, MEASURED),
        ("Pong", "human", 14.6, NOOPS, DQN_ZOO),
        ("Pong", "DQN, 200 M frames", 16.6, STICKY, DOPAMINE),
        ("Pong", "IQN, 200 M frames", 20.1, STICKY, DOPAMINE),
        ("Breakout", "random", 1.4, STICKY, MEASURED),
        ("Breakout", "human", 30.5, NOOPS, DQN_ZOO),
        ("Breakout", "DQN, 200 M frames", 96, STICKY, DOPAMINE),
        ("Breakout", "IQN, 200 M frames", 79.5, STICKY, DOPAMINE),
        ("Seaquest", "random", 68.4, NOOPS, DQN_ZOO),
        ("Seaquest", "human", 42054.7, NOOPS, DQN_ZOO),
        ("Qbert", "random", 163.9, NOOPS, DQN_ZOO),
        ("Qbert", "human", 13455.0, NOOPS, DQN_ZOO),
        ("Freeway", "random", 0.0, NOOPS, DQN_ZOO),
        ("Freeway", "human", 29.6, NOOPS, DQN_ZOO),
    )
)


def all_references(game: Game) -> list[ReferenceScore]:
    """Return every reference score of a game, possibly none."""
    return [row for row in REFERENCES if row.game == game.name]


def reference(game: Game, agent: str) -> ReferenceScore:
    """Return the reference score of one agent; `MissingReferenceError` lists the known ones."""
    for row in all_references(game):
        if row.agent == agent:
            return row
    if game.name == "Carnival" and agent == "human":
        raise MissingReferenceError("no human score of Carnival exists in the literature")
    known = ", ".join(row.agent for row in all_references(game)) or "none"
    raise MissingReferenceError(f"no reference score of {agent} on {game.title}; known: {known}")
