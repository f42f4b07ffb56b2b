"""A mixture of objectives in one training: each step belongs to one, drawn by weight from seed and step alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import Dataset

from common.errors import UserError
from vlm.training.objective import Batch, Losses, Objective


@dataclass(frozen=True)
class MixtureBatch(Batch):
    """The batch of one step and the number of the objective that it belongs to."""

    objective: int
    batch: Batch


class Mixture:
    """Objectives over one model by name, which prefixes their metrics where there are several.

    weights: the share of the steps that each takes, relative to their sum; equal by default.
    """

    def __init__(self, objectives: Mapping[str, Objective], weights: Sequence[float] | None = None):
        weights = weights or [1.0] * len(objectives)
        if not objectives or len(weights) != len(objectives) or min(weights) <= 0:
            raise UserError(f"expected a positive weight for each of {len(objectives)} objectives, got {weights}")
        self.names, self.objectives = tuple(objectives), tuple(objectives.values())
        self.vlm: Any = self.objectives[0].vlm
        if any(objective.vlm is not self.vlm for objective in self.objectives):
            raise UserError("expected objectives over one model")
        self.probabilities = np.array(weights) / sum(weights)

    def auxiliary(self) -> nn.ModuleDict:
        """Return the modules that train beside the model, of all objectives, by name."""
        return nn.ModuleDict({name: module for one in self.objectives for name, module in one.modules().items()})

    def loss(self, batch: MixtureBatch) -> Losses:
        """Return the losses of a batch, by its objective; metrics of several objectives carry their name."""
        objective = self.objectives[batch.objective]
        losses = objective.loss(objective.encode(batch.batch), batch.batch)
        if len(self.objectives) == 1:
            return losses
        name = self.names[batch.objective]
        metrics = {"loss": losses.loss.detach(), **losses.metrics}
        return Losses(losses.loss, {f"{name}/{metric}": value for metric, value in metrics.items()})


class MixtureDataset(Dataset):
    """Whole batches by step, each drawn from the seed and the step alone, so that a resumed run sees the same ones."""

    def __init__(self, mixture: Mixture, steps: int, seed: int):
        self.samplers = [(one.sampler, one.stream) for one in mixture.objectives]  # without the model: workers copy it
        self.probabilities, self.steps, self.seed = mixture.probabilities, steps, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> MixtureBatch:
        which = 0
        if (count := len(self.samplers)) > 1:
            which = int(np.random.default_rng([self.seed, step, count]).choice(count, p=self.probabilities))
        sampler, stream = self.samplers[which]
        return MixtureBatch(which, sampler(step, np.random.default_rng([self.seed, step, *stream])))
