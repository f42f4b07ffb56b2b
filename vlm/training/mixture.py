"""A mixture of objectives in one training: each step belongs to one, drawn by weight from seed and step alone.

A joint mixture has a batch of every objective in every step and adds their losses. That keeps what a model knows: where
steps take turns, Muon gives a step of the one task the size of a step of the other, however little it has to learn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from common.errors import UserError
from vlm.training.objective import Batch, Losses, Objective, with_images


@dataclass(frozen=True)
class MixtureBatch(Batch):
    """The batches of one step and the numbers of the objectives that they belong to."""

    objectives: tuple[int, ...]
    batches: tuple[Batch, ...]


class Mixture:
    """Objectives over one model by name, which prefixes their metrics where there are several.

    weights: the share of the steps that each takes, relative to their sum; equal by default. In a `joint` mixture, the
    share of its loss in every step.
    """

    def __init__(
        self, objectives: Mapping[str, Objective], weights: Sequence[float] | None = None, joint: bool = False
    ):
        weights = weights or [1.0] * len(objectives)
        if not objectives or len(weights) != len(objectives) or min(weights) <= 0:
            raise UserError(f"expected a positive weight for each of {len(objectives)} objectives, got {weights}")
        self.names, self.objectives = tuple(objectives), tuple(objectives.values())
        self.vlm: Any = self.objectives[0].vlm
        if any(objective.vlm is not self.vlm for objective in self.objectives):
            raise UserError("expected objectives over one model")
        self.probabilities, self.joint = np.array(weights) / sum(weights), joint
        self._attention: str | None = None

    def auxiliary(self) -> nn.ModuleDict:
        """Return the modules that train beside the model, of all objectives, by name."""
        return nn.ModuleDict({name: module for one in self.objectives for name, module in one.modules().items()})

    def loss(self, batch: MixtureBatch) -> Losses:
        """Return the losses of a batch, by its objectives; metrics of several objectives carry their name."""
        if len(self.objectives) == 1:
            return self._objective_losses(0, batch.batches[0])
        total: list[Tensor] = []
        metrics: dict[str, Tensor] = {}
        for which, own in zip(batch.objectives, batch.batches, strict=True):
            losses, name = self._objective_losses(which, own), self.names[which]
            total.append(losses.loss * self.probabilities[which] if self.joint else losses.loss)
            named = {"loss": losses.loss.detach(), **losses.metrics}
            metrics |= {f"{name}/{metric}": value for metric, value in named.items()}
        return Losses(torch.stack(total).sum(), metrics)

    def _objective_losses(self, which: int, batch: Batch) -> Losses:
        """Return an objective's losses, with attention computed in its own way."""
        objective = self.objectives[which]
        if self._attention != objective.attention:
            self.vlm.set_attn_implementation(objective.attention)
            self._attention = objective.attention
        return objective.loss(objective.encode(batch), batch)


class MixtureDataset(Dataset):
    """Whole batches by step, each drawn from the seed and the step alone, so that a resumed run sees the same ones."""

    def __init__(self, mixture: Mixture, steps: int, seed: int):
        self.samplers = [(one.sampler, one.stream) for one in mixture.objectives]  # without the model: workers copy it
        self.probabilities, self.joint = mixture.probabilities, mixture.joint
        self.steps, self.seed, self.frame_processor = steps, seed, mixture.vlm.frame_processor

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> MixtureBatch:
        which = range(len(self.samplers)) if self.joint else (self._drawn(step),)
        parts = (self.samplers[one] for one in which)
        batches = tuple(sampler(step, np.random.default_rng([self.seed, step, *stream])) for sampler, stream in parts)
        batch = MixtureBatch(tuple(which), batches)
        return with_images(batch, self.frame_processor) if self.frame_processor else batch

    def _drawn(self, step: int) -> int:
        """Return the objective of a step."""
        if (count := len(self.samplers)) == 1:
            return 0
        return int(np.random.default_rng([self.seed, step, count]).choice(count, p=self.probabilities))
