"""The arguments of a run, stored in its directory: a run resumes with the same ones only."""

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import write_text_atomically
from common.json_file import checked, read_json
from common.provenance import command_line, git_commit, package_versions

FILE = "arguments.json"


def to_json(args: Any) -> dict[str, Any]:
    """Return a dataclass of arguments as JSON values; paths become text."""
    return json.loads(json.dumps(dataclasses.asdict(args), default=str))


def run_metadata(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return how a run is made: its command, arguments, commit and package versions."""
    provenance = {"commit": git_commit(), "versions": package_versions()}
    return {"command": command_line(), "arguments": arguments, **provenance}


def changed_arguments(stored: dict[str, Any], arguments: dict[str, Any], ignore: Collection[str] = ()) -> list[str]:
    """Return the names of arguments that differ from stored ones, but for those to ignore and for `out`."""
    return [name for name in arguments if name not in ("out", *ignore) and stored.get(name) != arguments[name]]


def require_same_arguments(out: Path, arguments: dict[str, Any], ignore: Collection[str] = ()) -> None:
    """Store the arguments of a new run, JSON values, in `out`; refuse other ones for a run that has begun.

    Arguments of the names in `ignore` may change, and so may `out`: a run may be moved.
    """
    file = out / FILE
    if file.exists():
        stored = checked(read_json(file), dict[str, Any], file)
        if changed := changed_arguments(stored, arguments, ignore):
            raise UserError(f"{out} holds a run with another {', '.join(changed)}; choose another --out")
    write_text_atomically(file, json.dumps(arguments, indent=1) + "\n")
