"""One Atari game in many lanes: true frames, true rewards, true ends.

A decision is `frame_skip` emulator frames; the frame seen after it is the pixel-wise maximum of the last two of them,
because the console draws some objects on every other frame only. Two classes share one interface and give the same
games, bit for bit, for the same seeds and actions: `AtariEnvs` steps in ale-py's own threads, `EmulatorEnvs` holds
each lane's emulator, for a searcher to clone and restore.

A lane whose game has ended idles until it is reset: its rewards are 0 and its flags False.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from ale_py import ALEState
from ale_py.vector_env import AtariVectorEnv

from common.errors import UserError
from envs.games import Game, action_names, load_rom, open_emulator, screen_size
from envs.protocol import MACHADO2018, Protocol


@dataclass(frozen=True)
class Step:
    """What a decision brought, lane by lane.

    frames: uint8[n, H, W, 3]; rewards: float32[n], unclipped; terminated, truncated: bool[n]; lives: int64[n]
    (0 throughout in a game that counts none).
    """

    frames: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    lives: np.ndarray


class GameEnvs(ABC):
    """What both kinds of lanes share: shape, names, and which lanes idle."""

    def __init__(self, game: Game, n: int, protocol: Protocol):
        if n < 1:
            raise UserError(f"expected at least 1 lane, got {n}")
        self.game, self.n, self.protocol = game, n, protocol
        self.action_names = action_names(game, protocol.full_action_space)
        self.frame_shape = (*screen_size(game), 3)
        self._idle = np.ones(n, dtype=bool)

    def _check_reset(self, seeds: Sequence[int | None]) -> np.ndarray:
        if len(seeds) != self.n:
            raise UserError(f"expected {self.n} seeds, one a lane (None: leave it), got {len(seeds)}")
        started = np.array([seed is not None for seed in seeds])
        self._idle &= ~started
        return started

    def _check_actions(self, actions: np.ndarray) -> np.ndarray:
        actions = np.asarray(actions, dtype=np.int64)
        legal = len(self.action_names)
        if actions.shape != (self.n,) or actions.min() < 0 or actions.max() >= legal:
            raise UserError(f"expected {self.n} actions from 0 to {legal - 1}, got {actions.tolist()}")
        return actions

    @abstractmethod
    def reset(self, seeds: Sequence[int | None]) -> np.ndarray:
        """Start a new game in every lane that has a seed; return uint8[n, H, W, 3]."""

    @abstractmethod
    def step(self, actions: np.ndarray) -> Step:
        """Play one decision in every lane; `actions` is int[n]."""

    @abstractmethod
    def close(self) -> None:
        """Free the emulators."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class AtariEnvs(GameEnvs):
    """Lanes over ale-py's `AtariVectorEnv`; for protocols without no-op starts, which it cannot give lane by lane."""

    def __init__(self, game: Game, n: int, protocol: Protocol = MACHADO2018):
        super().__init__(game, n, protocol)
        if protocol.noop_max:
            raise UserError(f"{protocol.name} opens games with no-ops; use EmulatorEnvs (see make_envs)")
        height, width, _ = self.frame_shape
        self._envs = AtariVectorEnv(
            game.rom,
            n,
            img_height=height,
            img_width=width,
            grayscale=False,
            stack_num=1,
            frameskip=protocol.frame_skip,
            maxpool=True,
            noop_max=0,
            use_fire_reset=False,
            episodic_life=False,
            reward_clipping=False,
            repeat_action_probability=protocol.repeat_action_probability,
            full_action_space=protocol.full_action_space,
            max_num_frames_per_episode=protocol.max_episode_frames,
        )
        self._started = False

    def reset(self, seeds: Sequence[int | None]) -> np.ndarray:
        """See `GameEnvs.reset`."""
        started = self._check_reset(seeds)
        if self._started:
            given = np.array([seed for seed in seeds if seed is not None], dtype=np.int64)
            frames, _ = self._envs.reset(seed=given, options={"reset_mask": started})
        else:  # the library asks for one full reset first
            every = np.array([0 if seed is None else seed for seed in seeds], dtype=np.int64)
            frames, _ = self._envs.reset(seed=every)
            self._started = True
        return frames[:, 0].copy()

    def step(self, actions: np.ndarray) -> Step:
        """See `GameEnvs.step`."""
        frames, rewards, terminated, truncated, info = self._envs.step(self._check_actions(actions))
        awake = ~self._idle
        self._idle |= terminated | truncated
        return Step(
            frames[:, 0].copy(),
            np.where(awake, rewards, 0).astype(np.float32),
            terminated & awake,
            truncated & awake & ~terminated,
            np.asarray(info["lives"], dtype=np.int64),
        )

    def close(self) -> None:
        """Free the emulators."""
        self._envs.close()


