"""An agent that plays the best action of a search or scripted expert, with access to the simulator.

It evaluates every step on the emulator that it plays on, so it needs `EmulatorEnvs`. Its scores are the values of
*every* legal action: soft targets for cloning, also in states that another agent has reached.
"""

from collections.abc import Sequence
from copy import copy

import numpy as np

from agents.agent import Actions, Rngs, reset_rngs, reset_states
from agents.experts.carnival_expert import CarnivalExpert
from agents.experts.freeway_expert import FreewayExpert
from agents.experts.mspacman_expert import MsPacmanExpert
from agents.experts.paddle_expert import RAM_LAYOUTS, PaddleExpert
from agents.experts.search import ActionValues, FireLookahead, RandomRolloutSearch, RewardShaping, Search
from agents.registry import EXPERT_GAMES
from common.errors import UserError
from envs.atari import EmulatorEnvs
from envs.games import Game

REWARD_SHAPING = {
    # Carnival ends with the last bullet, counted in byte 3; a good player makes about 60 points of one.
    "Carnival": RewardShaping(ram={3: 60.0}),
    "MsPacman": RewardShaping(life=800.0),
}
ALWAYS_FIRING = {"Seaquest"}  # games where firing costs nothing, so that every searched move fires


def default_search(game: Game, action_names: Sequence[str]) -> Search:
    """Return the planner's search: by shots in a game that fires and moves along at most one axis, else by rollouts."""
    shaping, names = REWARD_SHAPING.get(game.name, RewardShaping()), list(action_names)
    shots = tuple(i for i, name in enumerate(names) if "fire" in name)
    moves = tuple(i for i, name in enumerate(names) if "fire" not in name)
    directions = {word for name in names for word in name.split()} & {"up", "down", "left", "right"}
    one_axis = directions <= {"left", "right"} or directions <= {"up", "down"}
    if shots and one_axis:
        return FireLookahead(moves, shots, len(names), fire=names.index("fire"), shaping=shaping)
    if game.name in ALWAYS_FIRING:
        moves = tuple(i for i in shots if len(names[i].split()) <= 2)  # in place or straight
    elif shots:
        moves = tuple(range(len(names)))
    else:
        moves = tuple(i for i, name in enumerate(names) if name != "noop" and " " not in name)  # no diagonals
    return RandomRolloutSearch(moves, len(names), opposites=_opposites(names), shaping=shaping)


def _opposites(names: list[str]) -> dict[int, int]:
    """Return the action in the opposite direction of each action that has one."""
    mirror = {"up": "down", "down": "up", "left": "right", "right": "left"}
    reversed_names = [" ".join(mirror.get(word, word) for word in name.split()) for name in names]
    return {i: names.index(name) for i, name in enumerate(reversed_names) if name in names and name != names[i]}


def make_search(agent_type: str, envs: EmulatorEnvs) -> Search:
    """Return the search of an expert (`agents.registry.EXPERTS`); `UserError` if it does not play this game."""
    game, names = envs.game, envs.action_names
    if agent_type == "planner":
        return default_search(game, names)
    games = EXPERT_GAMES[agent_type]
    if game.name not in games:
        raise UserError(f"expected {' or '.join(games)} for {agent_type}, got {game.name}; nearest agent: planner")
    if agent_type == "paddle-expert":
        return PaddleExpert(RAM_LAYOUTS[game.name], names)
    if agent_type == "freeway-expert":
        return FreewayExpert(names)
    return CarnivalExpert(names) if agent_type == "carnival-expert" else MsPacmanExpert(names)


class SearchAgent:
    """Plays the action of the highest value; the same seed plays the same episode."""

    def __init__(self, envs: EmulatorEnvs, search: Search, name: str = "planner"):
        self.envs, self.name = envs, name
        self._initial = search
        self._searches: list[Search] = []
        self._rngs: Rngs = []

    def reset(self, seeds: Sequence[int | None]) -> None:
        """See `agents.agent.Agent`."""
        self._rngs = reset_rngs(self._rngs, seeds, 0x91A)
        self._searches = reset_states(self._searches, seeds, lambda _: copy(self._initial))  # without memory

    def values(self, env_index: int) -> ActionValues:
        """Return the value of every action in an environment's current state, -inf where it was not searched."""
        return self._searches[env_index].values(self.envs.emulators[env_index], self._rngs[env_index])

    def act(self, frames: np.ndarray) -> Actions:
        """Search in every environment; the frames are not used."""
        scores = np.stack([self.values(env_index) for env_index in range(len(frames))])
        return Actions.legal(scores.argmax(axis=1), self.envs.action_names, scores)
