"""Train a stable-baselines3 expert on one game.

    python -m agents.experts.train_sb3 --game Carnival --algo qrdqn --steps 2500000 --out runs/carnival-qrdqn
    python -m agents.play --game Carnival --agent sb3:runs/carnival-qrdqn/best.zip

QR-DQN (Dabney et al. 2018) learns Carnival far faster per frame than PPO. It learns from clipped rewards; games are
whole, lost lives do not end them, and the trials that choose `best.zip` count true scores on seeds below 1000. The
same command goes on where it stopped: from the last checkpoint, its replay buffer included.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from gymnasium import spaces
from sb3_contrib import QRDQN
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.frame_stack import FrameStack
from agents.rollout import play_games
from agents.sb3_agent import OBSERVATIONS, STACK, Sb3Agent, shrink
from common.command import run
from common.errors import UserError
from common.provenance import git_commit, package_versions
from envs.atari import GameEnvs, make_envs
from envs.games import find_game
from envs.protocol import episode_seeds, find_protocol

ALGORITHMS: dict[str, Any] = {"qrdqn": QRDQN, "dqn": DQN, "ppo": PPO}
TRIAL_SEED = 901


@dataclass
class Args:
    """Train an SB3 expert."""

    game: str
    """The game, in any reasonable spelling."""
    out: Path
    """Where checkpoints, `best.zip` and TensorBoard logs go."""
    algo: Literal["qrdqn", "dqn", "ppo"] = "qrdqn"
    """The algorithm."""
    steps: int = 2_500_000
    """Decisions to train on, over all lanes; 2.5 million are 10 million frames."""
    lanes: int = 16
    """Games in step."""
    buffer: int = 100_000
    """Decisions in the replay buffer (28 kB each; qrdqn and dqn)."""
    seed: int = 0
    """Seed of the weights and of the games."""
    protocol: str = "machado2018"
    """The evaluation protocol the games follow."""
    save_every: int = 50_000
    """Decisions between checkpoints and trials by play."""
    trial_games: int = 5
    """Whole games a trial plays."""
    progress: bool = True
    """Show a progress bar with an estimate."""

    def __post_init__(self) -> None:
        for name in ("steps", "lanes", "buffer", "save_every", "trial_games"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")


class ExpertEnvs(VecEnv):
    """Our lanes as SB3 wants them: four small grey frames, rewards clipped to their sign, games restarted at once."""

    def __init__(self, lanes: GameEnvs, seed: int):
        self.lanes, self._rng = lanes, np.random.default_rng(seed)
        self._memory, self._scores, self._lengths = (
            FrameStack(STACK),
            np.zeros(lanes.num_envs),
            np.zeros(lanes.num_envs, int),
        )
        super().__init__(lanes.num_envs, OBSERVATIONS, spaces.Discrete(len(lanes.action_names)))

    def _start(self, lanes: np.ndarray) -> np.ndarray:
        seeds = [int(self._rng.integers(2**31)) if start else None for start in lanes]
        self._memory.reset(lanes)
        self._scores[lanes], self._lengths[lanes] = 0, 0
        return self.lanes.reset(seeds)

    def _see(self, frames: np.ndarray) -> np.ndarray:
        return self._memory.add(shrink(frames)[..., None])[..., 0]

    def reset(self) -> np.ndarray:
        """Start all lanes; return uint8[n, 4, 84, 84]."""
        return self._see(self._start(np.ones(self.num_envs, dtype=bool)))

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict]]:
        """Play one decision in every lane; a game that ended starts anew, its last sight in the info."""
        step = self.lanes.step(self._actions)
        self._scores += step.rewards
        self._lengths += 1
        ended = step.terminated | step.truncated
        seen = self._see(step.frames)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for lane in np.flatnonzero(ended):
            infos[lane] = {
                "terminal_observation": seen[lane].copy(),
                "TimeLimit.truncated": bool(step.truncated[lane]),
                "episode": {
                    "r": float(self._scores[lane]),
                    "l": int(self._lengths[lane]),
                    "t": time.monotonic(),
                },
            }
        if ended.any():
            fresh = self._start(ended)
            restarted = np.repeat(shrink(fresh)[:, None], STACK, axis=1)
            seen = np.where(ended[:, None, None, None], restarted, seen)
            self._memory.replace(ended, restarted[..., None])
        return seen, np.sign(step.rewards), ended, infos

    def close(self) -> None:
        """Free the emulators."""
        self.lanes.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """SB3 asks for `render_mode`; the lanes have no attributes of their own."""
        return [None for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: the lanes are not gymnasium environments."""
        raise AttributeError(f"lanes have no attribute {attr_name}")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Refuse: the lanes are not gymnasium environments."""
        raise AttributeError(f"lanes have no method {method_name}")

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """Say that no lane is wrapped."""
        return [False for _ in self._get_indices(indices)]


class BestModelCallback(BaseCallback):
    """Saves the expert, tries it on whole games with true scores, keeps the best."""

    def __init__(self, args: Args):
        super().__init__()
        self.args, self.file = args, args.out / "trials.json"
        self.trials: list[dict] = json.loads(self.file.read_text()) if self.file.exists() else []

    def _on_step(self) -> bool:
        done = [trial["steps"] for trial in self.trials]
        if self.num_timesteps - max(done, default=0) >= self.args.save_every:
            self.keep()
        return True

    def keep(self) -> None:
        """Save, try, compare."""
        out = self.args.out
        self.model.save(out / "last.zip")
        if isinstance(self.model, OffPolicyAlgorithm):
            self.model.save_replay_buffer(out / "replay.pkl")
        scores = evaluate_expert(out / "last.zip", self.args)
        self.logger.record("trial/score", float(np.mean(scores)))
        if all(np.mean(scores) > np.mean(trial["scores"]) for trial in self.trials):
            self.model.save(out / "best.zip")
        self.trials.append({"steps": self.num_timesteps, "scores": scores})
        self.file.write_text(json.dumps(self.trials, indent=1))


def evaluate_expert(archive: Path, args: Args) -> list[float]:
    """Return the true scores of whole games on the seeds that choosing may use."""
    game, protocol = find_game(args.game), find_protocol(args.protocol)
    with make_envs(game, args.trial_games, protocol) as envs:
        agent = Sb3Agent(archive, envs.action_names)
        turns = play_games(agent, envs, episode_seeds(TRIAL_SEED, args.trial_games))
        return [turn.score for turn in turns if turn.ended]


def make_algorithm(args: Args, envs: VecEnv) -> BaseAlgorithm:
    """Build the learner, or reload it with its replay buffer where the run was stopped."""
    common: dict[str, Any] = {
        "env": envs,
        "tensorboard_log": str(args.out / "tensorboard"),
        "seed": args.seed,
    }
    algorithm = ALGORITHMS[args.algo]
    if (args.out / "last.zip").exists():
        model = algorithm.load(args.out / "last.zip", env=envs, tensorboard_log=common["tensorboard_log"])
        if isinstance(model, OffPolicyAlgorithm) and (args.out / "replay.pkl").exists():
            model.load_replay_buffer(args.out / "replay.pkl")
        return model
    if args.algo == "ppo":
        return PPO("CnnPolicy", n_steps=128, batch_size=256, n_epochs=4, clip_range=0.1, ent_coef=0.01, **common)
    return algorithm(
        "CnnPolicy",
        buffer_size=args.buffer,
        learning_starts=min(20_000, args.steps // 10),
        train_freq=1,
        gradient_steps=max(1, args.lanes // 4),
        batch_size=32,
        target_update_interval=10_000,
        exploration_fraction=0.1,
        exploration_final_eps=0.01,
        **common,
    )


def train(args: Args) -> Path:
    """Train, or go on training; return the archive of the best trial."""
    game, protocol = find_game(args.game), find_protocol(args.protocol)
    args.out.mkdir(parents=True, exist_ok=True)
    record = {"arguments": asdict(args), "commit": git_commit(), "versions": package_versions()}
    (args.out / "expert.json").write_text(json.dumps(record, indent=1, default=str))
    envs = ExpertEnvs(make_envs(game, args.lanes, protocol), args.seed)
    model = make_algorithm(args, envs)
    keep = BestModelCallback(args)
    left = args.steps - model.num_timesteps
    if left > 0:
        model.learn(left, callback=keep, reset_num_timesteps=False, progress_bar=args.progress)
        if not keep.trials or keep.trials[-1]["steps"] < model.num_timesteps:
            keep.keep()
    envs.close()
    return args.out / "best.zip"


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    print(f"the expert is {train(tyro.cli(Args, args=argv, description=__doc__))}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
