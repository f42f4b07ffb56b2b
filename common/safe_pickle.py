"""A restricted unpickler: reads containers, text and numbers, runs nothing, and takes time as the file is long."""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

from common.errors import UserError

SAFE_TYPES = frozenset({"set", "frozenset", "list", "dict", "tuple", "str", "int", "float", "bool"})
BUILTINS = ("builtins", "__builtin__")  # the second is Python 2's name, which REFER's files use
MAX_BYTES = 2**28
MAX_INTEGER = 2**128
PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
INDICES = PUTS | GETS
TUPLES = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE"})
CONTAINERS = frozenset({"LIST", "EMPTY_LIST", "DICT", "EMPTY_DICT", "EMPTY_SET", "FROZENSET"})
CALLS = frozenset({"REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"})


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


def require_bounded_work(data: bytes) -> None:
    """Raise `PickleError` for a pickle that asks for more work or memory than its size tells.

    A tuple that holds another twice, and so on, is hashed in exponential time; a long integer is hashed anew at each
    use; a call copies a container as often as it is made; an index of the memo is memory.
    """
    tuples, containers, last, stored = set[object](), set[object](), "", 0
    is_shared = has_calls = False
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name in INDICES and type(argument) is int and argument > len(data):
            raise PickleError("refused: expected indices no larger than the file")
        if name in PUTS:
            kind = tuples if last in TUPLES else containers if last in CONTAINERS else None
            if kind is not None:
                kind.add(stored if argument is None else argument)
            stored += 1
            continue
        if name == "DUP" or (name in GETS and argument in tuples):
            raise PickleError("refused: expected each tuple in one place")
        if type(argument) is int and abs(argument) > MAX_INTEGER:
            raise PickleError("refused: expected integers of at most 128 bits")
        last, is_shared = name, is_shared or (name in GETS and argument in containers)
        has_calls = has_calls or name in CALLS
    if is_shared and has_calls:
        raise PickleError("refused: expected each list in one place")


def load_safe_pickle(file: Path) -> Any:
    """Return the content of a pickle: containers, text, numbers, booleans and None.

    A pickle can name any function and have it called while it is read. `PickleError` refuses other globals than
    `SAFE_TYPES` before they are imported or called.
    """
    if not file.is_file():
        raise PickleError(f"expected a pickle at {file}, found none")
    if (size := file.stat().st_size) > MAX_BYTES:
        raise PickleError(f"{file} refused: expected a pickle of at most {MAX_BYTES:,} bytes, got {size:,}")
    data = file.read_bytes()
    try:
        require_bounded_work(data)
        return _SafeUnpickler(io.BytesIO(data), encoding="utf-8").load()
    except PickleError as error:
        raise PickleError(f"{file} {error}") from error
    except Exception as error:  # a damaged pickle can raise nearly anything, as pickle's documentation says
        raise PickleError(f"{file} is not a pickle, or is damaged: {type(error).__name__}: {error}") from error
