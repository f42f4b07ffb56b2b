"""How a command ends: exit code 2 and one line for a user's mistake, 130 for Ctrl-C; a defect keeps its traceback."""

import sys
from collections.abc import Callable
from typing import Any

from common.errors import UserError


def run(main: Callable[[], int]) -> int:
    """Run a command's `main` and return its exit code; a `UserError` or `OSError` becomes one line on stderr."""
    try:
        return main()
    except (UserError, OSError) as error:
        print(f"error: {error}".replace("\n", " "), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def require_at_least(args: Any, minimum: float, *names: str) -> None:
    """Check that each named field of a command's arguments is None or at least `minimum`.

    Raises:
        UserError: naming the field's flag.
    """
    for name in names:
        value = getattr(args, name)
        if value is not None and value < minimum:
            raise UserError(f"--{name.replace('_', '-')} must be at least {minimum:g}, got {value}")
