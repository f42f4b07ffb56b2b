"""Train a stable-baselines3 expert on one game.

    python -m agents.experts.train_sb3 --game Carnival --algo qrdqn --steps 2500000 --out runs/carnival-qrdqn
    python -m agents.play --game Carnival --agent sb3:runs/carnival-qrdqn/best.zip

QR-DQN (Dabney et al. 2018) learns Carnival far faster per frame than PPO. Training clips rewards and does not end
episodes at a lost life; `best.zip` has the highest mean of raw scores on evaluation seeds below 1000. The same command
resumes from the last checkpoint and its replay buffer.
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
from common.command import require_at_least, run
from common.files import atomic_file, write_text_atomically
from common.provenance import git_commit, package_versions
from envs.atari import GameEnvs, make_envs
from envs.games import find_game
from envs.protocol import episode_seeds, find_protocol

ALGORITHMS: dict[str, Any] = {"qrdqn": QRDQN, "dqn": DQN, "ppo": PPO}
EVALUATION_SEED = 901
OLD_EVALUATIONS = "trials.json"  # in runs of earlier versions


@dataclass
class Args:
    """Train an SB3 expert."""

    game: str
    """The game, in any spelling."""
    out: Path
    """Directory of checkpoints, `best.zip` and TensorBoard logs."""
    algo: Literal["qrdqn", "dqn", "ppo"] = "qrdqn"
    """The algorithm."""
    steps: int = 2_500_000
    """Agent steps over all environments; 2.5 million are 10 million frames."""
    num_envs: int = 16
    """Parallel environments."""
    buffer_size: int = 100_000
    """Agent steps in the replay buffer (28 kB each; qrdqn and dqn)."""
    seed: int = 0
    """Seed of the weights and of the episodes."""
    protocol: str = "machado2018"
    """The evaluation protocol of the episodes."""
    eval_every: int = 50_000
    """Agent steps between checkpoints, each with an evaluation."""
    eval_episodes: int = 5
    """Whole episodes of an evaluation."""
    progress: bool = True
    """Show a progress bar with an estimate."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "steps", "num_envs", "buffer_size", "eval_every", "eval_episodes")


