"""What a machine may run out of, memory or a disk to write on, and how libraries say so."""

import errno
from collections.abc import Iterator

MEMORY = "out of memory"
WRITING = "a file could not be written (is the disk full?)"
ADVICE = {
    MEMORY: "free memory or choose smaller numbers, as of a batch or --num-envs",
    WRITING: "free space or choose another --out",
}
SIGNS = {
    MEMORY: (
        "out of memory",
        "can't allocate memory",
        "cannot allocate memory",
        "std::bad_alloc",
        "memoryerror",  # of a data loader's worker
        "killed by signal: killed",  # the same, by the system
        "can't start new thread",
        "could not create a primitive",  # of oneDNN, which multiplies matrices on CPUs
    ),
    WRITING: (
        "no space left on device",
        "disk quota exceeded",
        "read-only file system",
        "pytorchstreamwriter failed",
        "inline_container.cc",  # torch's archives
    ),
}
ERRNOS = {errno.ENOMEM: MEMORY, errno.ENOSPC: WRITING, errno.EDQUOT: WRITING, errno.EROFS: WRITING}


def exhausted(error: BaseException) -> str | None:
    """Return one line if an error, or one that led to it, says that memory or the disk of a machine ran out."""
    for one in _with_causes(error):
        if (what := _what(one)) is not None:
            reason = (str(one).strip() or type(one).__name__).splitlines()[0]
            return f"{what}: {reason}; {ADVICE[what]}; what was finished is kept"
    return None


def _what(error: BaseException) -> str | None:
    if isinstance(error, MemoryError):
        return MEMORY
    if isinstance(error, OSError):
        return ERRNOS.get(error.errno or 0)
    text = str(error).lower()
    return next((what for what, signs in SIGNS.items() if any(sign in text for sign in signs)), None)


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ if error.__suppress_context__ else error.__context__
