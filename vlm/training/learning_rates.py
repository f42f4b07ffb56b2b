"""Which parts of a model learn, how fast, and the proof of which tensors moved."""

from dataclasses import dataclass

from torch import Tensor, nn

from vlm.model import PixelVLM

ROLES = ("encoder", "connector", "decoder")


@dataclass(frozen=True)
class ModuleLearningRates:
    """The learning rate of each role; None keeps it frozen. The output head belongs to the decoder.

    A decoder with adapters (`vlm.training.lora`) trains these alone.
    """

    encoder: float | None
    connector: float | None
    decoder: float | None


def role_parameters(vlm: PixelVLM) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Return the named parameters of each role; every parameter of the model is in exactly one."""
    encoder = {id(parameter) for parameter in vlm.encoder.parameters()}
    connector = {id(parameter) for parameter in vlm.connector.parameters()}
    found: dict[str, list[tuple[str, nn.Parameter]]] = {role: [] for role in ROLES}
    for name, parameter in vlm.model.named_parameters():
        role = "encoder" if id(parameter) in encoder else "connector" if id(parameter) in connector else "decoder"
        found[role].append((name, parameter))
    return found


def parameter_groups(vlm: PixelVLM, plan: ModuleLearningRates, weight_decay: float) -> list[dict]:
    """Freeze what the plan freezes; return optimizer groups, with no decay on vectors (norms and biases)."""
    groups = []
    for role, parameters in role_parameters(vlm).items():
        rate = getattr(plan, role)
        adapters = [(name, parameter) for name, parameter in parameters if "lora_" in name]
        for _, parameter in parameters:
            parameter.requires_grad_(rate is not None and not adapters)
        if rate is None:
            continue
        for _, parameter in adapters:
            parameter.requires_grad_(True)
        parameters = adapters or parameters
        matrices = [parameter for _, parameter in parameters if parameter.ndim > 1]
        vectors = [parameter for _, parameter in parameters if parameter.ndim <= 1]
        groups.append({"params": matrices, "lr": rate, "weight_decay": weight_decay, "role": role})
        groups.append({"params": vectors, "lr": rate, "weight_decay": 0.0, "role": role})
    return groups


def snapshot(vlm: PixelVLM) -> dict[str, Tensor]:
    """Return a copy of every parameter, to compare with later."""
    return {name: parameter.detach().clone() for name, parameter in vlm.model.named_parameters()}


def parameter_update_report(before: dict[str, Tensor], vlm: PixelVLM) -> dict[str, dict[str, float]]:
    """Tell, for each role, how many tensors there are, how many moved since `snapshot`, and the largest change."""
    report = {}
    for role, parameters in role_parameters(vlm).items():
        changes = [float((p.detach() - before[name].to(p.device)).abs().max()) for name, p in parameters]
        report[role] = {
            "tensors": len(changes),
            "changed": sum(change > 0 for change in changes),
            "largest_change": max(changes, default=0.0),
        }
    return report
