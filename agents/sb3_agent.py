"""A stable-baselines3 policy as an agent: four small gray frames in, an action index out.

`shrink` turns a true frame into the 84 x 84 gray image of Mnih et al. 2015, in training (`agents.experts.train_sb3`)
and in play. An archive is read as data (`agents.sb3_archive`): nothing in it is unpickled.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.qrdqn.policies import CnnPolicy as QrdqnPolicy
from stable_baselines3.common.policies import ActorCriticCnnPolicy, BasePolicy
from stable_baselines3.dqn.policies import CnnPolicy as DqnPolicy
from torch import Tensor
from torch.nn import functional

from agents.agent import Actions, Rngs, reset_rngs
from agents.frame_stack import FrameStack
from agents.sampling import choose
from agents.sb3_archive import read_archive
from common.errors import UserError
from vlm.checkpoint_files import require_finite

SIDE, STACK = 84, 4
GRAY = (0.299, 0.587, 0.114)
OBSERVATIONS = spaces.Box(0, 255, (STACK, SIDE, SIDE), np.uint8)
POLICIES: dict[str, Callable[..., BasePolicy]] = {
    "sb3_contrib.qrdqn.policies": QrdqnPolicy,
    "stable_baselines3.dqn.policies": DqnPolicy,
    "stable_baselines3.common.policies": ActorCriticCnnPolicy,
}


def shrink(frames: np.ndarray) -> np.ndarray:
    """Return frames uint8[n, H, W, 3] as gray uint8[n, 84, 84], each pixel the mean of its area."""
    gray = torch.from_numpy(np.ascontiguousarray(frames)).float() @ torch.tensor(GRAY)  # [n, H, W]
    small = functional.interpolate(gray[:, None], size=(SIDE, SIDE), mode="area")[:, 0]
    return small.round().byte().numpy()


def read_policy(path: Path, actions: int) -> BasePolicy:
    """Return an archive's policy, built from its weights; `UserError` names what is wrong with the file."""
    archive = read_archive(path := Path(path))
    if archive.module not in POLICIES:
        raise UserError(f"{path}: expected a CNN policy of {', '.join(POLICIES)}; got one of {archive.module}")
    policy_class, arguments, weights = POLICIES[archive.module], archive.arguments, archive.weights
    if policy_class is ActorCriticCnnPolicy:
        arguments, weights = {**arguments, "share_features_extractor": False}, _with_own_extractors(weights)
    try:
        policy = policy_class(OBSERVATIONS, spaces.Discrete(actions), lambda _: 0.0, **arguments)
        policy.load_state_dict(weights)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path} was not trained for {actions} actions on {STACK} frames: {first}") from error
    require_finite(policy.state_dict().items(), path)
    policy.set_training_mode(False)
    return policy


def _with_own_extractors(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return actor-critic weights in which policy and value have an extractor each, as where they do not share one.

    SB3 up to 1.6.2 stored the shared one under one name only. Where they are not shared, loading both into one would
    leave the value's in the policy's place.
    """
    own = "pi_features_extractor.", "vf_features_extractor."
    if any(name.startswith(own) for name in weights):
        return weights
    shared = {name: tensor for name, tensor in weights.items() if name.startswith("features_extractor.")}
    prefixed = {prefix + name.partition(".")[2]: tensor for prefix in own for name, tensor in shared.items()}
    return weights | prefixed


def action_scores(policy: BasePolicy, stacks: np.ndarray) -> np.ndarray:
    """Return float32[n, A] for stacks uint8[n, 4, 84, 84]: an actor's probabilities, or the values of a Q-network."""
    observations, _ = policy.obs_to_tensor(stacks)
    if isinstance(policy, ActorCriticCnnPolicy):
        scores = cast(Any, policy.get_distribution(observations).distribution).probs
    elif isinstance(policy, QrdqnPolicy):
        scores = policy.quantile_net(observations).mean(dim=1)
    else:
        scores = cast(Any, policy).q_net(observations)
    return scores.float().numpy()


class Sb3Agent:
    """Plays an SB3 or sb3-contrib archive: greedily, or at a temperature above 0 by an actor's probabilities."""

    name = "sb3"

    def __init__(self, path: Path, action_names: Sequence[str], temperature: float = 0.0):
        if temperature < 0:
            raise UserError(f"expected a temperature of at least 0, got {temperature}")
        self.action_names, self.temperature = tuple(action_names), temperature
        self._policy = read_policy(path, len(self.action_names))
        if temperature and not isinstance(self._policy, ActorCriticCnnPolicy):
            raise UserError(f"{path} values actions and has no probabilities to draw from: expected temperature 0")
        self._frame_stack = FrameStack(STACK)
        self._rngs: Rngs = []

    def reset(self, seeds: Sequence[int | None]) -> None:
        """See `agents.agent.Agent`."""
        self._rngs = reset_rngs(self._rngs, seeds, 0x5B3)
        self._frame_stack.reset(np.array([seed is not None for seed in seeds]))

    @torch.inference_mode()
    def act(self, frames: np.ndarray) -> Actions:
        """Return an action of every environment, and the scores of all."""
        stacks = self._frame_stack.add(shrink(frames)[..., None])[..., 0]  # [n, 4, 84, 84]
        scores = action_scores(self._policy, stacks)
        return Actions.legal(choose(scores, self.temperature, self._rngs), self.action_names, scores)
