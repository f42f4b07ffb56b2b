"""Episodes out of the Parquet files of other people's datasets: every row is checked, and a fault names file and row.

Frames are kept as they are where they are PNGs in RGB; others, JPEG mostly, are decoded and stored without further
loss. An episode without an end of its own is truncated at its last row. Rewards that a dataset does not hold are 0.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as arrow
import pyarrow.parquet as parquet
from pyarrow import Array, ArrowException, DictionaryArray, Field
from pyarrow.parquet import FileMetaData
from pyarrow.types import is_binary, is_large_binary, is_large_string, is_string, is_struct

from common.errors import UserError, nearest
from common.images import PNG_SIGNATURE, decode_picture
from common.text import printable
from envs.episode_file import MAX_BYTES, MAX_ROWS, DatasetError
from envs.episodes import Episode, encode_png
from envs.games import Game, find_game, screen_size
from envs.lerobot_files import read_video

BATCH = 64  # rows in memory, of an episode's columns before they are checked
MAX_PICTURE = 2**21  # bytes; a frame takes 100 kB without compression
MAX_TEXT = 2**12  # bytes of a name or a path
MAX_VALUES = 32  # of a column in a row, as a list of one
TEXTS = (is_string, is_large_string, is_binary, is_large_binary)
LFS_POINTER = b"version https://git-lfs"
MAX_ID = 2**31 - 1  # an episode's number beyond it is not taken for a seed


@dataclass(frozen=True)
class Rows:
    """The rows of a dataset: its files, what their columns are, and of which game.

    `video` names the feature whose frames are in videos. Rows of other games are left out.
    """

    files: Sequence[Path]
    columns: Mapping[str, str]
    game: Game
    action_names: Sequence[str]
    video: str | None = None


@dataclass
class _Growing:
    """An episode whose rows are being read."""

    key: Any
    seed: int
    frames: list[bytes] = field(default_factory=list)
    actions: list[int] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    step: float | None = None
    size: int = 0
    terminated: bool = False

    def finish(self) -> Episode:
        return Episode(
            frames=self.frames,
            actions=np.array(self.actions, dtype=np.int64),
            rewards=np.array(self.rewards, dtype=np.float32),
            action_values=None,
            terminated=self.terminated,
            truncated=not self.terminated,
            seed=self.seed,
        )


def read_schema(file: Path) -> list[str]:
    """Return the names of a Parquet file's columns."""
    try:
        with file.open("rb") as stream:
            if stream.read(len(LFS_POINTER)) == LFS_POINTER:
                raise DatasetError(f"{file} is a pointer of Git LFS in place of the file: get it by git lfs pull")
        return [printable(name) for name in parquet.read_schema(file).names]
    except (OSError, ArrowException) as error:
        raise DatasetError(f"{file} is damaged: {str(error).splitlines()[0]}") from error


def different_values(file: Path, column: str) -> set[str]:
    """Return the different values in a text column of a Parquet file."""
    rows = (values["column"] for values in _read_rows(file, {"column": column}, None))
    return {printable(str(_scalar(value))) for value in rows}


def read_hub_episodes(rows: Rows) -> Iterator[Episode]:
    """Yield the episodes of a dataset, in the order of its files; `DatasetError` names the file and row of a fault."""
    read, seeds = _RowReader(rows), set[int]()
    growing: _Growing | None = None
    for file, number, values in _read_files(rows):
        if not read.is_of_game(file, number, values):
            continue
        key = _scalar(values.get("episode"))
        if growing is not None and key != growing.key:
            yield growing.finish()
            growing = None
        if growing is None:
            growing = _Growing(key, _new_seed(key, seeds, file, number))
        read.add(growing, file, number, values)
        if "episode" not in rows.columns and (growing.terminated or _scalar(values.get("truncated"))):
            yield growing.finish()
            growing = None
    if growing is not None:
        yield growing.finish()


def _new_seed(key: Any, seeds: set[int], file: Path, number: int) -> int:
    """Return an episode's number in the dataset, or that of its place among the others where it has no such one."""
    seed = key if isinstance(key, int) and 0 <= key <= MAX_ID else len(seeds)
    if seed in seeds:
        raise DatasetError(f"{file}, row {number}: expected the rows of an episode together, got more of {seed} before")
    seeds.add(seed)
    return seed


