"""The configuration of PPO."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.command import require_at_least
from common.errors import UserError


@dataclass(kw_only=True)
class PPOConfig:
    """Improve a text policy by PPO."""

    game: str
    """The game, in any reasonable spelling."""
    init: Path
    """The checkpoint of the policy to improve, which is also the reference of the divergence penalty."""
    out: Path
    """The run directory: TensorBoard, result JSON, training state and the checkpoint `last`."""
    image_tokens: int | None = None
    """With a model of transformers as --init, the most tokens that an image may take; by default one tile."""
    history: int | None = None
    """With a model of transformers as --init, the frames that it sees, each as an image; by default as before, or 1."""
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
    """Weight of the divergence from the initial policy; 0 turns the penalty off, which takes less time."""
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
        require_at_least(self, 1, "num_iterations", "num_envs", "num_steps", "num_epochs")
        require_at_least(self, 1, "minibatch_size", "save_every", "image_tokens", "history")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name.replace('_', '-')} must be from 0 to 1, got {getattr(self, name)}")
