"""The tables of `experiments.faults`: what was done to commands and files, and how often something went wrong."""

from collections import defaultdict

from experiments.statistics import Row
from experiments.tables import Table

CAPTIONS = {
    "kill": "Kills: before every file event and at random moments, then a repeat",
    "mutation": "Files and requests that are damaged at random",
    "same seed twice": "The same command and seed twice",
    "1 and 12 environments": "The same games, 1 and 12 at once",
    "engines": "Greedy decisions of the released policy by two engines",
    "load": "Load",
}
FAILURES = "Failures of the machine"  # the caption of all other faults
UNCOUNTED = ("seed", "every", "moments", "seconds", "num_envs")
NAMES = ("command", "format", "name")


def fault_tables(rows: list[Row]) -> list[Table]:
    """Return a table for each kind of fault; its columns are the counts that its rows have."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[CAPTIONS.get(row["fault"], FAILURES)].append(row)
    return [_counts(caption, own) for caption, own in groups.items()]


def _counts(caption: str, rows: list[Row]) -> Table:
    columns = dict.fromkeys(name for row in rows for name, value in row.items() if _is_count(name, value))
    lines = [
        (_label(row), {_title(name): f"{row[name]:,.4g}" for name in columns if _is_count(name, row.get(name))})
        for row in rows
    ]
    return Table(caption, tuple(map(_title, columns)), lines)


def _is_count(name: str, value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and name not in UNCOUNTED


def _label(row: Row) -> str:
    fault = "" if row["fault"] in CAPTIONS else f"{row['fault']}: "
    words = [str(row[name]) for name in (*NAMES, "game") if name in row]
    words += [f"{row['num_envs']} at once"] if "num_envs" in row else []
    return fault + ", ".join(words)


def _title(name: str) -> str:
    return name.replace("_", " ")
