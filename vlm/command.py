"""How a command ends: a user's mistake is one line and exit code 2, Ctrl-C is 130, a defect keeps its traceback."""

import sys
from collections.abc import Callable

from vlm.errors import VlmError


def run(main: Callable[[], int], *mistakes: type[Exception]) -> int:
    """Run a command's `main` and return its exit code, with user mistakes told in one line.

    `mistakes` are the kinds of error that are a user's, beside those of models and of files.
    """
    kinds: tuple[type[Exception], ...] = (VlmError, OSError, *mistakes)
    try:
        return main()
    except kinds as error:
        print(f"error: {error}".replace("\n", " "), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
