"""How a command runs and ends: alone in its output, with one line for a user's mistake and for a signal.

The exit code is 1 where a check finds a fault, 2 after a mistake and at the end of memory, of disk space or of another
process of a launcher; it is 130 after Ctrl-C and 143 after SIGTERM. A defect keeps its traceback.
"""

import contextlib
import dataclasses
import io
import math
import os
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import tyro

from common.errors import UserError
from common.exhaustion import exhausted
from common.interruption import exit_code, interruptible
from common.output_lock import output_lock, output_of
from common.processes import end_process, ended_peer, is_in_group, is_main_process
from common.text import printable


def run(main: Callable[[], int]) -> int:
    """Run a command's `main` and return its exit code; a `UserError` or `OSError` becomes one line on stderr.

    So does the end of memory or disk space. What a terminal cannot show is printed as an escape. One of several
    processes of a launcher ends here.
    """
    code = _run(main)
    if is_in_group():
        end_process(code)
    return code


def _run(main: Callable[[], int]) -> int:
    """Run `main` and return its exit code, with one line for what is no defect."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            with interruptible():
                return main()
        finally:
            sys.stdout.flush()  # here, where a pipe that was closed is an error like others
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that Python does not flush into it once more
        print(f"error: the output was closed before its end: {error}", file=sys.stderr)
        return 2
    except (UserError, OSError) as error:
        print(printable(f"error: {error}".replace("\n", " ")), file=sys.stderr)
        return 2
    except Exception as error:
        if (line := exhausted(error) or ended_peer(error)) is None:
            raise
        print(printable(f"error: {line}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt as interruption:
        print("interrupted; what was finished is kept: repeat the command to go on", file=sys.stderr)
        return exit_code(interruption)


def require_at_least(args: Any, minimum: float, *names: str) -> None:
    """Check that each named field of a command's arguments is None or at least `minimum`; name its flag if not."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < minimum:
            raise UserError(f"--{name.replace('_', '-')} must be at least {minimum:g}, got {value}")


Arguments = TypeVar("Arguments")


def parse(args: type[Arguments], argv: list[str] | None, description: str | None, **options: Any) -> Arguments:
    """Return a dataclass of arguments from a command line (None: that of the process); `options` are tyro's.

    `UserError` if a number in it is not finite, or a word holds control characters, which messages would repeat.
    """
    for word in sys.argv[1:] if argv is None else argv:
        if any(unicodedata.category(letter) == "Cc" and letter not in "\n\t" for letter in word):
            raise UserError(f"expected words without control characters, got '{printable(word)}'")
    parsed = tyro.cli(args, args=argv, description=description, **options)
    require_finite(parsed)
    return parsed


def require_finite(value: Any, name: str = "") -> None:
    """Refuse `nan` and `inf` in a dataclass of arguments, at any depth; the message has the flag."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"--{name.replace('_', '-')} must be a finite number, got {value}")
    if isinstance(value, tuple | list):
        for one in value:
            require_finite(one, name)
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            require_finite(getattr(value, field.name), field.name)


def command(
    args: type | Callable[[list[str] | None], Any],
    action: Callable[[Any], Any],
    description: str | None,
    message: str,
    output: Callable[[Any], Path | None] = output_of,
) -> Callable[..., int]:
    """Return the `main` of a command: it parses a command line, acts on it, alone in its output, and prints a message.

    Args:
        args: the dataclass of the arguments, or a function that parses a command line (None: that of the process).
        action: is called with the parsed arguments.
        description: the head of the `--help` text.
        message: `{}` in it stands for what the action returns.
        output: returns the file or directory that no other command may write meanwhile, if there is one.
    """

    def main(argv: list[str] | None = None) -> int:
        parsed = parse(args, argv, description) if isinstance(args, type) else args(argv)
        out = output(parsed)
        with output_lock(out) if out else contextlib.nullcontext():
            done = action(parsed)
            if is_main_process():
                print(printable(message.format(done), keep="\n\t"))
        return 0

    return main
