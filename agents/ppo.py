"""PPO on text answers: answers that earned more reward than expected become more probable.

    python -m agents.ppo --game Breakout --init runs/clone/last --out runs/ppo --num-iterations 400

PPO (Schulman et al. 2017) as in `agents.ppo_loss`. An action is a text answer: its log-probability is the sum over its
tokens and its end, relative to all legal answers (`vlm.decoding.candidate_scoring`), as in play. A linear layer on the
decoder's state at the end of the prompt gives the value; it is not exported. A penalty on the divergence from the
initial policy keeps the policy near it.

The training state is saved every few iterations; the same command resumes a killed run to the same numbers.
"""

import copy
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from agents.ppo_loss import PPOBatch, compute_advantages, ppo_losses
from agents.rollout_buffer import REWARD_TRANSFORMS, PolicyOutput, RolloutBatch, RolloutCollector
from common.command import require_at_least, run
from common.errors import UserError
from common.files import atomic_directory
from common.results import new_result, read_result, write_result
from common.run_arguments import require_same_arguments, run_metadata, to_json
from envs.atari import GameEnvs, make_envs
from envs.games import find_game
from envs.protocol import MACHADO2018
from vlm import checkpoint
from vlm.decoding.candidate_scoring import CandidateScorer
from vlm.model import PixelVLM
from vlm.precision import autocast
from vlm.prompts import action_prompt
from vlm.training.learning_rates import ModuleLearningRates, parameter_groups

STATE, RESULT = "state", "ppo.json"
MAX_GRAD_NORM = 0.5


@dataclass(kw_only=True)
class PPOConfig:
    """Improve a text policy by PPO."""

    game: str
    """The game, in any reasonable spelling."""
    init: Path
    """The checkpoint of the policy to improve, which is also the reference of the divergence penalty."""
    out: Path
    """The run directory: TensorBoard, result JSON, training state and the checkpoint `last`."""
    num_iterations: int = 200
    """Iterations, each of a rollout and its optimizer steps."""
    num_envs: int = 8
    """Environments that play in parallel."""
    num_steps: int = 32
    """Steps of a rollout in each environment."""
    num_epochs: int = 3
    """Passes over a rollout."""
    minibatch_size: int = 64
    """Steps in a minibatch."""
    gamma: float = 0.99
    """Discount of rewards per step."""
    gae_lambda: float = 0.95
    """Decay of generalized advantage estimation."""
    clip_coef: float = 0.1
    """Clipping range of the probability ratio."""
    ent_coef: float = 0.01
    """Weight of the entropy of the answers."""
    kl_coef: float = 0.1
    """Weight of the divergence from the initial policy; 0 turns the penalty off."""
    vf_coef: float = 0.5
    """Weight of the value's squared error."""
    reward_transform: Literal["clip", "sqrt", "none"] = "clip"
    """clip: the sign (Mnih et al. 2015); sqrt: signed square root (Pohlen et al. 2018); none: the game's own."""
    learning_rate: float = 1e-4
    """Learning rate of the decoder and the value, before a linear decay to zero."""
    encoder_learning_rate: float = 3e-4
    """The same of encoder and connector; 0 freezes the encoder."""
    seed: int = 0
    """Seed of sampled actions and minibatches."""
    env_seed: int = 600
    """Published seed of the first episodes; below 900, which checkpoint selection uses."""
    bf16: bool | None = None
    """Compute in bfloat16 where that is safe; by default where the device supports it natively."""
    save_every: int = 10
    """Iterations between saved training states."""

    def __post_init__(self) -> None:
        names = ("num_iterations", "num_envs", "num_steps", "num_epochs", "minibatch_size", "save_every")
        require_at_least(self, 1, *names)
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name.replace('_', '-')} must be from 0 to 1, got {getattr(self, name)}")


