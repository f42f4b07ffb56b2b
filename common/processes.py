"""Which of several processes of a launcher (`torchrun`, `accelerate launch`) this one is."""

import atexit
import os
import sys
from typing import NoReturn

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


def is_in_group() -> bool:
    """Return whether this process has joined the others of a launcher."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return False
    return distributed.get_world_size() > 1


def end_process(code: int) -> NoReturn:
    """End a process of a group with `code`, without Python's own end.

    Threads of gloo let go of their tensors a moment after a sum is there. If Python has ended by then, they abort the
    process; `destroy_process_group` waits for them only if nothing holds the group, and FSDP does.
    """
    if code == 0:
        sys.modules["torch.distributed"].destroy_process_group()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def ended_peer(error: BaseException) -> str | None:
    """Return one line if an error of one of several processes says that another has ended; None of any other error."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if world_size() == 1 or not any(sign in str(error).lower() for sign in SIGNS):
        return None
    rank = os.environ.get("RANK", "0")
    return f"process {rank} of {world_size()} lost another one, which says why above or was killed: {reason:.200}"
