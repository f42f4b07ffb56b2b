"""Pickles of plain values only: what a list of referring expressions needs, and nothing that could run."""

import pickle
from pathlib import Path
from typing import Any

from common.errors import UserError

PLAIN = frozenset({"set", "frozenset", "list", "dict", "tuple", "str", "int", "float", "bool"})
BUILTINS = ("builtins", "__builtin__")  # the second is Python 2's name, in which REFER's files were written


class PickleError(UserError):
    """A pickle that is damaged or holds more than plain values; the message names it."""


class _ForbiddenError(pickle.UnpicklingError):
    """A pickle asked for something that is not plain."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in BUILTINS and name in PLAIN:
            return super().find_class(module, name)
        raise _ForbiddenError(f"{module}.{name}")


def load_safe_pickle(file: Path) -> Any:
    """Return what a pickle holds: containers, text, numbers, booleans and None.

    A pickle may name any function and have it called while it is read. Here such a name is refused before anything of
    it is imported or called.

    Raises:
        PickleError: the pickle is missing or damaged, or names something else; the message tells which.
    """
    file = Path(file)
    if not file.is_file():
        raise PickleError(f"expected a pickle at {file}, found none")
    with file.open("rb") as stream:
        try:
            return _PlainUnpickler(stream, encoding="utf-8").load()
        except _ForbiddenError as error:
            raise PickleError(
                f"{file} refused: expected plain lists, dicts, text and numbers, got the global {error}, "
                "which was not run; take the file from another source"
            ) from error
        except Exception as error:  # a damaged pickle can raise nearly anything, as pickle's documentation says
            raise PickleError(f"{file} is not a pickle, or is damaged: {type(error).__name__}: {error}") from error
