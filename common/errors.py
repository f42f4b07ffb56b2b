"""The one error class for a user's mistake (`common.command.run` ends with exit code 2), and the nearest choice."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A user's mistake. Its text is one line, fit to print: what was expected, what came, the nearest valid choice."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return the choice that is most like a name."""
    return difflib.get_close_matches(name, list(choices), n=1, cutoff=0.0)[0]
