"""The rows of a dataset's episodes, mapped into memory: Parquet files that were checked once, kept as Arrow files.

The Arrow files lie in the cache of `datasets` (`HF_DATASETS_CACHE`), so that nothing of them is among a user's files;
frames in them are read from the disk when they are asked for, and all processes share them. A file is of one state of
its Parquet file: any other size, time or place of that file makes it again. Whatever cannot be kept stays in memory.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow
from datasets import config
from filelock import FileLock
from pyarrow import ArrowException, Table
from tqdm import tqdm

from common.files import atomic_file
from common.text import printable
from envs.episode_file import FEATURES, DatasetError, read_episode_file

FORMAT = 1  # of the Arrow files; another one makes them again
SOURCE = b"pvplay.source"  # the key of the Parquet file's state
SETTLED_NS = 2 * 10**9  # a file that changed later may change again without another time
MIN_FREE = 2**30  # bytes of the disk that are left to others
PATIENCE = 5  # seconds without a progress bar
SCHEMA = FEATURES.arrow_schema


def read_episodes(dataset: Path, files: Mapping[int, Path], num_actions: int) -> list[Table]:
    """Return the rows of every episode, in the order of `files`; `DatasetError` names a file that is damaged.

    Args:
        dataset: the directory of the episodes.
        files: the Parquet file of each seed.
        num_actions: of the game.
    """
    folder = cache_folder(dataset)
    found = {seed: _map(_arrow_file(folder, file), _state(file, num_actions)) for seed, file in files.items()}
    tables = {seed: table for seed, table in found.items() if table is not None}
    missing = {seed: file for seed, file in files.items() if seed not in tables}
    if missing:
        try:
            _keep(folder, missing, num_actions, tables)
        except (OSError, NotImplementedError) as error:  # the latter where a disk knows no locks
            reason = getattr(error, "strerror", None) or error
            print(printable(f"{dataset}: frames stay in memory, {folder} cannot be written: {reason}"), file=sys.stderr)
    return [
        tables[seed] if seed in tables else read_episode_file(file, num_actions, seed) for seed, file in files.items()
    ]


def cache_folder(dataset: Path) -> Path:
    """Return the folder of a dataset's Arrow files, the same for every name of the dataset."""
    name = hashlib.sha256(os.fsencode(dataset.resolve())).hexdigest()[:32]
    return Path(config.HF_DATASETS_CACHE) / "pvplay" / name


def _keep(folder: Path, missing: Mapping[int, Path], num_actions: int, tables: dict[int, Table]) -> None:
    """Make the Arrow files that are missing, and add their rows to `tables`; one process at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if shutil.disk_usage(folder).free < MIN_FREE + sum(file.stat().st_size for file in missing.values()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        progress = tqdm(missing.items(), "episodes checked once", unit="", delay=PATIENCE, leave=False)
        for seed, file in progress:
            kept, state = _arrow_file(folder, file), _state(file, num_actions)
            if (table := _map(kept, state)) is None:  # no other process made it meanwhile
                settled = _is_settled(file)
                table = read_episode_file(file, num_actions, seed)
                if settled:
                    _write(table, kept, state)
                    table = _map(kept, state) or table
            tables[seed] = table
        data = next(iter(missing.values())).parent
        for kept in folder.glob("*.arrow"):  # of a removed episode, or left by a killed process
            if not (data / f"{kept.stem}.parquet").exists():
                kept.unlink()


def _arrow_file(folder: Path, file: Path) -> Path:
    return folder / f"{file.stem}.arrow"


def _state(file: Path, num_actions: int) -> bytes:
    """Return what differs where a file's rows, or what they are checked for, may differ."""
    try:
        found = file.stat()
    except OSError as error:
        raise DatasetError(f"{file} cannot be read: {error.strerror}") from error
    state = [FORMAT, num_actions, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    return json.dumps(state).encode()


def _is_settled(file: Path) -> bool:
    return time.time_ns() - file.stat().st_ctime_ns > SETTLED_NS


def _map(kept: Path, state: bytes) -> Table | None:
    """Return the rows of an Arrow file; None if it is missing, of another state of its Parquet file, or damaged."""
    try:
        with pyarrow.memory_map(str(kept)) as source, pyarrow.ipc.open_file(source) as reader:
            if (reader.schema.metadata or {}).get(SOURCE) != state or not reader.schema.equals(SCHEMA):
                return None
            table = reader.read_all()
        table.validate(full=True)
    except (OSError, ArrowException):
        return None
    return table


def _write(table: Table, kept: Path, state: bytes) -> None:
    table = table.combine_chunks().replace_schema_metadata({SOURCE: state})
    with atomic_file(kept) as temporary, pyarrow.ipc.new_file(str(temporary), table.schema) as writer:
        writer.write_table(table)
