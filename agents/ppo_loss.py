"""Advantages and losses of PPO (Schulman et al. 2017), with a penalty on the divergence from a reference policy."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from agents.ppo_config import PPOConfig


def compute_advantages(
    values: np.ndarray, rewards: np.ndarray, dones: np.ndarray, next_values: np.ndarray, gamma: float, gae_lambda: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the advantages (GAE, Schulman et al. 2016) and the targets of the values, float32[T, N] each.

    `values`, `rewards` and `dones` are [T, N]; `next_values` float32[N] are of the observations after the last step.
    """
    advantages, last_gae, next_value = np.zeros_like(values), np.zeros_like(next_values), next_values
    for step in range(len(values) - 1, -1, -1):
        nonterminal = 1.0 - dones[step]
        delta = rewards[step] + gamma * next_value * nonterminal - values[step]
        last_gae = delta + gamma * gae_lambda * nonterminal * last_gae
        advantages[step], next_value = last_gae, values[step]
    return advantages, advantages + values


@dataclass(frozen=True)
class PPOBatch:
    """B steps to learn from."""

    actions: Tensor  # int64[B]
    old_log_probs: Tensor  # float32[B, A], of the policy that acted
    reference_log_probs: Tensor  # float32[B, A], of the reference policy, or of the one that acted if there is none
    advantages: Tensor  # float32[B]
    returns: Tensor  # float32[B]

    def __getitem__(self, rows: Tensor) -> "PPOBatch":
        return PPOBatch(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def ppo_losses(log_probs: Tensor, values: Tensor, batch: PPOBatch, config: PPOConfig) -> dict[str, Tensor]:
    """Return `loss`, which carries the gradient, and its parts.

    `log_probs` float32[B, A] and `values` float32[B] are of the policy in training. The divergence from the reference
    policy is exact over all actions (Jaques et al. 2017).
    """
    actions = batch.actions[:, None]
    ratio = (log_probs.gather(1, actions)[:, 0] - batch.old_log_probs.gather(1, actions)[:, 0]).exp()
    clipped_ratio = ratio.clamp(1 - config.clip_coef, 1 + config.clip_coef)
    policy_loss = -torch.minimum(ratio * batch.advantages, clipped_ratio * batch.advantages).mean()
    value_loss = functional.mse_loss(values, batch.returns)
    entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
    kl = (log_probs.exp() * (log_probs - batch.reference_log_probs)).sum(-1).mean()
    loss = policy_loss + config.vf_coef * value_loss - config.ent_coef * entropy + config.kl_coef * kl
    parts = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy, "kl": kl}
    return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}
