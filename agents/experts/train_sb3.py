"""Train a stable-baselines3 expert on one game.

    python -m agents.experts.train_sb3 --game Carnival --algo qrdqn --steps 2500000 --out runs/carnival-qrdqn
    python -m agents.play --game Carnival --agent sb3:runs/carnival-qrdqn/best.zip

Training clips rewards and does not end episodes at a lost life; `best.zip` has the highest mean of raw scores on
evaluation seeds below 1000. The same command resumes from the last checkpoint and its replay buffer.
"""

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sb3_contrib import QRDQN
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import EveryNTimesteps
from stable_baselines3.common.logger import Logger

from agents.experts.expert_envs import ExpertEnvs
from agents.experts.sb3_callbacks import BestModelCallback, CurveCallback, StopCallback, TrainingClock
from agents.rollout import play_games
from agents.sb3_agent import Sb3Agent
from common.command import command, require_at_least, run
from common.files import write_text_atomically
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
    curve_every: int = 10_000
    """Agent steps between rows of `curve.json`: the seconds, rewards and scores of training."""
    progress: bool = True
    """Show a progress bar with an estimate."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "steps", "num_envs", "buffer_size", "eval_every", "eval_episodes", "curve_every")


def evaluate(args: Args, archive: Path) -> list[float]:
    """Return the raw scores of an archive's whole episodes."""
    with make_envs(find_game(args.game), args.eval_episodes, find_protocol(args.protocol)) as envs:
        agent = Sb3Agent(archive, envs.action_names)
        transitions = play_games(agent, envs, episode_seeds(EVALUATION_SEED, args.eval_episodes))
        return [transition.score for transition in transitions if transition.ended]


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
    clock = TrainingClock()
    curve = EveryNTimesteps(args.curve_every, CurveCallback(args.out / "curve.json", clock, envs.take_progress))
    evaluation = BestModelCallback(args.out, partial(evaluate, args), args.algo != "ppo", clock)
    periodic = EveryNTimesteps(args.eval_every, evaluation)
    curve.last_time_trigger, periodic.last_time_trigger = model.num_timesteps, evaluation.evaluated_steps
    evaluation.init_callback(model)
    if (remaining := args.steps - model.num_timesteps) > 0:
        with deferred_interruption() as is_asked_to_stop:
            stop = StopCallback(is_asked_to_stop)
            model.learn(
                remaining, callback=[curve, periodic, stop], reset_num_timesteps=False, progress_bar=args.progress
            )
            if is_asked_to_stop():
                evaluation.save_state()
    else:
        model.set_logger(Logger(None, []))  # which SB3 would take for training as well
    if evaluation.evaluated_steps < model.num_timesteps:  # a kill may have come between a checkpoint and its score
        evaluation.on_step()
    envs.close()
    return args.out / "best.zip"


main = command(Args, train, __doc__, "expert: {}")

if __name__ == "__main__":
    sys.exit(run(main))
