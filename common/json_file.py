"""JSON files of other people: bounded, printable, and checked against the type that their reader expects."""

import json
import reprlib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from common.errors import UserError
from common.text import printable, printable_values

MAX_BYTES = 2**25  # of a file; its values take about twenty times as much memory

Expected = TypeVar("Expected")


def read_json(file: Path) -> Any:
    """Return the content of a JSON file, its texts `printable`; `UserError` names a file that is damaged."""
    with file.open("rb") as stream:
        return parse_json(stream.read(MAX_BYTES + 1), file)


def parse_json(text: bytes, source: object) -> Any:
    """Return the values of JSON, their texts `printable`; `UserError` names a source that is damaged."""
    if len(text) > MAX_BYTES:
        raise UserError(f"{source} is damaged: expected at most {MAX_BYTES:,} bytes of JSON")
    try:
        return printable_values(json.loads(text))
    except RecursionError as error:
        raise UserError(f"{source} is damaged: its values are nested too deep") from error
    except (UserError, ValueError) as error:
        raise UserError(f"{source} is damaged: {error}") from error


def checked(content: Any, expected: type[Expected], source: object, strict: bool = True) -> Expected:
    """Return JSON values as a dataclass or another type; `UserError` names the source and the field that does not fit.

    The limits of a field are pydantic's, `Annotated[int, Field(ge=1)]`. Strict takes no text for a number.
    """
    try:
        return TypeAdapter(expected).validate_json(json.dumps(content), strict=strict)
    except ValidationError as error:
        raise UserError(f"{source} is damaged: {first_fault(error)}") from error


def first_fault(error: ValidationError) -> str:
    """Return which field is wrong, what was expected and what came."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = "".join(f"{part}: " for part in (".".join(map(str, first["loc"])),) if part)
    return printable(f"{where}{first['msg'][0].lower()}{first['msg'][1:]}, got {reprlib.repr(first['input'])}")
