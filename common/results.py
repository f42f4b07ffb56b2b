"""Results as data: one JSON form for scores, runs and benchmarks, written whole or not at all.

Top level: `name, command, commit, dirty, date, versions, machine, protocol, seeds, seconds, rows`. Rows are flat.
Scores are raw; intervals are for readers to compute.
"""

import datetime
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

from common.errors import UserError
from common.files import write_text_atomically
from common.json_file import checked, read_json
from common.provenance import ROOT, changed, command_line, git_commit, machine, package_versions

Finite = Annotated[float, Field(allow_inf_nan=False)]
RESULTS = ROOT / "experiments" / "results"  # the committed result files


class ResultRow(BaseModel):
    """What a row may hold under the names that scores share; it holds more."""

    agent: str | None = None
    game: str | float | None = None  # a figure in rows that are no scores
    seed: int | None = None
    scores: list[Finite] | None = None  # none yet while the first game is played
    steps_per_second: Finite | None = None


class ResultFile(BaseModel):
    """What every result file holds, and what it is where an old one lacks it."""

    rows: list[ResultRow]
    name: str = ""
    command: str = ""
    commit: str = "unknown"
    machine: str = ""
    versions: dict[str, str] = {}
    protocol: dict[str, Any] | None = None
    seeds: list[int] = []
    seconds: Finite = 0.0


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
    result = read_json(Path(file))
    if not isinstance(result, dict) or "rows" not in result:
        raise UserError(f"{file} is not a result file: it has no rows")
    complete = checked(result, ResultFile, file).model_dump(exclude={"rows"})
    return result | {name: value for name, value in complete.items() if name not in result}
