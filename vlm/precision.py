"""Whether to compute in bfloat16: several times as fast where it is native, half as fast where it is emulated."""

import torch
from torch import nn

NATIVE = ("amx_bf16", "avx512_bf16", "bf16")  # its names on x86 and ARM processors


def native_bfloat16(device: torch.device) -> bool:
    """Return whether a device computes bfloat16 natively."""
    if device.type == "cpu":
        return any(torch.cpu.get_capabilities().get(name, False) for name in NATIVE)
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def in_bfloat16(device: torch.device, bf16: bool | None) -> bool:
    """Return whether to compute in bfloat16: as requested, or for None where it is native."""
    return native_bfloat16(device) if bf16 is None else bf16


def required_autocast(model: nn.Module) -> bool | None:
    """Return True for a model with weights in bfloat16, which only autocast computes beside float32; else None."""
    return any(parameter.dtype == torch.bfloat16 for parameter in model.parameters()) or None


def autocast(device: torch.device, bf16: bool | None) -> torch.autocast:
    """Return the autocast context that computes in bfloat16 if `in_bfloat16`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16(device, bf16))
