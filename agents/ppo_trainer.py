"""PPO's policy, its optimizer and its environments: one iteration is a rollout and the optimizer steps on it."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents.ppo_config import PPOConfig
from agents.ppo_loss import PPOBatch, compute_advantages, ppo_losses
from agents.rollout_buffer import REWARD_TRANSFORMS, PolicyOutput, RolloutBatch, RolloutCollector
from common.errors import UserError
from common.files import atomic_directory
from envs.atari import GameEnvs
from vlm.decoding.candidate_scoring import CandidateScorer
from vlm.model import PixelVLM
from vlm.precision import autocast
from vlm.training.learning_rates import ModuleLearningRates, parameter_groups

MAX_GRAD_NORM = 0.5


class TextPolicy(nn.Module):
    """A VLM's distribution over the legal text answers, and a value of the observation."""

    def __init__(self, vlm: PixelVLM, title: str, action_names: tuple[str, ...]):
        super().__init__()
        self.model, self.vlm = vlm.model, vlm
        self.scorer = CandidateScorer(vlm, vlm.action_prompt(title, action_names), action_names)
        self.value = nn.Linear(vlm.model.get_input_embeddings().embedding_dim, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities float32[B, A] and values float32[B] of obs uint8[B, history, H, W, 3]."""
        log_probs, state = self.scorer.forward(self.vlm.encode_images(self.vlm.preprocess(obs)))
        return log_probs.log_softmax(-1), self.value(state.float())[:, 0]


class PPOTrainer:
    """Trains a model, in place, in environments of one game."""

    def __init__(self, vlm: PixelVLM, envs: GameEnvs, config: PPOConfig):
        self.vlm, self.config, self.iteration = vlm, config, 0
        title, names = envs.game.title, tuple(envs.action_names)
        self.reference: TextPolicy | None = None  # which no penalty needs
        if config.kl_coef:
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
        self.policy.eval()
        rollout = self.collector.collect(self._act, self.config.num_steps)
        rewards = REWARD_TRANSFORMS[self.config.reward_transform](rollout.rewards).astype(np.float32)
        losses = self._optimize(torch.from_numpy(rollout.obs).flatten(0, 1), self._batch(rollout, rewards))
        self.iteration += 1
        mean_rewards = {"reward": float(rewards.mean()), "raw_reward": float(rollout.rewards.mean())}
        return {"iteration": self.iteration, "scores": rollout.scores, **mean_rewards, **losses}

    @torch.no_grad()
    def _act(self, obs: np.ndarray, step: int) -> PolicyOutput:
        """Sample an action in every environment."""
        with autocast(self.vlm.device, self.config.bf16):
            on_device = torch.from_numpy(obs).to(self.vlm.device)
            log_probs, values = self.policy(on_device)
            reference = self.reference(on_device)[0] if self.reference else log_probs
        log_probs = log_probs.float().cpu()
        rng = np.random.default_rng([self.config.seed, self.iteration, step])
        actions = np.array([rng.choice(len(p), p=p) for p in log_probs.double().softmax(-1).numpy()])
        extras = {"log_probs": log_probs.numpy(), "reference": reference.float().cpu().numpy()}
        return PolicyOutput(actions, {**extras, "value": values.float().cpu().numpy()})

    @torch.no_grad()
    def _batch(self, rollout: RolloutBatch, rewards: np.ndarray) -> PPOBatch:
        """Return the rollout's steps with normalized advantages, environments flattened."""
        config, device = self.config, self.vlm.device
        with autocast(device, config.bf16):
            next_values = self.policy(torch.from_numpy(rollout.next_obs).to(device))[1].float().cpu().numpy()
        advantages, returns = compute_advantages(
            rollout.extras["value"], rewards, rollout.dones, next_values, config.gamma, config.gae_lambda
        )
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        columns = (rollout.actions, rollout.extras["log_probs"], rollout.extras["reference"], advantages, returns)
        return PPOBatch(*(torch.from_numpy(column).flatten(0, 1).to(device) for column in columns))

    def _optimize(self, obs: Tensor, batch: PPOBatch) -> dict[str, float]:
        """Take the optimizer steps of a rollout; return the mean losses."""
        config, device = self.config, self.vlm.device
        for group, rate in zip(self.optimizer.param_groups, self.initial_rates, strict=True):
            group["lr"] = rate * (1 - self.iteration / config.num_iterations)
        history: list[dict[str, float]] = []
        for epoch in range(config.num_epochs):
            order = np.random.default_rng([config.seed, self.iteration, epoch, 1]).permutation(len(obs))
            for rows in torch.from_numpy(order).split(config.minibatch_size):
                with autocast(device, config.bf16):
                    log_probs, values = self.policy(obs[rows].to(device))
                losses = ppo_losses(log_probs.float(), values.float(), batch[rows], config)
                self.optimizer.zero_grad()
                losses["loss"].backward()
                norm = nn.utils.clip_grad_norm_(self.policy.parameters(), MAX_GRAD_NORM)
                self._require_finite(float(losses["loss"].detach()), float(norm))
                self.optimizer.step()
                history.append({name: float(value.detach()) for name, value in losses.items()})
        return {name: float(np.mean([losses[name] for losses in history])) for name in history[0]}

    def _require_finite(self, loss: float, gradient_norm: float) -> None:
        """Refuse a step that would ruin the weights, before it is taken."""
        if not math.isfinite(loss) or not math.isfinite(gradient_norm):
            raise UserError(
                f"iteration {self.iteration + 1}: expected a finite loss and gradient, got {loss} and {gradient_norm}; "
                "the last good state is kept; choose a lower --learning-rate and another --out"
            )

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
