"""Policy gradients on text answers: what earned more than was expected becomes more probable to be said.

PPO (Schulman et al. 2017): stretches of play over many lanes, advantages by GAE (Schulman et al. 2016), a clipped
ratio of probabilities over several passes. An action is a text answer: its log-probability is the sum over its tokens
and its end, relative to all legal answers (`vlm.decoding.candidate_scoring`), as in play. The value is read off the decoder's state at
the prompt's end by a linear layer that is saved beside the model. What is learnt is held near the policy it began as
by the exact divergence over the legal answers (Jaques et al. 2017).

A run saves itself every few stretches: weights, optimizer, and where every lane stands (`agents.rollout_buffer`), and a
run that was killed goes on from there to the same numbers.
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from agents.rollout_buffer import REWARD_TRANSFORMS, PolicyOutput, RolloutBatch, RolloutCollector
from common.errors import UserError
from common.files import atomic_directory
from common.results import new_result, read_result, write_result
from envs.atari import GameEnvs
from vlm import checkpoint
from vlm.decoding.candidate_scoring import CandidateScorer
from vlm.model import PixelVLM
from vlm.precision import autocast
from vlm.prompts import action_prompt
from vlm.training.learning_rates import ModuleLearningRates, parameter_groups

STATE, RESULT = "state", "improve.json"
LONGEST_STEP = 0.5  # the norm that gradients are cut to


@dataclass(kw_only=True)
class PPOConfig:
    """The settings of PPO."""

    stretches: int = 200
    """Stretches of play to learn from."""
    lanes: int = 8
    """Games played in step."""
    horizon: int = 32
    """Decisions of a stretch, in every lane."""
    passes: int = 3
    """Passes over a stretch."""
    minibatch: int = 64
    """Decisions an optimizer step."""
    discount: float = 0.99
    """Of rewards, a decision."""
    smoothing: float = 0.95
    """GAE's lambda."""
    clip: float = 0.1
    """How far the ratio of probabilities may move."""
    entropy: float = 0.01
    """Weight of the entropy of the answers."""
    near: float = 0.1
    """Weight of the divergence from the policy it began as; 0 lets it go."""
    worth: float = 0.5
    """Weight of the value's squared error."""
    rewards: str = "sign"
    """How rewards are taken: sign, root or raw."""
    save_stretches: int = 10
    """Stretches between savings."""

    def check_ppo(self) -> None:
        """Refuse numbers of no use."""
        for name in ("stretches", "lanes", "horizon", "passes", "minibatch", "save_stretches"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        for name in ("discount", "smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} must be from 0 to 1, got {getattr(self, name)}")
        if self.rewards not in REWARD_TRANSFORMS:
            raise UserError(f"expected --rewards {', '.join(REWARD_TRANSFORMS)}, got {self.rewards!r}")


class TextPolicy(nn.Module):
    """A VLM that answers with an action in text, and a value read off its state."""

    def __init__(self, vlm: PixelVLM, title: str, names: tuple[str, ...]):
        super().__init__()
        self.model, self.vlm = vlm.model, vlm
        self.scorer = CandidateScorer(vlm, action_prompt(title, names), names)
        self.value = nn.Linear(vlm.model.get_input_embeddings().embedding_dim, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, stacks: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities float32[B, A] among the legal answers, and values float32[B]."""
        log_probs, state = self.scorer.forward(self.vlm.encode_images(self.vlm.preprocess(stacks)))
        return log_probs.log_softmax(-1), self.value(state.float())[:, 0]


def advantages(
    stretch: RolloutBatch, rewards: np.ndarray, last: np.ndarray, settings: PPOConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Return GAE's advantages and the returns that values are to meet, float32[T, N] each.

    Args:
        stretch: with `value` among what the policy told.
        rewards: float[T, N], as they are taken.
        last: float[N], the values of what is seen at the stretch's end.
        settings: with discount and smoothing.
    """
    values = stretch.told["value"]
    found, following, coming = np.zeros_like(values), np.zeros_like(last), last
    for step in range(len(values) - 1, -1, -1):
        goes_on = 1.0 - stretch.ended[step]
        surprise = rewards[step] + settings.discount * coming * goes_on - values[step]
        following = surprise + settings.discount * settings.smoothing * goes_on * following
        found[step], coming = following, values[step]
    return found, found + values


def ppo_losses(log_probs: Tensor, values: Tensor, batch: dict[str, Tensor], settings: PPOConfig) -> dict[str, Tensor]:
    """Return `loss` and its parts, for decisions with what was told of them when they were made."""
    own = log_probs.gather(1, batch["action"][:, None])[:, 0]
    ratio = (own - batch["before"].gather(1, batch["action"][:, None])[:, 0]).exp()
    gain = batch["advantage"]
    clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
    policy = -torch.minimum(ratio * gain, clipped * gain).mean()
    value = functional.mse_loss(values, batch["return"])
    entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
    apart = (log_probs.exp() * (log_probs - batch["reference"])).sum(-1).mean()
    loss = policy + settings.worth * value - settings.entropy * entropy + settings.near * apart
    parts = {"policy": policy, "value": value, "entropy": entropy, "apart": apart}
    return {"loss": loss, **{name: part.detach() for name, part in parts.items()}}


class PPOTrainer:
    """A policy, its optimizer and the lanes it plays in.

    Args:
        vlm: the policy's model; it is trained.
        envs: lanes of the game.
        settings: of PPO.
        rates: the learning rates of encoder (0: frozen) and decoder.
        seed: of all that is drawn.
        first: the seed of the first games; see `RolloutCollector`.
        bf16: compute in bfloat16 where that is safe.
    """

    def __init__(
        self,
        vlm: PixelVLM,
        envs: GameEnvs,
        settings: PPOConfig,
        rates: tuple[float, float],
        seed: int = 0,
        first: int = 600,
        bf16: bool | None = False,
    ):
        self.settings, self.seed, self.vlm = settings, seed, vlm
        self.bf16 = bf16
        names = tuple(envs.action_names)
        self.reference = TextPolicy(copy.deepcopy(vlm), envs.game.title, names).eval().requires_grad_(False)
        self.policy = TextPolicy(vlm, envs.game.title, names)
        plan = ModuleLearningRates(rates[0] or None, rates[0] or rates[1], rates[1])
        groups = [*parameter_groups(vlm, plan, 0.0), {"params": list(self.policy.value.parameters()), "lr": rates[1]}]
        self.rates = [group["lr"] for group in groups]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        self.players = RolloutCollector(envs, vlm.history, first)
        self.done = 0

    def learn(self) -> dict[str, Any]:
        """Play a stretch and learn from it; return its figures."""
        settings, device = self.settings, self.vlm.device
        self.policy.eval()
        stretch = self.players.play(self._decide, settings.horizon)
        with torch.no_grad(), self._autocast():
            last = self.policy(torch.from_numpy(stretch.after).to(device))[1].float().cpu().numpy()
        rewards = REWARD_TRANSFORMS[settings.rewards](stretch.rewards).astype(np.float32)
        gains, returns = advantages(stretch, rewards, last, settings)
        data = {
            "action": stretch.actions,
            "before": stretch.told["shares"],
            "reference": stretch.told["reference"],
            "advantage": (gains - gains.mean()) / (gains.std() + 1e-8),
            "return": returns,
        }
        flat = {name: torch.from_numpy(value).flatten(0, 1).to(device) for name, value in data.items()}
        stacks = torch.from_numpy(stretch.stacks).flatten(0, 1)
        figures = self._passes(stacks, flat)
        self.done += 1
        scores = {"scores": stretch.scores, "reward": float(rewards.mean())}
        return {"stretch": self.done, **scores, **figures}

    def _autocast(self) -> torch.autocast:
        return autocast(self.vlm.device, self.bf16)

    @torch.no_grad()
    def _decide(self, stacks: np.ndarray, number: int) -> PolicyOutput:
        with self._autocast():
            seen = torch.from_numpy(stacks).to(self.vlm.device)
            shares, values = self.policy(seen)
            reference, _ = self.reference(seen)
        shares = shares.float().cpu()
        rng = np.random.default_rng([self.seed, self.done, number])
        probabilities = shares.double().softmax(-1).numpy()
        actions = np.array([rng.choice(len(p), p=p) for p in probabilities])
        told = {
            "shares": shares.numpy(),
            "reference": reference.float().cpu().numpy(),
            "value": values.float().cpu().numpy(),
        }
        return PolicyOutput(actions, told)

    def _passes(self, stacks: Tensor, data: dict[str, Tensor]) -> dict[str, float]:
        left = 1 - self.done / self.settings.stretches  # rates fall evenly to nothing
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * left
        noted: list[dict[str, float]] = []
        for number in range(self.settings.passes):
            order = np.random.default_rng([self.seed, self.done, number, 1]).permutation(len(stacks))
            for rows in torch.from_numpy(order).split(self.settings.minibatch):
                with self._autocast():
                    log_probs, values = self.policy(stacks[rows].to(self.vlm.device))
                batch = {name: value[rows] for name, value in data.items()}
                out = ppo_losses(log_probs.float(), values.float(), batch, self.settings)
                self.optimizer.zero_grad()
                out["loss"].backward()
                nn.utils.clip_grad_norm_(self.policy.parameters(), LONGEST_STEP)
                self.optimizer.step()
                noted.append({name: float(value.detach()) for name, value in out.items()})
        return {name: float(np.mean([one[name] for one in noted])) for name in noted[0]}

    def save(self, directory: Path) -> None:
        """Write everything that is needed to go on; an old state is replaced when the new one is whole."""
        with atomic_directory(directory) as temporary:
            state = {"policy": self.policy.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(state, temporary / "learnt.pt")
            (temporary / "players.json").write_text(json.dumps({"done": self.done, **self.players.state()}))

    def restore(self, directory: Path) -> None:
        """Go on from a state of `save`."""
        learnt = torch.load(directory / "learnt.pt", weights_only=True, map_location=self.vlm.device)
        self.policy.load_state_dict(learnt["policy"])
        self.optimizer.load_state_dict(learnt["optimizer"])
        state = json.loads((directory / "players.json").read_text())
        self.done = state["done"]
        self.players.restore(state)


def run_ppo(learner: PPOTrainer, out: Path, training: dict[str, Any]) -> Path:
    """Learn from all stretches, or from those that are left; return the checkpoint."""
    settings, place, file = learner.settings, out / STATE, out / RESULT
    out.mkdir(parents=True, exist_ok=True)
    result = new_result("improve", learner.players.envs.protocol.to_dict(), [learner.seed])
    if place.is_dir():
        learner.restore(place)
        result = read_result(file)
        result["rows"] = [row for row in result["rows"] if row["stretch"] <= learner.done]
    bar = tqdm(total=settings.stretches, initial=learner.done, desc="improve", unit="stretch")
    with SummaryWriter(str(out)) as writer:
        while learner.done < settings.stretches:
            row = learner.learn()
            result["rows"].append(row)
            for name, value in row.items():
                if isinstance(value, float):
                    writer.add_scalar(f"ppo/{name}", value, row["stretch"])
            recent = [score for one in result["rows"][-20:] for score in one["scores"]]
            bar.update()
            bar.set_postfix(score=f"{np.mean(recent):.0f}" if recent else "-", apart=f"{row['apart']:.3f}")
            if learner.done % settings.save_stretches == 0 or learner.done == settings.stretches:
                write_result(file, result)
                learner.save(place)
    bar.close()
    checkpoint.save(learner.vlm, out / "last", training)
    return out / "last"
