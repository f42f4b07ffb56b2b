"""Which of several processes of a launcher (`torchrun`, `accelerate launch`) this one is."""

import os
import sys

SIGNS = (
    "connection closed by peer",
    "connection reset by peer",
    "remote process exited",
    "gloo",
    "nccl",
)


def world_size() -> int:
    """Return the number of processes that a launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this is the first process of its run, the one that writes files."""
    return os.environ.get("RANK", "0") == "0"


def leave_group() -> None:
    """End the connections to the other processes of a launcher: their threads may abort a process that exits first."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def ended_peer(error: BaseException) -> str | None:
    """Return one line if an error of one of several processes says that another has ended; None of any other error."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if world_size() == 1 or not any(sign in str(error).lower() for sign in SIGNS):
        return None
    rank = os.environ.get("RANK", "0")
    return f"process {rank} of {world_size()} lost another one, which says why above or was killed: {reason:.200}"
