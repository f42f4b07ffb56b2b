"""PPO on text answers: answers that earned more reward than expected become more probable.

    python -m agents.ppo --game Breakout --init runs/clone/last --out runs/ppo --num-iterations 400

PPO (Schulman et al. 2017) as in `agents.ppo_loss`. An action is a text answer: its log-probability is the sum over its
tokens and its end, relative to all legal answers (`vlm.decoding.candidate_scoring`), as in play. A linear layer on the
decoder's state at the end of the prompt gives the value; it is not exported. A penalty on the divergence from the
initial policy keeps the policy near it.

The training state is saved every few iterations and at Ctrl-C; the same command resumes a run to the same numbers.
"""

import sys
import time
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from agents.ppo_config import PPOConfig
from agents.ppo_trainer import PPOTrainer
from common.command import command, run
from common.files import restore_directory
from common.interruption import deferred_interruption
from common.results import new_result, read_result, write_result
from common.run_arguments import require_same_arguments, run_metadata, to_json
from envs.atari import make_envs
from envs.games import find_game
from envs.protocol import MACHADO2018
from vlm import checkpoint


def train(trainer: PPOTrainer, out: Path) -> None:
    """Run the iterations that are left; write TensorBoard logs, the result JSON and the training state."""
    config, state, file = trainer.config, out / "state", out / "ppo.json"
    result = new_result("ppo", MACHADO2018.to_dict(), [config.seed])
    restore_directory(state)
    if state.is_dir():
        trainer.restore(state)
        result = read_result(file)
        result["rows"] = [row for row in result["rows"] if row["iteration"] <= trainer.iteration]
    bar = tqdm(total=config.num_iterations, initial=trainer.iteration, desc="ppo", unit="iteration")
    with SummaryWriter(str(out)) as writer, bar, deferred_interruption() as is_asked_to_stop:
        while trainer.iteration < config.num_iterations and not is_asked_to_stop():
            started = time.monotonic()
            seconds = result["rows"][-1].get("seconds", 0.0) if result["rows"] else 0.0
            row = trainer.train_step()
            row["seconds"] = seconds + time.monotonic() - started  # of training so far
            result["rows"].append(row)
            for name, value in row.items():
                if isinstance(value, float):
                    writer.add_scalar(f"ppo/{name}", value, row["iteration"])
            recent = [score for past in result["rows"][-20:] for score in past["scores"]]
            bar.update()
            bar.set_postfix(score=f"{np.mean(recent):.0f}" if recent else "-", kl=f"{row['kl']:.3f}")
            is_last = trainer.iteration == config.num_iterations or is_asked_to_stop()
            if trainer.iteration % config.save_every == 0 or is_last:
                write_result(file, result)
                trainer.save(state)


def run_ppo(config: PPOConfig) -> Path:
    """Train a policy, or resume its training; return the checkpoint directory."""
    game, out, arguments = find_game(config.game), config.out / "last", to_json(config)
    initial = checkpoint.read_training(config.init)
    require_same_arguments(config.out, arguments)
    vlm = checkpoint.load(config.init, image_tokens=config.image_tokens, history=config.history)
    with make_envs(game, config.num_envs, MACHADO2018) as envs:
        train(PPOTrainer(vlm, envs, config), config.out)
    games = sorted({*(initial.get("games") or []), game.name})
    checkpoint.save(vlm, out, {**run_metadata(arguments), "games": games, "started_from": initial})
    return out


main = command(PPOConfig, run_ppo, __doc__, "the policy is in {}")

if __name__ == "__main__":
    sys.exit(run(main))
