"""The device of a model."""

import torch


def best_device() -> torch.device:
    """Return this process's GPU, or the CPU if there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def device_name(device: torch.device) -> str:
    """Return a device's name in results: the model of a GPU, else cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
