"""Which columns of other people's datasets hold what: maps for known layouts, and a user's own.

atari_parquet    https://huggingface.co/datasets/blanchon/atari_parquet: image, episode, frame_index, action;
                 a split a game, actions are numbers in the game's own set, no rewards
lerobot          https://github.com/huggingface/lerobot, version 2: observation.image, next.reward, ...
pvplay           the columns of `envs.episodes`
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from common.errors import UserError, nearest
from envs.episode_file import DatasetError
from envs.games import find_game

ROLES = ("frame", "action", "reward", "episode", "step", "terminated", "truncated", "game")
COLUMN_MAPS: dict[str, dict[str, str]] = {
    "pvplay": {role: role for role in ROLES},
    "lerobot": {
        "frame": "observation.image",
        "action": "action",
        "reward": "next.reward",
        "episode": "episode_index",
        "step": "frame_index",
        "terminated": "next.done",
    },
    "atari_parquet": {"frame": "image", "action": "action", "episode": "episode", "step": "frame_index"},
}


@dataclass(frozen=True)
class HubOptions:
    """How datasets of the hub are read."""

    columns: tuple[str, ...] = ()
    """Columns of a dataset from the hub whose layout is not known, as in `--columns frame=picture action=key`: frame,
    action, reward, episode, step, terminated, truncated, game."""
    data_game: str | None = None
    """The game of a dataset from the hub that does not name it, or the one to take from a dataset of several."""
    action_ids: Literal["minimal", "full"] = "minimal"
    """What numbers a dataset from the hub has for actions: of the game's own set, or of all 18 of the console."""

    def __post_init__(self) -> None:
        self.by_role()
        if self.data_game is not None:
            find_game(self.data_game)

    def by_role(self) -> dict[str, str]:
        """Return the column of each role that `columns` names."""
        found = {}
        for given in self.columns:
            role, _, column = given.partition("=")
            if not column:
                raise UserError(f"--columns: expected ROLE=COLUMN, as in frame=image, got {given!r}")
            if role not in ROLES:
                known = ", ".join(ROLES)
                raise UserError(f"--columns: expected one of {known}, got {role!r}; nearest: {nearest(role, ROLES)}")
            found[role] = column
        return found


def find_columns(
    columns: Sequence[str], given: Mapping[str, str], source: object, known: Mapping[str, str] | None = None
) -> tuple[str, dict[str, str]]:
    """Return the name of a column map and the column of each role that a dataset holds.

    Args:
        columns: of the dataset.
        given: by a user, in place of a known map's.
        source: of the dataset, in messages.
        known: the columns of a dataset that tells them itself.

    Raises:
        DatasetError: a column is not there; it names those that are.
    """
    shown = ", ".join(columns)
    for role, column in given.items():
        if column not in columns:
            near = nearest(column, columns) if columns else "none"
            raise DatasetError(
                f"{source}: --columns {role}={column}: there is no such column; nearest: {near}; it has {shown}"
            )
    maps = {"lerobot": dict(known)} if known else COLUMN_MAPS
    name = max(maps, key=lambda one: _fit(maps[one], columns))
    found = {role: column for role, column in maps[name].items() if column in columns} | dict(given)
    if missing := [role for role in ("frame", "action") if role not in found]:
        near = nearest(missing[0], columns) if columns else "COLUMN"
        needed = " and ".join(f"a column of the {role}s" for role in missing)
        raise DatasetError(f"{source}: expected {needed}, as in --columns {missing[0]}={near}; its columns are {shown}")
    if not {"episode", "terminated", "truncated"} & set(found):
        raise DatasetError(
            f"{source}: expected a column that tells episodes apart, as in --columns episode=COLUMN; "
            f"its columns are {shown}"
        )
    return "your own" if given else name, found


def _fit(known: Mapping[str, str], columns: Sequence[str]) -> tuple[bool, int]:
    """Return how well a column map fits: frames and actions first, then the number of columns."""
    present = {role for role, column in known.items() if column in columns}
    return {"frame", "action"} <= present, len(present)
