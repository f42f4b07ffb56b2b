"""Results as data: one JSON form for scores, runs and benchmarks, written whole or not at all.

Top level: `name, command, commit, dirty, date, versions, machine, protocol, seeds, seconds, rows`. Rows are flat.
Scores are raw; intervals are for readers to compute.
"""

import datetime
import json
import os
from pathlib import Path
from typing import Any

from envs.errors import EnvsError
from envs.protocol import Protocol
from vlm.provenance import changed, command_line, git_commit, machine, package_versions


def new_result(name: str, protocol: Protocol | None, seeds: list[int]) -> dict[str, Any]:
    """Return a result without rows, with all that a reader needs to run it again."""
    return {
        "name": name,
        "command": command_line(),
        "commit": git_commit(),
        "dirty": changed(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": package_versions(),
        "machine": machine(),
        "protocol": protocol.to_dict() if protocol else None,
        "seeds": seeds,
        "seconds": 0.0,
        "rows": [],
    }


def write_result(file: Path, result: dict[str, Any]) -> None:
    """Write a result so that a reader finds the old one or the new one, whole."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(aside, file)


def read_result(file: Path) -> dict[str, Any]:
    """Return a result; a file of another kind is refused by name."""
    try:
        result = json.loads(Path(file).read_text())
    except ValueError as error:
        raise EnvsError(f"{file} is damaged: {error}") from error
    if not isinstance(result, dict) or "rows" not in result:
        raise EnvsError(f"{file} is not a result file: it has no rows")
    return result
