"""Which of several processes of a launcher (`torchrun`, `accelerate launch`) this one is."""

import os


def world_size() -> int:
    """Return the number of processes that a launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this is the first process of its run, the one that writes files."""
    return os.environ.get("RANK", "0") == "0"
