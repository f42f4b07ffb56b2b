"""The device of a model, and which of several processes this one is."""

import os

import torch


def best_device() -> torch.device:
    """Return this process's GPU, or the CPU if there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def device_name(device: torch.device) -> str:
    """Return a device's name in results: the model of a GPU, else cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def world_size() -> int:
    """Return the number of processes that a launcher (`torchrun`, `accelerate launch`) started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this is the first process of its run, the one that writes files."""
    return os.environ.get("RANK", "0") == "0"
