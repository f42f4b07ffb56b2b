"""The planner at the controls: a teacher with access to the simulator, for any game and with no training.

Every decision is searched anew on the emulator that plays (`agents.experts.search`), so it needs `EmulatorEnvs`. Its scores
are the estimated values of *every* legal action, which makes it a teacher for soft targets and for relabelling
the states that another agent saw.
"""

from collections.abc import Sequence
from copy import copy

import numpy as np

from agents.agent import Actions
from agents.env_rngs import EnvRngs
from agents.experts.carnival_expert import CarnivalExpert
from agents.experts.mspacman_expert import MsPacmanExpert
from agents.experts.paddle_expert import PaddleExpert
from agents.experts.search import FireLookahead, RandomRolloutSearch, RewardShaping, Search
from common.errors import UserError
from envs.atari import EmulatorEnvs
from envs.games import Game

STAKES = {
    # Carnival ends with the last bullet; byte 3 counts them. 60 points is about what a good player makes of one.
    "Carnival": RewardShaping(ram={3: 60.0}),
    "MsPacman": RewardShaping(life=800.0),
}

ALWAYS_FIRING = {"Seaquest"}  # games where it costs nothing to fire as one goes, so that walks always do


def default_search(game: Game, action_names: Sequence[str]) -> Search:
    """Choose how to look ahead: by shots where one direction of play is shooting, by walks in a maze.

    A game whose legal actions fire and move along at most one axis is searched shot by shot; any other by walks.
    """
    stakes = STAKES.get(game.name, RewardShaping())
    names = list(action_names)
    shots = tuple(i for i, name in enumerate(names) if "fire" in name)
    moves = tuple(i for i, name in enumerate(names) if "fire" not in name)
    directions = {word for name in names for word in name.split()} & {"up", "down", "left", "right"}
    one_axis = directions <= {"left", "right"} or directions <= {"up", "down"}
    if shots and one_axis:
        return FireLookahead(moves, shots, len(names), trigger=names.index("fire"), stakes=stakes)
    moves = _armed_moves(names) if game.name in ALWAYS_FIRING else _walking_moves(names)
    return RandomRolloutSearch(moves, len(names), opposite=_opposites(names), stakes=stakes)


def _walking_moves(names: list[str]) -> tuple[int, ...]:
    """Leave out what a walk gains nothing from: waiting and diagonals, in a game that has no fire button."""
    if any("fire" in name for name in names):
        return tuple(range(len(names)))
    return tuple(i for i, name in enumerate(names) if name != "noop" and " " not in name)


def _armed_moves(names: list[str]) -> tuple[int, ...]:
    """Return the moves that fire, on the spot or straight."""
    return tuple(i for i, name in enumerate(names) if "fire" in name and len(name.split()) <= 2)


def _opposites(names: list[str]) -> dict[int, int]:
    """Map each action to the one that goes the other way, where both are legal."""
    mirror = {"up": "down", "down": "up", "left": "right", "right": "left"}
    turned = [" ".join(mirror.get(word, word) for word in name.split()) for name in names]
    return {i: names.index(name) for i, name in enumerate(turned) if name in names and name != names[i]}


def find_search(kind: str, envs: EmulatorEnvs) -> Search:
    """Return the search of of an expert by its agent id.

    Raises:
        UserError: the kind cannot read this game.
    """
    if kind == "planner":
        return default_search(envs.game, envs.action_names)
    if kind == "paddle-expert":
        return PaddleExpert.of(envs.game.name, envs.action_names)
    if kind == "carnival-expert":
        return CarnivalExpert.of(envs.game.name, envs.action_names)
    if envs.game.name != "MsPacman":
        raise UserError(f"expected Ms. Pac-Man for mspacman-expert, got {envs.game.title}; nearest agent: planner")
    return MsPacmanExpert(envs.action_names)


class SearchAgent:
    """Plays the action of the highest value that the search finds; the same seed plays the same game."""

    def __init__(self, envs: EmulatorEnvs, search: Search, name: str = "planner"):
        self.envs, self.name = envs, name
        self._first = search
        self._searches: list[Search] = []
        self._rngs = EnvRngs(0x91A)

    def reset(self, seeds: Sequence[int | None]) -> None:
        """Begin a new game in every lane that has a seed; see `agents.agent.Agent`."""
        self._rngs.reset(seeds)
        if len(self._searches) != len(seeds):
            self._searches = [self._first] * len(seeds)
        for lane, seed in enumerate(seeds):
            if seed is not None:
                self._searches[lane] = copy(self._first)  # one that remembers nothing of another game

    def values(self, lane: int) -> np.ndarray:
        """Return float32[A], the value of every action in a lane's present state; -inf where not searched."""
        return self._searches[lane].values(self.envs.emulators[lane], self._rngs[lane])

    def act(self, frames: np.ndarray) -> Actions:
        """Search in every lane; the frames are not looked at."""
        scores = np.stack([self.values(lane) for lane in range(len(frames))])
        indices = scores.argmax(axis=1)
        texts = tuple(self.envs.action_names[i] for i in indices)
        return Actions(indices, texts, scores, np.zeros(len(frames), dtype=bool))
