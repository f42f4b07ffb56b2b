"""Advantages and losses of PPO (Schulman et al. 2017), with a penalty on the divergence from a reference policy."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def compute_advantages(
    values: np.ndarray,
    rewards: np.ndarray,
    dones: np.ndarray,
    next_values: np.ndarray,
    gamma: float,
    gae_lambda: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the advantages (GAE, Schulman et al. 2016) and the targets of the values, float32[T, N] each.

    Args:
        values: float32[T, N], of the observations before each step.
        rewards: float32[T, N].
        dones: bool[T, N], where an episode ended.
        next_values: float32[N], of the observations after the last step.
        gamma: discount per step.
        gae_lambda: decay of the sum of temporal differences.
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
    """B steps to learn from.

    actions: int64[B]; old_log_probs and reference_log_probs: float32[B, A], of the policy that acted and of the
    reference policy; advantages, returns: float32[B].
    """

    actions: Tensor
    old_log_probs: Tensor
    reference_log_probs: Tensor
    advantages: Tensor
    returns: Tensor

    def __getitem__(self, rows: Tensor) -> "PPOBatch":
        return PPOBatch(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def ppo_losses(
    log_probs: Tensor,
    values: Tensor,
    batch: PPOBatch,
    *,
    clip_coef: float,
    ent_coef: float,
    kl_coef: float,
    vf_coef: float,
) -> dict[str, Tensor]:
    """Return `loss`, which carries the gradient, and its parts.

    Args:
        log_probs: float32[B, A], of all actions under the policy in training.
        values: float32[B], of the same.
        batch: the steps.
        clip_coef: largest useful change of an action's probability ratio.
        ent_coef, kl_coef, vf_coef: weights of the entropy, of the divergence from the reference policy, exact over all
            actions (Jaques et al. 2017), and of the values' squared error.
    """
    actions = batch.actions[:, None]
    ratio = (log_probs.gather(1, actions)[:, 0] - batch.old_log_probs.gather(1, actions)[:, 0]).exp()
    clipped_ratio = ratio.clamp(1 - clip_coef, 1 + clip_coef)
    policy_loss = -torch.minimum(ratio * batch.advantages, clipped_ratio * batch.advantages).mean()
    value_loss = functional.mse_loss(values, batch.returns)
    entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
    kl = (log_probs.exp() * (log_probs - batch.reference_log_probs)).sum(-1).mean()
    loss = policy_loss + vf_coef * value_loss - ent_coef * entropy + kl_coef * kl
    parts = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy, "kl": kl}
    return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}
