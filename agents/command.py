"""How a command of this floor ends; a mistake about games, protocols and datasets is a user's as well."""

from collections.abc import Callable

from envs.errors import EnvsError
from vlm import command


def run(main: Callable[[], int]) -> int:
    """Run a command's `main` and return its exit code; see `vlm.command.run`."""
    return command.run(main, EnvsError)
