"""Results as data: one JSON form for scores, runs and benchmarks, written whole or not at all.

Top level: `name, command, commit, dirty, date, versions, machine, protocol, seeds, seconds, rows`. Rows are flat.
Scores are raw; intervals are for readers to compute.
"""

import datetime
import json
import math
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import write_text_atomically
from common.provenance import ROOT, changed, command_line, git_commit, machine, package_versions

Kinds = dict[str, tuple[type, ...]]
FIELDS: Kinds = {
    **dict.fromkeys(("name", "command", "commit", "date", "machine"), (str,)),
    **{"protocol": (dict, type(None)), "seeds": (list,), "seconds": (int, float), "rows": (list,)},
}
ROW_FIELDS: Kinds = {
    **{"agent": (str,), "commit": (str,), "device": (str,), "scores": (list,)},
    **{"seed": (int, type(None)), "temperature": (int, float, type(None))},
}
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
    """Return a result; a file of another kind, or whose fields are of another, is refused by name."""
    try:
        result = json.loads(Path(file).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if not isinstance(result, dict) or "rows" not in result:
        raise UserError(f"{file} is not a result file: it has no rows")
    _check_fields(str(file), result, FIELDS, required=True)
    for number, row in enumerate(result["rows"]):
        place = f"{file}, row {number}"
        if not isinstance(row, dict):
            raise UserError(f"{place}: expected an object, got {type(row).__name__}")
        _check_fields(place, row, ROW_FIELDS)
        scores = row.get("scores", [])
        if not all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
            raise UserError(f"{place}: expected finite numbers as scores")
    return result


def _check_fields(
    place: str, fields: dict[str, Any], known: dict[str, tuple[type, ...]], required: bool = False
) -> None:
    for name, kinds in known.items():
        value = fields.get(name)
        if name in fields and not isinstance(value, kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise UserError(f"{place}: expected {name} to be {expected}, got {type(value).__name__}")
        if required and name not in fields:
            raise UserError(f"{place} is not a result file: it has no {name}")
