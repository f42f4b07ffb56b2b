"""Parallel environments of one Atari game, with the emulator's own frames, rewards and episode ends.

An agent step is `frame_skip` emulator frames; its observation is the pixel-wise maximum of the last two of them,
because the console draws some objects in every other frame only. Two classes share one interface and give identical
episodes for the same seeds and actions: `AtariEnvs` steps in ale-py's threads, `EmulatorEnvs` exposes the emulators,
so that an expert can clone and restore their states.

An environment whose episode has ended idles until it is reset: its rewards are 0 and its flags False.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from ale_py import ALEState
from ale_py.vector_env import AtariVectorEnv
from jaxtyping import Bool, Float32, Int, Int64, UInt8

from common.errors import UserError
from envs.games import Game, action_names, load_rom, open_emulator, screen_size
from envs.protocol import MACHADO2018, Protocol

Frame = UInt8[np.ndarray, "height width 3"]
Frames = UInt8[np.ndarray, "num_envs height width 3"]
Ram = UInt8[np.ndarray, "128"]


@dataclass(frozen=True)
class Step:
    """One step in every environment. Rewards are not clipped; `lives` is 0 throughout in a game without lives."""

    frames: Frames
    rewards: Float32[np.ndarray, " num_envs"]
    terminated: Bool[np.ndarray, " num_envs"]
    truncated: Bool[np.ndarray, " num_envs"]
    lives: Int64[np.ndarray, " num_envs"]


class GameEnvs(ABC):
    """Parallel environments of one game."""

    def __init__(self, game: Game, num_envs: int, protocol: Protocol):
        if num_envs < 1:
            raise UserError(f"expected at least 1 environment, got {num_envs}")
        self.game, self.num_envs, self.protocol = game, num_envs, protocol
        self.action_names = action_names(game, protocol.full_action_space)
        self.frame_shape = (*screen_size(game), 3)
        self._idle = np.ones(num_envs, dtype=bool)

    def _check_seeds(self, seeds: Sequence[int | None]) -> Bool[np.ndarray, " num_envs"]:
        if len(seeds) != self.num_envs:
            raise UserError(f"expected {self.num_envs} seeds, one per environment (None: no reset), got {len(seeds)}")
        reset = np.array([seed is not None for seed in seeds])
        self._idle &= ~reset
        return reset

    def _check_actions(self, actions: Int[np.ndarray, " num_envs"]) -> Int64[np.ndarray, " num_envs"]:
        actions = np.asarray(actions, dtype=np.int64)
        last = len(self.action_names) - 1
        if actions.shape != (self.num_envs,) or actions.min() < 0 or actions.max() > last:
            raise UserError(f"expected {self.num_envs} actions from 0 to {last}, got {actions.tolist()}")
        return actions

    @abstractmethod
    def reset(self, seeds: Sequence[int | None]) -> Frames:
        """Start an episode in every environment that has a seed; return the current frames."""

    @abstractmethod
    def step(self, actions: Int[np.ndarray, " num_envs"]) -> Step:
        """Take one agent step in every environment."""

    @abstractmethod
    def close(self) -> None:
        """Free the emulators."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class AtariEnvs(GameEnvs):
    """Environments on ale-py's `AtariVectorEnv`, which cannot draw no-op starts per environment."""

    def __init__(self, game: Game, num_envs: int, protocol: Protocol = MACHADO2018):
        super().__init__(game, num_envs, protocol)
        if protocol.noop_max:
            raise UserError(f"{protocol.name} starts episodes with no-ops; use EmulatorEnvs (see make_envs)")
        height, width, _ = self.frame_shape
        self._envs = AtariVectorEnv(
            game.rom,
            num_envs,
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
        self._was_reset = False

    def reset(self, seeds: Sequence[int | None]) -> Frames:
        """See `GameEnvs.reset`."""
        mask = self._check_seeds(seeds)
        given = np.array([seed or 0 for seed in seeds], dtype=np.int64)
        if self._was_reset:
            frames, _ = self._envs.reset(seed=given[mask], options={"reset_mask": mask})
        else:  # the first reset of ale-py must cover every environment
            frames, _ = self._envs.reset(seed=given)
            self._was_reset = True
        return frames[:, 0].copy()

    def step(self, actions: Int[np.ndarray, " num_envs"]) -> Step:
        """See `GameEnvs.step`."""
        frames, rewards, terminated, truncated, info = self._envs.step(self._check_actions(actions))
        active = ~self._idle
        self._idle |= terminated | truncated
        return Step(
            frames[:, 0].copy(),
            np.where(active, rewards, 0).astype(np.float32),
            terminated & active,
            truncated & active & ~terminated,
            np.asarray(info["lives"], dtype=np.int64),
        )

    def close(self) -> None:
        """Free the emulators."""
        self._envs.close()


class Emulator:
    """One console, stepped by agent steps; its state can be cloned and restored."""

    def __init__(self, game: Game, protocol: Protocol):
        self._ale = open_emulator(game)
        self._ale.setFloat("repeat_action_probability", protocol.repeat_action_probability)
        self._ale.setInt("max_num_frames_per_episode", protocol.max_episode_frames)
        legal = self._ale.getLegalActionSet() if protocol.full_action_space else self._ale.getMinimalActionSet()
        self._actions, self._frame_skip = list(legal), protocol.frame_skip
        self._rom = game.rom

    def reset(self, seed: int) -> None:
        """Start an episode; the seed decides which actions stick."""
        self._ale.setInt("random_seed", seed)
        load_rom(self._ale, self._rom)
        self._ale.reset_game()

    def act(self, action: int, screens: list[Frame] | None = None) -> float:
        """Take one agent step and return its reward; add its last two frames to `screens`."""
        ale, code, reward = self._ale, self._actions[action], 0
        for frame in range(self._frame_skip):
            reward += ale.act(code)
            if screens is not None and frame >= self._frame_skip - 2:
                screens.append(ale.getScreenRGB())
            if ale.game_over():
                break
        return float(reward)

    def step(self, action: int) -> tuple[float, Frame]:
        """Take one agent step; return its reward and the maximum of its last two frames."""
        screens: list[Frame] = []
        reward = self.act(action, screens)
        return reward, np.maximum.reduce(screens or [self.frame()])

    def clone(self) -> ALEState:
        """Return the console's state without its random generator: after `restore`, sticky actions are drawn anew."""
        return self._ale.cloneState()

    def restore(self, state: ALEState) -> None:
        """Return to a state of `clone`."""
        self._ale.restoreState(state)

    @property
    def lives(self) -> int:
        """Lives left; 0 throughout in a game without lives."""
        return int(self._ale.lives())

    @property
    def ram(self) -> Ram:
        """The console's memory."""
        return self._ale.getRAM()

    @property
    def game_over(self) -> bool:
        """Whether the episode has been terminated or truncated."""
        return bool(self._ale.game_over())

    @property
    def truncated(self) -> bool:
        """Whether the protocol's limit has cut the episode off."""
        return bool(self._ale.game_truncated())

    def frame(self) -> Frame:
        """Return the frame on the screen."""
        return self._ale.getScreenRGB()


class EmulatorEnvs(GameEnvs):
    """Environments with accessible `emulators`; single-threaded, for any protocol."""

    def __init__(self, game: Game, num_envs: int, protocol: Protocol = MACHADO2018):
        super().__init__(game, num_envs, protocol)
        self.emulators = [Emulator(game, protocol) for _ in range(num_envs)]
        self._frames = np.zeros((num_envs, *self.frame_shape), dtype=np.uint8)

    def close(self) -> None:
        """Free the emulators."""
        self.emulators.clear()

    def reset(self, seeds: Sequence[int | None]) -> Frames:
        """See `GameEnvs.reset`; the number of no-ops at the start is drawn from the seed."""
        self._check_seeds(seeds)
        for env_index, (emulator, seed) in enumerate(zip(self.emulators, seeds, strict=True)):
            if seed is None:
                continue
            emulator.reset(seed)
            self._frames[env_index] = emulator.frame()
            for _ in range(int(np.random.default_rng(seed).integers(self.protocol.noop_max + 1))):
                _, self._frames[env_index] = emulator.step(0)
        return self._frames.copy()

    def step(self, actions: Int[np.ndarray, " num_envs"]) -> Step:
        """See `GameEnvs.step`."""
        actions = self._check_actions(actions)
        rewards = np.zeros(self.num_envs, dtype=np.float32)
        ended, truncated = np.zeros((2, self.num_envs), dtype=bool)
        for env_index in np.flatnonzero(~self._idle):
            emulator = self.emulators[env_index]
            rewards[env_index], self._frames[env_index] = emulator.step(int(actions[env_index]))
            ended[env_index], truncated[env_index] = emulator.game_over, emulator.truncated
        self._idle |= ended
        lives = np.array([emulator.lives for emulator in self.emulators], dtype=np.int64)
        return Step(self._frames.copy(), rewards, ended & ~truncated, truncated, lives)


def make_envs(game: Game, num_envs: int, protocol: Protocol = MACHADO2018, searchable: bool = False) -> GameEnvs:
    """Return the fastest environments for a protocol; with `searchable` or no-op starts that is `EmulatorEnvs`."""
    return (EmulatorEnvs if searchable or protocol.noop_max else AtariEnvs)(game, num_envs, protocol)
