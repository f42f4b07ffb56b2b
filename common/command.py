"""How a command ends: exit code 2 and one line for a user's mistake, 130 for Ctrl-C; a defect keeps its traceback."""

import sys
from collections.abc import Callable

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