def _read_files(rows: Rows) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """Yield file, row and the value of each role, of all files."""
    columns = {role: column for role, column in rows.columns.items() if role != "frame" or not rows.video}
    for file in rows.files:
        frames = read_video(file, rows.video) if rows.video else None
        count = 0
        for number, values in enumerate(_read_rows(file, columns, columns.get("frame"))):
            if frames is not None:
                values["frame"] = next(frames, None)
            yield file, number, values
            count = number + 1
        if frames is not None and (over := sum(1 for _ in frames)):
            raise DatasetError(f"{file}: expected as many frames as rows, {count}, got {count + over} in its video")


def _read_rows(file: Path, columns: Mapping[str, str], frame: str | None) -> Iterator[dict[str, Any]]:
    """Yield the value of each role in every row; `frame` names the column of pictures."""
    names = list(dict.fromkeys(columns.values()))
    try:
        schema = parquet.read_schema(file)
        if missing := [name for name in names if name not in schema.names]:
            raise DatasetError(f"it has no column {printable(missing[0])}, unlike the first file")
        _check_size(parquet.read_metadata(file), names)
        if frame:
            _check_type(schema.field(frame))
        dictionaries = [path for name in names for path in _texts(schema.field(name))]
        with parquet.ParquetFile(file, read_dictionary=dictionaries) as stream:
            for batch in stream.iter_batches(BATCH, columns=names):
                for name in names:
                    _check_lengths(batch.column(name), MAX_PICTURE if name == frame else MAX_TEXT)
                found = {name: batch.column(name).to_pylist() for name in names}
                for row in range(batch.num_rows):
                    yield {role: found[column][row] for role, column in columns.items()}
    except (OSError, ValueError, KeyError, ArrowException, DatasetError) as error:
        raise DatasetError(f"{file} is damaged: {(str(error).splitlines() or [type(error).__name__])[0]}") from error


def _check_size(head: FileMetaData, names: Sequence[str]) -> None:
    """Refuse columns that take more memory than a game's; a value that is repeated takes a few bytes in a file."""
    for group in map(head.row_group, range(head.num_row_groups)):
        if group.total_byte_size > 2 * MAX_BYTES:
            raise DatasetError(f"expected at most {2 * MAX_BYTES:,} bytes in a group of rows")
        for column in map(group.column, range(group.num_columns)):
            named = [name for name in names if f"{column.path_in_schema}.".startswith(f"{name}.")]
            if named and column.num_values > MAX_VALUES * group.num_rows:
                raise DatasetError(f"expected one value in a row of {printable(named[0])}, got {column.num_values:,}")


def _check_type(field: Field) -> None:
    is_picture = is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    if not is_picture and not is_binary(field.type) and not is_large_binary(field.type):
        raise DatasetError(f"expected pictures in column {printable(field.name)}, got {field.type}")


def _texts(field: Field) -> list[str]:
    """Return the paths of a column's texts and bytes; read as dictionaries they take little memory."""
    if is_struct(field.type):
        return [f"{field.name}.{part.name}" for part in field.type if any(is_text(part.type) for is_text in TEXTS)]
    return [field.name] if any(is_text(field.type) for is_text in TEXTS) else []


def _check_lengths(column: Array, longest: int) -> None:
    """Refuse texts and bytes longer than any frame or name."""
    for part in column.flatten() if is_struct(column.type) else [column]:
        if isinstance(part, DictionaryArray):
            length = arrow.max(arrow.binary_length(part.dictionary)).as_py() or 0
            if length > longest:
                raise DatasetError(f"expected at most {longest:,} bytes in a value, got {length:,}")