class Emulator:
    """One console, a decision at a time; cheap enough to be searched."""

    def __init__(self, game: Game, protocol: Protocol):
        self._ale = open_emulator(game)
        self._ale.setFloat("repeat_action_probability", protocol.repeat_action_probability)
        self._ale.setInt("max_num_frames_per_episode", protocol.max_episode_frames)
        legal = self._ale.getLegalActionSet() if protocol.full_action_space else self._ale.getMinimalActionSet()
        self._actions, self._skip = list(legal), protocol.frame_skip
        self._rom = game.rom

    def start(self, seed: int) -> None:
        """Begin a new game; the seed fixes which actions stick."""
        self._ale.setInt("random_seed", seed)
        load_rom(self._ale, self._rom)
        self._ale.reset_game()

    def act(self, action: int) -> float:
        """Play one decision and return its reward."""
        ale, code, reward = self._ale, self._actions[action], 0
        for _ in range(self._skip):
            reward += ale.act(code)
            if ale.game_over():
                break
        return float(reward)

    def act_and_look(self, action: int) -> tuple[float, np.ndarray]:
        """Play one decision; return its reward and the maximum of its last two frames, uint8[H, W, 3]."""
        ale, code, reward = self._ale, self._actions[action], 0
        seen: list[np.ndarray] = []
        for frame in range(self._skip):
            reward += ale.act(code)
            if frame >= self._skip - 2:
                seen.append(ale.getScreenRGB())
            if ale.game_over():
                break
        return float(reward), np.maximum.reduce(seen or [ale.getScreenRGB()])

    def clone(self) -> ALEState:
        """Return the state of the console, but not of the stickiness: a restored state draws it anew."""
        return self._ale.cloneState()

    def restore(self, state: ALEState) -> None:
        """Go back to a state of `clone`."""
        self._ale.restoreState(state)

    @property
    def lives(self) -> int:
        """Lives left; 0 throughout in a game that counts none."""
        return int(self._ale.lives())

    @property
    def ram(self) -> np.ndarray:
        """The console's memory, uint8[128]."""
        return self._ale.getRAM()

    @property
    def game_over(self) -> bool:
        """Whether the game has ended, or has been cut off."""
        return bool(self._ale.game_over())

    @property
    def truncated(self) -> bool:
        """Whether the game has been cut off by the protocol's cap."""
        return bool(self._ale.game_truncated())

    def frame(self) -> np.ndarray:
        """The frame on the screen, uint8[H, W, 3]."""
        return self._ale.getScreenRGB()


class EmulatorEnvs(GameEnvs):
    """Lanes whose emulators lie open in `emulators`; one thread, any protocol."""

    def __init__(self, game: Game, n: int, protocol: Protocol = MACHADO2018):
        super().__init__(game, n, protocol)
        self.emulators = [Emulator(game, protocol) for _ in range(n)]
        self._frames = np.zeros((n, *self.frame_shape), dtype=np.uint8)

    def close(self) -> None:
        """Free the emulators."""
        self.emulators.clear()

    def reset(self, seeds: Sequence[int | None]) -> np.ndarray:
        """See `GameEnvs.reset`; a protocol with no-op starts draws their number from the seed."""
        self._check_reset(seeds)
        for lane, seed in enumerate(seeds):
            if seed is None:
                continue
            emulator = self.emulators[lane]
            emulator.start(seed)
            self._frames[lane] = emulator.frame()
            noops = int(np.random.default_rng(seed).integers(self.protocol.noop_max + 1))
            for _ in range(noops):
                _, self._frames[lane] = emulator.act_and_look(0)
        return self._frames.copy()

    def step(self, actions: np.ndarray) -> Step:
        """See `GameEnvs.step`."""
        actions = self._check_actions(actions)
        rewards = np.zeros(self.n, dtype=np.float32)
        truncated = np.zeros(self.n, dtype=bool)
        ended = np.zeros(self.n, dtype=bool)
        for lane in np.flatnonzero(~self._idle):
            emulator = self.emulators[lane]
            rewards[lane], self._frames[lane] = emulator.act_and_look(int(actions[lane]))
            ended[lane], truncated[lane] = emulator.game_over, emulator.truncated
        self._idle |= ended
        lives = np.array([emulator.lives for emulator in self.emulators], dtype=np.int64)
        return Step(self._frames.copy(), rewards, ended & ~truncated, truncated, lives)


def make_envs(game: Game, n: int, protocol: Protocol = MACHADO2018, searchable: bool = False) -> GameEnvs:
    """Return the fastest lanes that can do what is asked: `EmulatorEnvs` to search or for no-op starts."""
    return (EmulatorEnvs if searchable or protocol.noop_max else AtariEnvs)(game, n, protocol)
