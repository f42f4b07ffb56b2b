"""Which parts of a model train, at which learning rate."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlm.model import PixelModel, PixelVLM
from vlm.training.config import OptimizerConfig


@dataclass(frozen=True)
class ModuleLearningRates:
    """The peak learning rate of each role; None freezes it. Of a decoder with LoRA adapters only they train."""

    encoder: float | None
    connector: float | None
    decoder: float | None


def module_learning_rates(config: OptimizerConfig) -> ModuleLearningRates:
    """Return the learning rates that a configuration asks for."""
    encoder, connector = (
        config.learning_rate if rate is None else rate or None
        for rate in (config.encoder_learning_rate, config.connector_learning_rate)
    )
    return ModuleLearningRates(encoder, connector, None if config.decoder == "frozen" else config.learning_rate)


def role_parameters(vlm: PixelModel) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Return the named parameters of each role; every parameter has exactly one. What is no VLM is all encoder."""
    if not isinstance(vlm, PixelVLM):
        return {"encoder": list(vlm.model.named_parameters())}
    encoder, connector = ({id(p) for p in module.parameters()} for module in (vlm.encoder, vlm.connector))
    connector |= {id(p) for p in vlm.patch_expansion.parameters()} if vlm.patch_expansion else set()
    found: dict[str, list[tuple[str, nn.Parameter]]] = {"encoder": [], "connector": [], "decoder": []}
    for name, p in vlm.model.named_parameters():
        found["connector" if id(p) in connector else "encoder" if id(p) in encoder else "decoder"].append((name, p))
    return found


def parameter_groups(vlm: PixelModel, rates: ModuleLearningRates, weight_decay: float) -> list[dict[str, Any]]:
    """Freeze what has no rate; return optimizer groups, without decay on vectors (norms and biases)."""
    groups = []
    for role, parameters in role_parameters(vlm).items():
        rate = getattr(rates, role)
        adapters = [(name, parameter) for name, parameter in parameters if "lora_" in name]
        for name, parameter in parameters:
            parameter.requires_grad_(rate is not None and (not adapters or "lora_" in name))
        if rate is None:
            continue
        trained = [parameter for _, parameter in adapters or parameters]
        for is_matrix in (True, False):
            own = [parameter for parameter in trained if (parameter.ndim > 1) == is_matrix]
            groups.append({"params": own, "lr": rate, "weight_decay": is_matrix * weight_decay, "role": role})
    return groups


def auxiliary_group(modules: nn.Module, config: OptimizerConfig, weight_decay: float) -> list[dict[str, Any]]:
    """Return the optimizer group of the modules that train beside the model; none where there are none."""
    parameters = list(modules.parameters())
    rate = config.auxiliary_learning_rate or config.encoder_learning_rate or config.learning_rate
    return [{"params": parameters, "lr": rate, "weight_decay": weight_decay, "role": "auxiliary"}] if parameters else []


def set_dtypes(model: nn.Module, dtype: torch.dtype) -> None:
    """Keep what trains in float32, in which small steps are not lost, and the other parameters in another type."""
    for parameter in model.parameters():
        if parameter.is_floating_point():  # four bits come as whole numbers
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else dtype)
