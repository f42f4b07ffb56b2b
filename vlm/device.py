"""Where a model that is asked or trained goes: to a GPU if there is one."""

import torch


def best_device() -> torch.device:
    """Return this process's GPU, or the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def device_name(device: torch.device) -> str:
    """Return what a device is called in results: a GPU by its model, else cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
