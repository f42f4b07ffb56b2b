"""How a command ends: exit code 2 and one line for a user's mistake, 130 for Ctrl-C; a defect keeps its traceback."""

import sys
from collections.abc import Callable
from typing import Any

import tyro

from common.errors import UserError
from common.text import printable


def run(main: Callable[[], int]) -> int:
    """Run a command's `main` and return its exit code; a `UserError` or `OSError` becomes one line on stderr."""
    try:
        return main()
    except (UserError, OSError) as error:
        print(printable(f"error: {error}".replace("\n", " ")), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def require_at_least(args: Any, minimum: float, *names: str) -> None:
    """Check that each named field of a command's arguments is None or at least `minimum`; name its flag if not."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < minimum:
            raise UserError(f"--{name.replace('_', '-')} must be at least {minimum:g}, got {value}")


def command(
    args: type | Callable[[list[str] | None], Any], action: Callable[[Any], Any], description: str | None, message: str
) -> Callable[..., int]:
    """Return the `main` of a command: it parses a command line, acts on it and prints a message.

    Args:
        args: the dataclass of the arguments, or a function that parses a command line (None: that of the process).
        action: is called with the parsed arguments.
        description: the head of the `--help` text.
        message: `{}` in it stands for what the action returns.
    """

    def main(argv: list[str] | None = None) -> int:
        parsed = tyro.cli(args, args=argv, description=description) if isinstance(args, type) else args(argv)
        print(printable(message.format(action(parsed)), keep="\n\t"))
        return 0

    return main
