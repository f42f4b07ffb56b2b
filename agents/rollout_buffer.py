"""Stretches of play over many lanes, for learning from: what was seen, done and earned, lane by lane.

Lanes play on from stretch to stretch. Where each stands is told by its game's seed and the actions since, and a lane
that is given both stands there again, sticky actions included: so a training that was killed goes on exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.frame_stack import FrameStack
from common.errors import UserError
from envs.atari import GameEnvs
from envs.protocol import EPISODES_PER_SEED, episode_seeds

REWARD_TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sign": np.sign,  # Mnih et al. 2015
    "root": lambda rewards: np.sign(rewards) * (np.sqrt(np.abs(rewards) + 1) - 1),  # Pohlen et al. 2018, less its slope
    "raw": lambda rewards: rewards,
}


@dataclass(frozen=True)
class PolicyOutput:
    """What a policy answers N lanes. actions: int[N]; shares: float32[N, A], its log-probabilities; others by name."""

    actions: np.ndarray
    told: dict[str, np.ndarray]


Decide = Callable[[np.ndarray, int], PolicyOutput]  # stacks uint8[N, history, H, W, 3] and the number of the decision


@dataclass(frozen=True)
class RolloutBatch:
    """T decisions of N lanes.

    stacks: uint8[T, N, history, H, W, 3]; actions: int[T, N]; told: what the policy told of each, [T, N, ...];
    rewards: float32[T, N], true ones; ended: bool[T, N]; after: uint8[N, history, H, W, 3], what is seen at the end;
    scores: of the games that ended.
    """

    stacks: np.ndarray
    actions: np.ndarray
    told: dict[str, np.ndarray]
    rewards: np.ndarray
    ended: np.ndarray
    after: np.ndarray
    scores: list[float]


class RolloutCollector:
    """Lanes that play on, one game after the other."""

    def __init__(self, envs: GameEnvs, history: int, seed: int):
        self.envs, self.first = envs, seed
        self._memory = FrameStack(history)
        self._begun = 0
        self._games: list[int] = []  # each lane's game
        self._actions: list[list[int]] = [[] for _ in range(envs.num_envs)]  # each lane's, since its game began
        self._scores = np.zeros(envs.num_envs)
        self._stacks: np.ndarray | None = None

    def play(self, decide: Decide, length: int) -> RolloutBatch:
        """Play `length` decisions in every lane."""
        stacks = self._stacks if self._stacks is not None else self._begin()
        seen, done, told, earned, over, scores = [], [], [], [], [], []
        for number in range(length):
            decision = decide(stacks, number)
            seen.append(stacks)
            done.append(decision.actions)
            told.append(decision.told)
            step = self.envs.step(decision.actions)
            ended = step.terminated | step.truncated
            self._scores += step.rewards
            for lane, action in enumerate(decision.actions):
                self._actions[lane].append(int(action))
            scores += self._scores[ended].tolist()
            stacks = self._memory.add(self._next_games(ended) if ended.any() else step.frames)
            earned.append(step.rewards)
            over.append(ended)
        self._stacks = stacks
        by_name = {name: np.stack([one[name] for one in told]) for name in told[0]}
        return RolloutBatch(
            np.stack(seen), np.stack(done), by_name, np.stack(earned), np.stack(over), stacks, scores
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """Return where all lanes stand, for JSON."""
        return {"begun": self._begun, "games": self._games, "actions": self._actions}

    def restore(self, state: dict[str, Any]) -> None:
        """Bring all lanes, of the same number, to where they stood."""
        if len(state["games"]) != self.envs.num_envs:
            raise UserError(f"expected a state of {self.envs.num_envs} lanes, got {len(state['games'])}")
        self._begun, self._games = state["begun"], list(state["games"])
        self._actions = [list(actions) for actions in state["actions"]]
        longest = max(len(actions) for actions in self._actions)
        frames = np.zeros((self.envs.num_envs, *self.envs.frame_shape), dtype=np.uint8)
        for number in range(longest + 1):  # lanes with shorter games begin later, so that all get there together
            waiting = [longest - len(actions) - number for actions in self._actions]
            if number:
                replayed = [
                    actions[-left - 1] if left < 0 else 0 for actions, left in zip(self._actions, waiting, strict=True)
                ]
                step = self.envs.step(np.array(replayed))
                self._scores += step.rewards
                frames = step.frames
            begins = np.array([left == 0 for left in waiting])
            if begins.any():
                frames = self.envs.reset([g if b else None for g, b in zip(self._games, begins, strict=True)])
                self._memory.reset(begins)
                self._scores[begins] = 0
            self._stacks = self._memory.add(frames)

    def _begin(self) -> np.ndarray:
        self._memory.reset(np.ones(self.envs.num_envs, dtype=bool))
        return self._memory.add(self._next_games(np.ones(self.envs.num_envs, dtype=bool)))

    def _next_games(self, ended: np.ndarray) -> np.ndarray:
        """Begin a new game in every lane that has ended; return the frames of all."""
        if not self._games:
            self._games = [0] * self.envs.num_envs
        starts: list[int | None] = [None] * self.envs.num_envs
        for lane in np.flatnonzero(ended):
            starts[lane] = self._games[lane] = self._seed(self._begun)
            self._actions[lane], self._scores[lane] = [], 0.0
            self._begun += 1
        self._memory.reset(ended)
        return self.envs.reset(starts)

    def _seed(self, number: int) -> int:
        seed, game = divmod(number, EPISODES_PER_SEED)
        return episode_seeds(self.first + seed, 1)[0] + game
