"""What a training keeps in memory beside its activations: weights, gradients and optimizer states."""

from dataclasses import dataclass

import torch
from torch import nn

from vlm.model import PixelVLM
from vlm.training.config import TrainConfig
from vlm.training.learning_rates import module_learning_rates, role_parameters
from vlm.training.optimizers import hidden_matrices

FLOAT32 = torch.float32.itemsize
ADAMW_STATES, MUON_STATES = 2, 1  # values that each keeps of a parameter
NF4 = 1 / 2 + 1 / 64 + 4 / (64 * 256)  # bytes of a weight, with its share of the scales and of the scales' scales


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training without its activations, of each process."""

    weights: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.weights + self.gradients + self.optimizer


def training_memory(vlm: PixelVLM, config: TrainConfig, shares: int = 1) -> TrainingMemory:
    """Return what a configuration's training of a model takes; the model may be on the meta device.

    `shares` is the number of processes of --fsdp, of which each holds its part. Without, each holds everything.
    """
    optimizer, rates, matrices = config.optimizer, module_learning_rates(config.optimizer), set[int]()
    if optimizer.optimizer == "muon" and shares == 1:
        matrices = hidden_matrices(vlm)
    linear = [module for module in vlm.decoder.modules() if isinstance(module, nn.Linear)]
    packed = {id(module.weight) for module in linear} if config.model.quantize == "nf4" else set()
    weights = gradients = states = 0.0
    for role, parameters in role_parameters(vlm).items():
        trains = getattr(rates, role) is not None and (role != "decoder" or optimizer.decoder == "full")
        for parameter in (one for _, one in parameters):
            size, frozen_size = parameter.numel(), NF4 if id(parameter) in packed else config.model.torch_dtype.itemsize
            weights += size * (FLOAT32 if trains else frozen_size)
            if trains:
                gradients += size * FLOAT32
                states += size * FLOAT32 * (MUON_STATES if id(parameter) in matrices else ADAMW_STATES)
    if optimizer.decoder == "lora":
        added = FLOAT32 * sum(optimizer.lora_rank * sum(module.weight.shape) for module in linear)
        weights, gradients, states = weights + added, gradients + added, states + ADAMW_STATES * added
    return TrainingMemory(weights / shares, gradients / shares, states / shares)
