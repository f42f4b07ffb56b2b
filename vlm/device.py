"""Where a model that is asked or trained goes: to a GPU if there is one; and which of several processes this one is."""

import os

import torch


def best_device() -> torch.device:
    """Return this process's GPU, or the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def device_name(device: torch.device) -> str:
    """Return what a device is called in results: a GPU by its model, else cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def world_size() -> int:
    """Return how many processes a launcher (`torchrun`, `accelerate launch`) started for this run; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this is the first process of its run, the one that writes files."""
    return os.environ.get("RANK", "0") == "0"
