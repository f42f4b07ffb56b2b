"""The arguments of a run, stored in its directory: a run resumes with the same ones only."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import write_text_atomically
from common.provenance import command_line, git_commit, package_versions

FILE = "arguments.json"


def to_json(args: Any) -> dict[str, Any]:
    """Return a dataclass of arguments as JSON values; paths become text."""
    return json.loads(json.dumps(dataclasses.asdict(args), default=str))


def run_metadata(args: Any) -> dict[str, Any]:
    """Return how a run is made: its command, arguments, commit and package versions."""
    return {
        "command": command_line(),
        "arguments": to_json(args),
        "commit": git_commit(),
        "versions": package_versions(),
    }


def require_same_arguments(out: Path, arguments: dict[str, Any]) -> None:
    """Store the arguments of a new run in `out`; check those of a resumed run.

    Raises:
        UserError: naming the arguments that differ from the stored ones.
    """
    file = out / FILE
    if file.exists():
        stored = json.loads(file.read_text())
        changed = [name for name, value in arguments.items() if stored.get(name) != value]
        if changed:
            raise UserError(f"{out} holds a run with another {', '.join(changed)}; choose another --out")
    write_text_atomically(file, json.dumps(arguments, indent=1) + "\n")
