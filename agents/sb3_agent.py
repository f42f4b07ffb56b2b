"""A stable-baselines3 policy as an agent: four small gray frames in, an action index out.

`shrink` turns a true frame into the 84 x 84 gray image of Mnih et al. 2015, in training (`agents.experts.train_sb3`)
and in play. An archive is read for its weights only: nothing in it is unpickled.
"""

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.qrdqn.policies import CnnPolicy as QrdqnPolicy
from stable_baselines3.common.policies import ActorCriticCnnPolicy, BasePolicy
from stable_baselines3.dqn.policies import CnnPolicy as DqnPolicy
from torch.nn import functional

from agents.agent import Actions
from agents.frame_stack import FrameStack
from common.errors import UserError

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
    path = Path(path)
    if not path.is_file():
        raise UserError(f"expected a stable-baselines3 archive (.zip), got {path}, which is not a file")
    try:
        with zipfile.ZipFile(path) as archive:
            module = json.loads(archive.read("data"))["policy_class"]["__module__"]
            weights = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True, map_location="cpu")
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is not a stable-baselines3 archive: {error}") from error
    if module not in POLICIES:
        raise UserError(f"{path}: expected a CNN policy of {', '.join(POLICIES)}; got one of {module}")
    policy = POLICIES[module](OBSERVATIONS, spaces.Discrete(actions), lambda _: 0.0)
    try:
        policy.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path} was not trained for {actions} actions on {STACK} frames: {first}") from error
    policy.set_training_mode(False)
    return policy


class Sb3Agent:
    """Plays an SB3 or sb3-contrib archive greedily."""

    name = "sb3"

    def __init__(self, path: Path, action_names: Sequence[str]):
        self.action_names = tuple(action_names)
        self._policy = read_policy(path, len(self.action_names))
        self._frame_stack = FrameStack(STACK)

    def reset(self, seeds: Sequence[int | None]) -> None:
        """See `agents.agent.Agent`."""
        self._frame_stack.reset(np.array([seed is not None for seed in seeds]))

    @torch.inference_mode()
    def act(self, frames: np.ndarray) -> Actions:
        """Return the greedy action of every environment."""
        stacks = self._frame_stack.add(shrink(frames)[..., None])[..., 0]  # [n, 4, 84, 84]
        indices, _ = self._policy.predict(stacks, deterministic=True)
        return Actions.legal(np.asarray(indices), self.action_names)