class TextPolicy(nn.Module):
    """A VLM's distribution over the legal text answers, and a value of the observation."""

    def __init__(self, vlm: PixelVLM, title: str, action_names: tuple[str, ...]):
        super().__init__()
        self.model, self.vlm = vlm.model, vlm
        self.scorer = CandidateScorer(vlm, action_prompt(title, action_names), action_names)
        self.value = nn.Linear(vlm.model.get_input_embeddings().embedding_dim, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities float32[B, A] and values float32[B] of obs uint8[B, history, H, W, 3]."""
        log_probs, state = self.scorer.forward(self.vlm.encode_images(self.vlm.preprocess(obs)))
        return log_probs.log_softmax(-1), self.value(state.float())[:, 0]


class PPOTrainer:
    """A policy in training, its optimizer and its environments.

    Args:
        vlm: the policy's model; it is trained in place.
        envs: the environments, of one game.
        config: of the training.
    """

    def __init__(self, vlm: PixelVLM, envs: GameEnvs, config: PPOConfig):
        self.vlm, self.config, self.iteration = vlm, config, 0
        title, names = envs.game.title, tuple(envs.action_names)
        self.reference = TextPolicy(copy.deepcopy(vlm), title, names).eval().requires_grad_(False)
        self.policy = TextPolicy(vlm, title, names)
        encoder_rate, rate = config.encoder_learning_rate, config.learning_rate
        rates = ModuleLearningRates(encoder=encoder_rate or None, connector=encoder_rate or rate, decoder=rate)
        groups = [*parameter_groups(vlm, rates, 0.0), {"params": list(self.policy.value.parameters()), "lr": rate}]
        self.initial_rates = [group["lr"] for group in groups]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        self.collector = RolloutCollector(envs, vlm.history, config.env_seed)

    def train_step(self) -> dict[str, Any]:
        """Collect a rollout and learn from it; return the iteration's metrics."""
        config = self.config
        self.policy.eval()
        rollout = self.collector.collect(self._act, config.num_steps)
        rewards = REWARD_TRANSFORMS[config.reward_transform](rollout.rewards).astype(np.float32)
        batch = self._batch(rollout, rewards)
        losses = self._optimize(torch.from_numpy(rollout.obs).flatten(0, 1), batch)
        self.iteration += 1
        return {"iteration": self.iteration, "scores": rollout.scores, "reward": float(rewards.mean()), **losses}

    def _autocast(self) -> torch.autocast:
        return autocast(self.vlm.device, self.config.bf16)

    @torch.no_grad()
    def _act(self, obs: np.ndarray, step: int) -> PolicyOutput:
        """Sample an action in every environment."""
        with self._autocast():
            on_device = torch.from_numpy(obs).to(self.vlm.device)
            log_probs, values = self.policy(on_device)
            reference, _ = self.reference(on_device)
        log_probs = log_probs.float().cpu()
        rng = np.random.default_rng([self.config.seed, self.iteration, step])
        actions = np.array([rng.choice(len(p), p=p) for p in log_probs.double().softmax(-1).numpy()])
        extras = {"log_probs": log_probs.numpy(), "reference": reference.float().cpu().numpy()}
        return PolicyOutput(actions, {**extras, "value": values.float().cpu().numpy()})

    def _batch(self, rollout: RolloutBatch, rewards: np.ndarray) -> PPOBatch:
        """Return the rollout's steps with normalized advantages, environments flattened."""
        config, device = self.config, self.vlm.device
        with torch.no_grad(), self._autocast():
            next_values = self.policy(torch.from_numpy(rollout.next_obs).to(device))[1].float().cpu().numpy()
        advantages, returns = compute_advantages(
            rollout.extras["value"], rewards, rollout.dones, next_values, config.gamma, config.gae_lambda
        )
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        columns = (rollout.actions, rollout.extras["log_probs"], rollout.extras["reference"], advantages, returns)
        return PPOBatch(*(torch.from_numpy(column).flatten(0, 1).to(device) for column in columns))

    def _optimize(self, obs: Tensor, batch: PPOBatch) -> dict[str, float]:
        """Take the optimizer steps of a rollout; return the mean losses."""
        config = self.config
        for group, rate in zip(self.optimizer.param_groups, self.initial_rates, strict=True):
            group["lr"] = rate * (1 - self.iteration / config.num_iterations)
        history: list[dict[str, float]] = []
        for epoch in range(config.num_epochs):
            order = np.random.default_rng([config.seed, self.iteration, epoch, 1]).permutation(len(obs))
            for rows in torch.from_numpy(order).split(config.minibatch_size):
                with self._autocast():
                    log_probs, values = self.policy(obs[rows].to(self.vlm.device))
                losses = ppo_losses(
                    log_probs.float(),
                    values.float(),
                    batch[rows],
                    clip_coef=config.clip_coef,
                    ent_coef=config.ent_coef,
                    kl_coef=config.kl_coef,
                    vf_coef=config.vf_coef,
                )
                self.optimizer.zero_grad()
                losses["loss"].backward()
                nn.utils.clip_grad_norm_(self.policy.parameters(), MAX_GRAD_NORM)
                self.optimizer.step()
                history.append({name: float(value.detach()) for name, value in losses.items()})
        return {name: float(np.mean([losses[name] for losses in history])) for name in history[0]}

    def save(self, directory: Path) -> None:
        """Write the training state; an old one is replaced when the new one is complete."""
        with atomic_directory(directory) as temporary:
            state = {"policy": self.policy.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(state, temporary / "trainer_state.pt")
            env_state = {"iteration": self.iteration, **self.collector.state()}
            (temporary / "env_state.json").write_text(json.dumps(env_state))

    def restore(self, directory: Path) -> None:
        """Resume from a state of `save`."""
        state = torch.load(directory / "trainer_state.pt", weights_only=True, map_location=self.vlm.device)
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        env_state = json.loads((directory / "env_state.json").read_text())
        self.iteration = env_state["iteration"]
        self.collector.restore(env_state)


def train(trainer: PPOTrainer, out: Path) -> None:
    """Run the iterations that are left; write TensorBoard logs, the result JSON and the training state."""
    config, state, file = trainer.config, out / STATE, out / RESULT
    result = new_result("ppo", trainer.collector.envs.protocol.to_dict(), [config.seed])
    if state.is_dir():
        trainer.restore(state)
        result = read_result(file)
        result["rows"] = [row for row in result["rows"] if row["iteration"] <= trainer.iteration]
    bar = tqdm(total=config.num_iterations, initial=trainer.iteration, desc="ppo", unit="iteration")
    with SummaryWriter(str(out)) as writer:
        while trainer.iteration < config.num_iterations:
            row = trainer.train_step()
            result["rows"].append(row)
            for name, value in row.items():
                if isinstance(value, float):
                    writer.add_scalar(f"ppo/{name}", value, row["iteration"])
            recent = [score for past in result["rows"][-20:] for score in past["scores"]]
            bar.update()
            bar.set_postfix(score=f"{np.mean(recent):.0f}" if recent else "-", kl=f"{row['kl']:.3f}")
            if trainer.iteration % config.save_every == 0 or trainer.iteration == config.num_iterations:
                write_result(file, result)
                trainer.save(state)
    bar.close()


def run_ppo(config: PPOConfig) -> Path:
    """Train a policy, or resume its training; return the checkpoint directory."""
    game, out = find_game(config.game), config.out / "last"
    initial = checkpoint.read_training(config.init)
    require_same_arguments(config.out, to_json(config))
    vlm = checkpoint.load(config.init)
    with make_envs(game, config.num_envs, MACHADO2018) as envs:
        train(PPOTrainer(vlm, envs, config), config.out)
    games = sorted({*(initial.get("games") or []), game.name})
    checkpoint.save(vlm, out, {**run_metadata(to_json(config)), "games": games, "started_from": initial})
    return out


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    config = tyro.cli(PPOConfig, args=argv, description=__doc__)
    print(f"the policy is in {run_ppo(config)}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
