"""A restricted unpickler: reads containers, text and numbers, and runs nothing."""

import pickle
from pathlib import Path
from typing import Any

from common.errors import UserError

SAFE_TYPES = frozenset({"set", "frozenset", "list", "dict", "tuple", "str", "int", "float", "bool"})
BUILTINS = ("builtins", "__builtin__")  # the second is Python 2's name, which REFER's files use


class PickleError(UserError):
    """A pickle that is missing, damaged or unsafe; the message names it."""


class _SafeUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in BUILTINS and name in SAFE_TYPES:
            return super().find_class(module, name)
        raise PickleError(
            f"refused: expected plain lists, dicts, text and numbers, got the global {module}.{name}, "
            "which was not run; get the file from another source"
        )


def load_safe_pickle(file: Path) -> Any:
    """Return the content of a pickle: containers, text, numbers, booleans and None.

    A pickle can name any function and have it called while it is read. `PickleError` refuses other globals than
    `SAFE_TYPES` before they are imported or called.
    """
    if not file.is_file():
        raise PickleError(f"expected a pickle at {file}, found none")
    with file.open("rb") as stream:
        try:
            return _SafeUnpickler(stream, encoding="utf-8").load()
        except PickleError as error:
            raise PickleError(f"{file} {error}") from error
        except Exception as error:  # a damaged pickle can raise nearly anything, as pickle's documentation says
            raise PickleError(f"{file} is not a pickle, or is damaged: {type(error).__name__}: {error}") from error
