"""A machine without memory left: how libraries say so."""

SIGNS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "std::bad_alloc",
    "memoryerror",  # of a data loader's worker
    "killed by signal: killed",  # the same, by the system
    "can't start new thread",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or one that led to it, says that memory ran out: of this machine or of a GPU."""
    text = str(error).lower()
    own = isinstance(error, MemoryError) or (not isinstance(error, OSError) and any(sign in text for sign in SIGNS))
    before = error.__cause__ or error.__context__
    return own or (before is not None and is_out_of_memory(before))
