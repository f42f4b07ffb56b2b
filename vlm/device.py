"""The device of a model."""

import os

import torch


def best_device() -> torch.device:
    """Return this process's GPU, the one of its number on this machine in a launcher, or the CPU if there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))


def device_name(device: torch.device) -> str:
    """Return a device's name in results: the model of a GPU, else cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
