"""Train a stable-baselines3 expert on one game.

    python -m agents.experts.train_sb3 --game Carnival --algo qrdqn --steps 2500000 --out runs/carnival-qrdqn
    python -m agents.play --game Carnival --agent sb3:runs/carnival-qrdqn/best.zip

Training clips rewards and does not end episodes at a lost life; `best.zip` has the highest mean of raw scores on
evaluation seeds below 1000. The same command resumes from the last checkpoint and its replay buffer.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sb3_contrib import QRDQN
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback, EveryNTimesteps
from stable_baselines3.common.logger import Logger

from agents.experts.expert_envs import ExpertEnvs
from agents.rollout import play_games
from agents.sb3_agent import Sb3Agent
from common.command import command, require_at_least, run
from common.errors import UserError
from common.files import atomic_file, write_text_atomically
from common.interruption import deferred_interruption
from common.run_arguments import run_metadata, to_json
from envs.atari import make_envs
from envs.games import find_game
from envs.protocol import episode_seeds, find_protocol

ALGORITHMS: dict[str, Any] = {"qrdqn": QRDQN, "dqn": DQN, "ppo": PPO}
EVALUATION_SEED = 901


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


class BestModelCallback(BaseCallback):
    """Saves a checkpoint at each call, scores it on whole episodes and keeps the best.

    SB3's CheckpointCallback keeps every replay buffer, and its EvalCallback scores the clipped rewards of training.
    """

    def __init__(self, args: Args):
        super().__init__()
        self.args, self.file = args, args.out / "evaluations.json"
        self.evaluations: list[dict[str, Any]] = json.loads(self.file.read_text()) if self.file.exists() else []
        self.evaluated_steps = max((evaluation["steps"] for evaluation in self.evaluations), default=0)

    def _on_step(self) -> bool:
        self.save_state()
        scores = self._evaluate(self.args.out / "last.zip")
        self.logger.record("eval/mean_score", float(np.mean(scores)))
        if all(np.mean(scores) > np.mean(evaluation["scores"]) for evaluation in self.evaluations):
            self._save(self.args.out / "best.zip")
        self.evaluated_steps = self.model.num_timesteps
        self.evaluations.append({"steps": self.evaluated_steps, "scores": scores})
        write_text_atomically(self.file, json.dumps(self.evaluations, indent=1))
        return True

    def save_state(self) -> None:
        """Write the checkpoint that a repeated command resumes from; the replay buffer comes first."""
        if not all(parameter.isfinite().all() for parameter in self.model.policy.parameters()):
            raise UserError(
                f"after {self.model.num_timesteps} steps the weights are not finite; {self.args.out}/best.zip and "
                "last.zip are from before"
            )
        if self.args.algo != "ppo":
            with atomic_file(self.args.out / "replay.pkl") as temporary:
                self.model.save_replay_buffer(temporary)
        self._save(self.args.out / "last.zip")

    def _save(self, archive: Path) -> None:
        with atomic_file(archive) as temporary:
            self.model.save(temporary)

    def _evaluate(self, archive: Path) -> list[float]:
        args = self.args
        with make_envs(find_game(args.game), args.eval_episodes, find_protocol(args.protocol)) as envs:
            agent = Sb3Agent(archive, envs.action_names)
            transitions = play_games(agent, envs, episode_seeds(EVALUATION_SEED, args.eval_episodes))
            return [transition.score for transition in transitions if transition.ended]


class StopCallback(BaseCallback):
    """Stops a training after the step in which a signal came."""

    def __init__(self, is_asked: Callable[[], bool]):
        super().__init__()
        self.is_asked = is_asked

    def _on_step(self) -> bool:
        return not self.is_asked()


def make_algorithm(args: Args, envs: ExpertEnvs) -> Any:
    """Return a new learner, or the last checkpoint with its replay buffer."""
    algorithm, last, replay = ALGORITHMS[args.algo], args.out / "last.zip", args.out / "replay.pkl"
    common: dict[str, Any] = {"env": envs, "tensorboard_log": str(args.out / "tensorboard")}
    if last.exists():
        model = algorithm.load(last, **common)
        if replay.exists():
            model.load_replay_buffer(replay)
        return model
    common |= {"policy": "CnnPolicy", "seed": args.seed}
    if args.algo == "ppo":
        return PPO(n_steps=128, batch_size=256, n_epochs=4, clip_range=0.1, ent_coef=0.01, **common)
    return algorithm(
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
    write_text_atomically(args.out / "expert.json", json.dumps(run_metadata(to_json(args)), indent=1))
    envs = ExpertEnvs(make_envs(find_game(args.game), args.num_envs, find_protocol(args.protocol)), args.seed)
    model = make_algorithm(args, envs)
    evaluation = BestModelCallback(args)
    periodic = EveryNTimesteps(args.eval_every, evaluation)
    periodic.last_time_trigger = evaluation.evaluated_steps
    evaluation.init_callback(model)
    model.set_logger(Logger(None, []))  # of an evaluation without training
    if (remaining := args.steps - model.num_timesteps) > 0:
        with deferred_interruption() as is_asked_to_stop:
            stop = StopCallback(is_asked_to_stop)
            model.learn(remaining, callback=[periodic, stop], reset_num_timesteps=False, progress_bar=args.progress)
            if is_asked_to_stop():
                evaluation.save_state()
    if evaluation.evaluated_steps < model.num_timesteps:  # a kill may have come between a checkpoint and its score
        evaluation.on_step()
    envs.close()
    return args.out / "best.zip"


main = command(Args, train, __doc__, "expert: {}")

if __name__ == "__main__":
    sys.exit(run(main))
