"""Rows of scores that may be pooled: those of the seeds of one agent with the same settings in one game."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from common.errors import UserError
from envs.play_conditions import UNCHANGED

Row = dict[str, Any]
LIMITS = ("image_tokens", "history", "max_new_tokens", "few_shot")
SETTINGS = (  # rows that differ in one are not pooled
    *("agent", "decode", "temperature", "engine", "checkpoint", "condition"),
    *LIMITS,
)
DEFAULTS = {"condition": UNCHANGED.name}  # of rows that do not name it


def settings_of(row: Row, names: Sequence[str] = SETTINGS) -> tuple:
    """Return the values of settings of a row."""
    return tuple(row.get(name, DEFAULTS.get(name)) for name in names)


def identity(row: Row) -> tuple:
    """Return what tells a row from others in a result: its game, seed and settings."""
    return (row["game"], row.get("seed"), *settings_of(row))


def distinct_rows(rows: Iterable[Row]) -> list[Row]:
    """Return one row for each game, settings and seed: of several, which repeat the same games, the longest.

    `UserError` if two of them tell different scores of the same games.
    """
    found: dict[tuple, Row] = {}
    for row in rows:
        key = identity(row)
        known = found.get(key, row)
        shorter, longer = sorted((known, row), key=lambda one: len(one["scores"]))
        if longer["scores"][: len(shorter["scores"])] != shorter["scores"]:
            raise UserError(
                f"two rows of {row['agent']} in {row['game']}, seed {row.get('seed')}, tell different scores of the "
                "same games; expected one: delete the other or score into another file"
            )
        found[key] = longer
    return list(found.values())


def distinct_labels(
    rows: Iterable[Row], label: Callable[[Row], str], names: Sequence[str] = SETTINGS
) -> dict[tuple, str]:
    """Return a label of each combination of settings.

    Those of one label get the values in which they differ behind it, so that no two share one.
    """
    labels = {settings_of(row, names): label(row) for row in rows}
    for position, name in enumerate(names):
        sharing = {one for one, count in Counter(labels.values()).items() if count > 1}
        values = {one: {key[position] for key in labels if labels[key] == one} for one in sharing}
        labels = {
            key: f"{one}, {name} {key[position]}" if len(values.get(one, ())) > 1 else one
            for key, one in labels.items()
        }
    return labels


def group_rows(rows: Iterable[Row], label: Callable[[Row], str]) -> dict[tuple[str, str], list[Row]]:
    """Return the rows of several seeds that may be pooled, by game and `distinct_labels`."""
    rows = distinct_rows(rows)
    labels = distinct_labels(rows, label)
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["game"], labels[settings_of(row)]), []).append(row)
    return groups


def games_a_seed(rows: Iterable[Row]) -> str:
    """Return the numbers of games of unequal seeds, as "3 to 30 games a seed"; empty where they are equal."""
    counts = [len(row["scores"]) for row in rows]
    return f"{min(counts)} to {max(counts)} games a seed" if len(set(counts)) > 1 else ""
