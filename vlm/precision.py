"""Whether bfloat16 is worth computing in: several times as fast where it is native, half as fast where it is not."""

import torch

NATIVE = ("amx_bf16", "avx512_bf16", "bf16")  # what x86 and ARM processors call it


def native_bfloat16(device: torch.device) -> bool:
    """Return whether a device computes bfloat16 natively."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in NATIVE)


def in_bfloat16(device: torch.device, bf16: bool | None) -> bool:
    """Return whether to compute in bfloat16: as asked, and where None is asked, where it is native."""
    return native_bfloat16(device) if bf16 is None else bf16


def autocast(device: torch.device, bf16: bool | None) -> torch.autocast:
    """Return a context that computes in bfloat16 where that is safe, if `in_bfloat16`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16(device, bf16))
