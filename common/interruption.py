"""Ctrl-C and SIGTERM: both end a command as an exception, or let a training finish its step and save first."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The end that a signal asks for."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class _Deferral:
    """How many contexts of this process defer signals, and the signal that waits for their end."""

    depth = 0
    waiting: int | None = None


def exit_code(interruption: KeyboardInterrupt) -> int:
    """Return a shell's exit code of an interrupted command: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + (interruption.number if isinstance(interruption, Interrupted) else int(signal.SIGINT))


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into `Interrupted` within the context; only a main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            _interrupt(number)
        elif number == signal.SIGTERM:  # a child that was forked; Ctrl-C, which it gets too, its parent answers
            os._exit(128 + number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def deferred_interruption() -> Iterator[Callable[[], bool]]:
    """Yield whether a signal came, which raises `Interrupted` at the end of the context only; a second one at once."""
    _Deferral.depth += 1
    try:
        yield lambda: _Deferral.waiting is not None
    finally:
        _Deferral.depth -= 1
        number = _Deferral.waiting
        if not _Deferral.depth:
            _Deferral.waiting = None
    if number is not None:
        raise Interrupted(number)


def _interrupt(number: int) -> None:
    if not _Deferral.depth or _Deferral.waiting is not None:
        raise Interrupted(number)
    _Deferral.waiting = number
    os.write(2, b"\ninterrupted: finishing this step and saving; once more stops at once\n")  # print may be interrupted
