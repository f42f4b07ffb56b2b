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
from pyarrow.types import is_binary, is_large_binary, is_struct

from common.errors import UserError, nearest
from common.images import PNG_SIGNATURE, decode_picture
from common.text import printable
from envs.episode_file import MAX_BYTES, MAX_ROWS, DatasetError
from envs.episodes import Episode, encode_png
from envs.games import Game, find_game, screen_size
from envs.lerobot_files import read_video

BATCH = 64  # rows in memory, of an episode's columns before they are checked
MAX_PICTURE = 2**21  # bytes; a frame takes 100 kB without compression
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
        return [printable(name) for name in parquet.read_schema(file).names]
    except (OSError, ArrowException) as error:
        raise DatasetError(f"{file} is damaged: {str(error).splitlines()[0]}") from error


def different_values(file: Path, column: str) -> set[str]:
    """Return the different values in a text column of a Parquet file."""
    try:
        values = parquet.read_table(file, columns=[column])[column].unique().to_pylist()
    except (OSError, KeyError, ArrowException) as error:
        raise DatasetError(f"{file} is damaged: {str(error).splitlines()[0]}") from error
    return {printable(str(value)) for value in values}


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
    for file in rows.files:
        frames = read_video(file, rows.video) if rows.video else None
        count = 0
        for number, values in enumerate(_read_rows(file, rows)):
            if frames is not None:
                values["frame"] = next(frames, None)
            yield file, number, values
            count = number + 1
        if frames is not None and (over := sum(1 for _ in frames)):
            raise DatasetError(f"{file}: expected as many frames as rows, {count}, got {count + over} in its video")


def _read_rows(file: Path, rows: Rows) -> Iterator[dict[str, Any]]:
    columns = {role: column for role, column in rows.columns.items() if role != "frame" or not rows.video}
    frame = columns.get("frame")
    try:
        head = parquet.read_metadata(file)
        if any(head.row_group(one).total_byte_size > 2 * MAX_BYTES for one in range(head.num_row_groups)):
            raise DatasetError(f"expected at most {2 * MAX_BYTES:,} bytes in a group of rows")
        schema = parquet.read_schema(file)
        if missing := [column for column in columns.values() if column not in schema.names]:
            raise DatasetError(f"it has no column {printable(missing[0])}, unlike the first file")
        pictures = [_bytes_path(schema.field(frame))] if frame else []
        with parquet.ParquetFile(file, read_dictionary=pictures) as stream:
            for batch in stream.iter_batches(BATCH, columns=list(dict.fromkeys(columns.values()))):
                if frame:
                    _check_pictures(batch.column(frame))
                found = {column: batch.column(column).to_pylist() for column in set(columns.values())}
                for row in range(batch.num_rows):
                    yield {role: found[column][row] for role, column in columns.items()}
    except (OSError, ValueError, KeyError, ArrowException, DatasetError) as error:
        if isinstance(error, DatasetError) and str(file) in str(error):
            raise
        raise DatasetError(f"{file} is damaged: {(str(error).splitlines() or [type(error).__name__])[0]}") from error


def _bytes_path(field: Field) -> str:
    """Return the path of the bytes of a column of pictures."""
    if is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
        return f"{field.name}.bytes"
    if not is_binary(field.type) and not is_large_binary(field.type):
        raise DatasetError(f"expected pictures in column {printable(field.name)}, got {field.type}")
    return field.name


def _check_pictures(column: Array) -> None:
    """Refuse pictures larger than any frame; one that is repeated takes a few bytes until it is taken out."""
    column = column.field("bytes") if is_struct(column.type) else column
    lengths = arrow.binary_length(column.dictionary if isinstance(column, DictionaryArray) else column)
    if (longest := arrow.max(lengths).as_py() or 0) > MAX_PICTURE:
        raise DatasetError(f"expected at most {MAX_PICTURE:,} bytes of a frame, got {longest:,}")


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