class _RowReader:
    """Checks the values of rows and adds them to episodes."""

    def __init__(self, rows: Rows):
        self.rows, self.size = rows, screen_size(rows.game)
        self.actions = {re.sub("[^a-z]", "", name): index for index, name in enumerate(rows.action_names)}
        self.games: dict[str, str | None] = {}

    def is_of_game(self, file: Path, number: int, values: Mapping[str, Any]) -> bool:
        """Return whether a row is of the game that is read."""
        if "game" not in values:
            return True
        name = str(values["game"])
        if name not in self.games:
            try:
                self.games[name] = find_game(name).name
            except UserError:
                self.games[name] = None  # another game than that which is asked for
        return self.games[name] == self.rows.game.name

    def add(self, growing: _Growing, file: Path, number: int, values: Mapping[str, Any]) -> None:
        """Add a row to its episode."""
        try:
            png = self._png(values["frame"])
            growing.actions.append(self._action(values["action"]))
            growing.rewards.append(self._number(values.get("reward", 0.0), "a finite reward"))
            if "step" in values:
                step = self._number(values["step"], "the number of a step")
                if growing.step is not None and step <= growing.step:
                    raise DatasetError(f"expected an episode's steps in order, got {step:g} after {growing.step:g}")
                growing.step = step
        except UserError as error:
            raise DatasetError(f"{file}, row {number}: {error}") from error
        growing.frames.append(png)
        growing.size += len(png)
        growing.terminated = bool(_scalar(values.get("terminated")))
        if growing.size > MAX_BYTES or len(growing.frames) > MAX_ROWS:
            raise DatasetError(
                f"{file}, row {number}: expected episodes of at most {MAX_ROWS:,} rows and {MAX_BYTES:,} bytes"
            )

    def _png(self, frame: Any) -> bytes:
        """Return a frame as a PNG, unchanged if it is one."""
        height, width = self.size
        expected = f"expected frames of {height} x {width} in RGB"
        if isinstance(frame, np.ndarray):
            if frame.shape != (height, width, 3):
                raise DatasetError(f"{expected}, got {' x '.join(map(str, frame.shape))}")
            return encode_png(frame)
        content = frame.get("bytes") if isinstance(frame, dict) else frame
        if not isinstance(content, bytes):
            got = "none" if frame is None else "a path" if isinstance(frame, dict) else type(frame).__name__
            raise DatasetError(f"{expected} as the bytes of a picture, got {got}")
        picture = decode_picture(content, "the frame", upright=False, max_pixels=4 * height * width)
        if picture.size != (width, height) or picture.mode not in ("RGB", "P"):
            raise DatasetError(f"{expected}, got {picture.height} x {picture.width} in {picture.mode}")
        if content.startswith(PNG_SIGNATURE) and picture.mode == "RGB":
            return content
        return encode_png(np.asarray(picture.convert("RGB")))

    def _action(self, value: Any) -> int:
        value, names = _scalar(value), self.rows.action_names
        if isinstance(value, str):
            key = re.sub("[^a-z]", "", value.lower())
            if key not in self.actions:
                raise DatasetError(
                    f"expected an action of {self.rows.game.name}, got {printable(value)!r}; nearest: "
                    f"{names[self.actions[nearest(key, self.actions)]]}"
                )
            return self.actions[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
            raise DatasetError(f"expected one action, a number from 0 to {len(names) - 1} or a name, got {value!r:.60}")
        if not 0 <= value < len(names):
            hint = "; are these numbers of all 18 actions (--action-ids full)?" if 0 <= value < 18 else ""
            raise DatasetError(
                f"expected an action of {self.rows.game.name}, 0 to {len(names) - 1} ({', '.join(names)}), "
                f"got {value:g}{hint}"
            )
        return int(value)

    @staticmethod
    def _number(value: Any, expected: str) -> float:
        value = _scalar(value)
        if not isinstance(value, int | float) or not np.isfinite(value):
            raise DatasetError(f"expected {expected}, got {value!r:.60}")
        return float(value)


def _scalar(value: Any) -> Any:
    """Return the value of a list of one, as LeRobot stores numbers."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def picture_format(rows: Rows) -> str:
    """Return how a dataset stores its first frame: PNG, JPEG or video."""
    if rows.video:
        return "video"
    for _, _, values in itertools.islice(_read_files(rows), 1):
        frame = values["frame"]
        content = frame.get("bytes") if isinstance(frame, dict) else frame
        return "PNG" if isinstance(content, bytes) and content.startswith(PNG_SIGNATURE) else "JPEG"
    raise DatasetError(f"{rows.files[0]}: expected at least one row, got none")
