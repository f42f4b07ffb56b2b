"""The Parquet file of one episode, which may come from anyone: its columns, its rows and their order are checked."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as arrow
import pyarrow.parquet as parquet
from datasets import Features, Image, List, Value
from pyarrow import Array, ArrowException, DictionaryArray, Table

from common.errors import UserError

FEATURES = Features(
    {
        "frame": Image(),
        "action": Value("int64"),
        "action_values": List(Value("float32")),
        "reward": Value("float32"),
        "episode": Value("int64"),
        "step": Value("int64"),
        "terminated": Value("bool"),
        "truncated": Value("bool"),
    }
)
MAX_ROWS = 10**6  # the longest game of the emulator has 108,000 frames
MAX_BYTES = 2**30  # of an episode; a frame of Atari takes about 2 kB as a PNG
MAX_COLUMNS = 20
PNG_HEAD = struct.Struct(">8s4x4sII")  # signature, length of the first chunk, its name, width, height


class DatasetError(UserError):
    """A dataset that is missing, damaged or of different data; the message names the file."""


def read_episode_file(file: Path, num_actions: int, seed: int) -> Table:
    """Return the rows of the whole episode of a seed; `DatasetError` names the file and what is wrong with it."""
    try:
        _check_size(file, num_actions)
        table = parquet.read_table(file, columns=list(FEATURES)).select(list(FEATURES)).cast(FEATURES.arrow_schema)
        _check_rows(table, num_actions)
        if (other := table["episode"][0].as_py()) != seed:
            raise DatasetError(f"it holds the episode of seed {other}; is it a copy?")
        frame_size(table["frame"].combine_chunks().field("bytes"))
    except (OSError, ValueError, KeyError, ArrowException, DatasetError) as error:
        raise DatasetError(f"{file} is damaged: {str(error).splitlines()[0]}") from error
    return table


def _check_size(file: Path, num_actions: int) -> None:
    """Refuse rows that take more memory than a game's; a value that is repeated takes a few bytes in a file."""
    head = parquet.read_metadata(file)
    if head.num_rows > MAX_ROWS:
        raise DatasetError(f"expected at most {MAX_ROWS:,} rows, got {head.num_rows:,}")
    groups = [head.row_group(number) for number in range(head.num_row_groups)]
    values = sum(group.column(number).num_values for group in groups for number in range(group.num_columns))
    if values > MAX_COLUMNS * max(1, num_actions) * max(1, head.num_rows):
        raise DatasetError(f"expected {num_actions} action_values in a row, got {values:,} values in all")
    if sum(group.total_byte_size for group in groups) > MAX_BYTES:
        raise DatasetError(f"expected at most {MAX_BYTES:,} bytes of rows")
    with parquet.ParquetFile(file, read_dictionary=["frame.bytes"]) as stream:
        frames = stream.read(columns=["frame.bytes"])["frame"]
    for pngs in (chunk.field("bytes") for chunk in frames.chunks):
        if not isinstance(pngs, DictionaryArray):
            raise DatasetError(f"expected bytes in frame, got {pngs.type}")
        lengths = arrow.binary_length(pngs.dictionary).take(pngs.indices)
        if (total := arrow.sum(lengths.cast("int64")).as_py() or 0) > MAX_BYTES:
            raise DatasetError(f"expected at most {MAX_BYTES:,} bytes of frames, got {total:,}")


def _check_rows(table: Table, num_actions: int) -> None:
    columns: dict[str, Any] = {name: table[name].combine_chunks() for name in FEATURES}
    values, frames = columns.pop("action_values"), columns.pop("frame").field("bytes")
    if missing := [name for name, column in {**columns, "frame": frames}.items() if column.null_count]:
        raise DatasetError(f"expected a value in every row, got none in {', '.join(missing)}")
    if not len(table):
        raise DatasetError("expected at least one row, got none")
    action, reward, episode, step, terminated, truncated = (column.to_numpy(False) for column in columns.values())
    if action.min() < 0 or action.max() >= num_actions:
        raise DatasetError(f"expected actions from 0 to {num_actions - 1}, got {action.min()} to {action.max()}")
    if not np.isfinite(reward).all():
        raise DatasetError("expected finite rewards, got NaN or infinity")
    lengths = set(arrow.list_value_length(values).to_pylist()) - {None, 0, num_actions}
    if lengths or values.flatten().null_count:
        raise DatasetError(f"expected {num_actions} action_values or none in a row, got {sorted(lengths) or 'null'}")
    last = np.arange(len(table)) == len(table) - 1
    if len(set(episode.tolist())) > 1 or not np.array_equal(step, np.arange(len(table))):
        raise DatasetError("expected the steps of one episode, in order from 0")
    if not np.array_equal(terminated != truncated, last) or (terminated & truncated).any():
        raise DatasetError("expected the last row, and no other, to be terminated or truncated")


def frame_size(pngs: Array, rows: Sequence[int] | np.ndarray | None = None) -> tuple[int, int]:
    """Return the rows and columns that the heads of all PNGs declare; `DatasetError` if they differ.

    Args:
        pngs: of bytes.
        rows: the numbers of the PNGs in messages, by default from 0.
    """
    heads = arrow.binary_slice(pngs, 0, PNG_HEAD.size)
    sizes: dict[tuple[int, int], int] = {}
    for head in heads.unique():
        index = heads.index(head).as_py()
        row, content = rows[index] if rows is not None else index, head.as_py()
        if len(content) < PNG_HEAD.size:
            raise DatasetError(f"row {row}: expected a frame as a PNG, got {len(content)} bytes")
        signature, chunk, width, height = PNG_HEAD.unpack(content)
        if signature != b"\x89PNG\r\n\x1a\n" or chunk != b"IHDR":
            raise DatasetError(f"row {row}: expected a frame as a PNG, got another format")
        sizes.setdefault((height, width), row)
    if len(sizes) != 1:
        found = ", ".join(f"{height} x {width} from row {row}" for (height, width), row in list(sizes.items())[:3])
        raise DatasetError(f"expected frames of one size, got {found}")
    return next(iter(sizes))
