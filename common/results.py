"""Results as data: one JSON form for scores, runs and benchmarks, written whole or not at all.

Top level: `name, command, commit, dirty, date, versions, machine, protocol, seeds, seconds, rows`. Rows are flat.
Scores are raw; intervals are for readers to compute.
"""

import datetime
import json
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import write_text_atomically
from common.provenance import ROOT, changed, command_line, git_commit, machine, package_versions

RESULTS = ROOT / "experiments" / "results"  # the committed result files


def new_result(name: str, protocol: dict[str, Any] | None, seeds: list[int]) -> dict[str, Any]:
    """Return a result without rows, with all that a reader needs to run it again."""
    return {
        "name": name,
        "command": command_line(),
        "commit": git_commit(),
        "dirty": changed(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": package_versions(),
        "machine": machine(),
        "protocol": protocol,
        "seeds": seeds,
        "seconds": 0.0,
        "rows": [],
    }


def write_result(file: Path, result: dict[str, Any]) -> None:
    """Write a result file in one step."""
    write_text_atomically(file, json.dumps(result, indent=1) + "\n")


def read_result(file: Path) -> dict[str, Any]:
    """Return a result; a file of another kind is refused by name."""
    try:
        result = json.loads(Path(file).read_text())
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if not isinstance(result, dict) or "rows" not in result:
        raise UserError(f"{file} is not a result file: it has no rows")
    return result