class ExpertEnvs(VecEnv):
    """`GameEnvs` as SB3 takes them: four small gray frames, rewards clipped to their sign, automatic resets."""

    def __init__(self, envs: GameEnvs, seed: int):
        self.envs, self._rng = envs, np.random.default_rng(seed)
        self._frame_stack = FrameStack(STACK)
        self._scores, self._lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, int)
        super().__init__(envs.num_envs, OBSERVATIONS, spaces.Discrete(len(envs.action_names)))

    def _start(self, started: np.ndarray) -> np.ndarray:
        seeds = [int(self._rng.integers(2**31)) if start else None for start in started]
        self._frame_stack.reset(started)
        self._scores[started], self._lengths[started] = 0, 0
        return self.envs.reset(seeds)

    def _observations(self, frames: np.ndarray) -> np.ndarray:
        return self._frame_stack.add(shrink(frames)[..., None])[..., 0]

    def reset(self) -> np.ndarray:
        """Start an episode in every environment; return uint8[n, 4, 84, 84]."""
        return self._observations(self._start(np.ones(self.num_envs, dtype=bool)))

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict]]:
        """Take one step in every environment; one that ends is reset, with its last observation in the info."""
        step = self.envs.step(self._actions)
        self._scores += step.rewards
        self._lengths += 1
        ended = step.terminated | step.truncated
        observations = self._observations(step.frames)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for env_index in np.flatnonzero(ended):
            score, length = float(self._scores[env_index]), int(self._lengths[env_index])
            infos[env_index] = {
                "terminal_observation": observations[env_index].copy(),
                "TimeLimit.truncated": bool(step.truncated[env_index]),
                "episode": {"r": score, "l": length, "t": time.monotonic()},
            }
        if ended.any():
            restarted = np.repeat(shrink(self._start(ended))[:, None], STACK, axis=1)
            observations = np.where(ended[:, None, None, None], restarted, observations)
            self._frame_stack.replace(ended, restarted[..., None])
        return observations, np.sign(step.rewards), ended, infos

    def close(self) -> None:
        """Free the emulators."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return None for each environment; SB3 reads `render_mode`."""
        return [None for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: these are not gymnasium environments."""
        raise AttributeError(f"the environments have no attribute {attr_name}")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Refuse: these are not gymnasium environments."""
        raise AttributeError(f"the environments have no method {method_name}")

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """Return False for each environment."""
        return [False for _ in self._get_indices(indices)]


class BestModelCallback(BaseCallback):
    """Saves checkpoints, evaluates them on whole episodes and keeps the best."""

    def __init__(self, args: Args):
        super().__init__()
        self.args, self.file = args, args.out / "evaluations.json"
        existing = next((file for file in (self.file, args.out / OLD_EVALUATIONS) if file.exists()), None)
        self.evaluations: list[dict] = json.loads(existing.read_text()) if existing else []

    def _on_step(self) -> bool:
        done = [evaluation["steps"] for evaluation in self.evaluations]
        if self.num_timesteps - max(done, default=0) >= self.args.eval_every:
            self.save_and_evaluate()
        return True

    def save_and_evaluate(self) -> None:
        """Save a checkpoint and its evaluation; copy it to `best.zip` if it is the best."""
        last = self.args.out / "last.zip"
        self._save(last)
        if isinstance(self.model, OffPolicyAlgorithm):
            with atomic_file(self.args.out / "replay.pkl") as temporary:
                self.model.save_replay_buffer(temporary)
        scores = evaluate_expert(last, self.args)
        self.logger.record("eval/mean_score", float(np.mean(scores)))
        if all(np.mean(scores) > np.mean(evaluation["scores"]) for evaluation in self.evaluations):
            self._save(self.args.out / "best.zip")
        self.evaluations.append({"steps": self.num_timesteps, "scores": scores})
        write_text_atomically(self.file, json.dumps(self.evaluations, indent=1))

    def _save(self, archive: Path) -> None:
        with atomic_file(archive) as temporary:
            self.model.save(temporary)


def evaluate_expert(archive: Path, args: Args) -> list[float]:
    """Return the raw scores of whole episodes."""
    with make_envs(find_game(args.game), args.eval_episodes, find_protocol(args.protocol)) as envs:
        agent = Sb3Agent(archive, envs.action_names)
        transitions = play_games(agent, envs, episode_seeds(EVALUATION_SEED, args.eval_episodes))
        return [transition.score for transition in transitions if transition.ended]


def make_algorithm(args: Args, envs: VecEnv) -> BaseAlgorithm:
    """Return a new learner, or the last checkpoint with its replay buffer."""
    algorithm, tensorboard_log = ALGORITHMS[args.algo], str(args.out / "tensorboard")
    if (args.out / "last.zip").exists():
        model = algorithm.load(args.out / "last.zip", env=envs, tensorboard_log=tensorboard_log)
        if isinstance(model, OffPolicyAlgorithm) and (args.out / "replay.pkl").exists():
            model.load_replay_buffer(args.out / "replay.pkl")
        return model
    common: dict[str, Any] = {"env": envs, "tensorboard_log": tensorboard_log, "seed": args.seed}
    if args.algo == "ppo":
        return PPO("CnnPolicy", n_steps=128, batch_size=256, n_epochs=4, clip_range=0.1, ent_coef=0.01, **common)
    return algorithm(
        "CnnPolicy",
        buffer_size=args.buffer_size,
        learning_starts=min(20_000, args.steps // 10),
        train_freq=1,
        gradient_steps=max(1, args.num_envs // 4),
        batch_size=32,
        target_update_interval=10_000,
        exploration_fraction=0.1,
        exploration_final_eps=0.01,
        **common,
    )


def train(args: Args) -> Path:
    """Train to `args.steps`, from the last checkpoint if there is one; return the best archive."""
    game, protocol = find_game(args.game), find_protocol(args.protocol)
    record = {"arguments": asdict(args), "commit": git_commit(), "versions": package_versions()}
    write_text_atomically(args.out / "expert.json", json.dumps(record, indent=1, default=str))
    envs = ExpertEnvs(make_envs(game, args.num_envs, protocol), args.seed)
    model = make_algorithm(args, envs)
    callback = BestModelCallback(args)
    remaining = args.steps - model.num_timesteps
    if remaining > 0:
        model.learn(remaining, callback=callback, reset_num_timesteps=False, progress_bar=args.progress)
        if not callback.evaluations or callback.evaluations[-1]["steps"] < model.num_timesteps:
            callback.save_and_evaluate()
    envs.close()
    return args.out / "best.zip"


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    print(f"expert: {train(tyro.cli(Args, args=argv, description=__doc__))}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
