"""Episodes on disk: a Hugging Face `datasets` directory of lossless frames, one Parquet file per episode.

A row is an agent step: `frame` (the PNG of the observation), `action`, `action_values` (an expert's value of every
action; NaN where it did not label the step), `reward`, `episode` (the emulator's seed), `step`, `terminated`,
`truncated`. `info.json` beside the data names the game, its actions, the protocol, the agent and the expert.
Episodes are added atomically, so that a directory holds complete episodes only.
"""

import dataclasses
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow.compute as arrow
from datasets import Dataset
from jaxtyping import Bool, Float32, Int, Int64, UInt8
from PIL import Image as PilImage
from pyarrow import ChunkedArray, chunked_array, concat_arrays, concat_tables
from pydantic import ConfigDict, Field

from common.errors import UserError
from common.files import atomic_file, write_text_atomically
from common.images import ImageError, decode_rgb
from common.json_file import checked, read_json
from envs.episode_cache import read_episodes
from envs.episode_file import FEATURES, DatasetError, frame_size
from envs.protocol import Protocol

INFO = "info.json"
EPISODE_FILE = re.compile(r"episode-(\d{8,})\.parquet")


@dataclass(frozen=True)
class Episode:
    """One complete episode; `frames[t]` is the observation before `actions[t]`, `seed` the emulator's.

    Frames may be the PNGs of `encode_png`, which take a fiftieth of the memory.
    """

    frames: UInt8[np.ndarray, "steps height width 3"] | Sequence[bytes]
    actions: Int[np.ndarray, " steps"]
    rewards: Float32[np.ndarray, " steps"]
    action_values: Float32[np.ndarray, "steps actions"] | None
    terminated: bool
    truncated: bool
    seed: int

    def __post_init__(self) -> None:
        frames, actions, values, length = self.frames, self.actions, self.action_values, len(self.actions)
        if isinstance(frames, np.ndarray) and (frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3):
            raise UserError(f"expected frames uint8[T, H, W, 3], got {frames.dtype}{list(frames.shape)}")
        if not length:
            raise UserError("expected an episode of at least one step, got none")
        if actions.shape != (length,) or not np.issubdtype(actions.dtype, np.integer):
            raise UserError(f"expected actions int[T], got {actions.dtype}{list(actions.shape)}")
        if len(frames) != length or self.rewards.shape != (length,):
            raise UserError(f"expected {length} frames and rewards, got {len(frames)} and {len(self.rewards)}")
        if values is not None and (values.ndim != 2 or len(values) != length):
            raise UserError(f"expected action_values float32[{length}, A], got {list(values.shape)}")
        if self.terminated == self.truncated:
            raise UserError("expected an episode that is either terminated or truncated")

    @property
    def score(self) -> float:
        """The sum of the rewards."""
        return float(self.rewards.sum())


@dataclass(frozen=True)
class DatasetInfo:
    """The properties shared by all episodes of a dataset; `labels` names the expert, if there is one."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # checks the file of a dataset

    game: str
    action_names: Annotated[tuple[str, ...], Field(min_length=1, max_length=18)]
    protocol: Protocol
    agent: str
    labels: str | None
    commit: str
    versions: dict[str, str]
    command: str = ""  # that recorded the first episode

    @property
    def is_scored(self) -> bool:
        """Whether the rewards are the game's; those of other people's data may be missing, and are 0 then."""
        return self.versions.get("rewards") != "unknown"

    def to_dict(self) -> dict:
        """Return plain values, for JSON."""
        return dataclasses.asdict(self) | {"action_names": list(self.action_names)}

    def same_data(self, other: "DatasetInfo") -> bool:
        """Return whether episodes of both may share a dataset; commit, versions and command may differ."""
        return self == dataclasses.replace(other, commit=self.commit, versions=self.versions, command=self.command)


def encode_png(frame: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """Return a frame as PNG; Atari frames have few colours and compress to about 2 kB."""
    buffer = io.BytesIO()
    PilImage.fromarray(frame).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def _as_png(frame: np.ndarray | bytes) -> bytes:
    return frame if isinstance(frame, bytes) else encode_png(frame)


def read_info(path: Path) -> DatasetInfo:
    """Return a dataset's info; `DatasetError` names what is missing or damaged."""
    file = Path(path) / INFO
    if not file.is_file():
        raise DatasetError(f"expected a dataset directory with {INFO} in it, got {path}")
    try:
        return checked(read_json(file), DatasetInfo, file)
    except UserError as error:
        raise DatasetError(str(error)) from error


def episode_name(seed: int) -> str:
    """Return the name of an episode's file."""
    return f"episode-{seed:08d}.parquet"


def episode_files(path: Path) -> dict[int, Path]:
    """Return the files of a dataset's episodes by seed; `DatasetError` names one that is none, as a copy."""
    found = {}
    for file in (path / "data").glob("*.parquet"):
        if match := EPISODE_FILE.fullmatch(file.name):
            found[int(match[1])] = file
        elif not file.name.startswith("."):  # one that is not complete yet
            raise DatasetError(f"{file} is no episode of the dataset: expected episode-SEED.parquet; is it a copy?")
    return dict(sorted(found.items()))


class EpisodeWriter:
    """Adds episodes to a dataset directory, new or existing; several writers may share a directory."""

    def __init__(self, path: Path, info: DatasetInfo):
        self.path, self.info = Path(path), info
        self._data = self.path / "data"
        if not (self.path / INFO).exists():
            write_text_atomically(self.path / INFO, json.dumps(info.to_dict(), indent=1))
        existing = read_info(self.path)
        if not existing.same_data(info):
            raise DatasetError(
                f"{path} holds {existing.game} played by {existing.agent} under {existing.protocol.name}; "
                f"{info.game} played by {info.agent} under {info.protocol.name} needs a directory of its own"
            )
        self._data.mkdir(exist_ok=True)

    def seeds(self) -> set[int]:
        """Return the seeds of the stored episodes."""
        return set(episode_files(self.path))

    def append(self, episode: Episode) -> Path:
        """Store one episode; return its file."""
        length, values = len(episode.actions), episode.action_values
        if values is not None and values.shape[1] != len(self.info.action_names):
            raise UserError(f"expected {len(self.info.action_names)} action values per row, got {values.shape[1]}")
        last = np.arange(length) == length - 1
        rows = {
            "frame": [{"bytes": png, "path": None} for png in map(_as_png, episode.frames)],
            "action": episode.actions.tolist(),
            "action_values": [None] * length if values is None else values.tolist(),
            "reward": episode.rewards.tolist(),
            "episode": [episode.seed] * length,
            "step": list(range(length)),
            "terminated": (last & episode.terminated).tolist(),
            "truncated": (last & episode.truncated).tolist(),
        }
        file = self._data / episode_name(episode.seed)
        with atomic_file(file) as temporary:
            Dataset.from_dict(rows, features=FEATURES).to_parquet(str(temporary))
        return file


class EpisodeDataset:
    """Random access to the rows of a dataset directory, ordered by episode (seed) and step.

    The frames are PNGs, about 2 kB per row, in files that are mapped into memory (`envs.episode_cache`); episodes that
    are added later are not seen. `action_values` is NaN in unlabelled rows; `starts` holds the first row of each row's
    episode.
    """

    actions: Int64[np.ndarray, " rows"]
    rewards: Float32[np.ndarray, " rows"]
    action_values: Float32[np.ndarray, "rows actions"]
    terminated: Bool[np.ndarray, " rows"]
    truncated: Bool[np.ndarray, " rows"]
    starts: Int64[np.ndarray, " rows"]

    def __init__(self, path: Path, seeds: Sequence[int] | None = None):
        """Open a dataset; with `seeds`, these episodes alone."""
        self.path = Path(path)
        self.info = read_info(self.path)
        files = episode_files(self.path)
        if seeds is not None:
            files = {seed: self.path / "data" / episode_name(seed) for seed in seeds}
        if not files:
            raise DatasetError(f"{self.path} holds no complete episode")
        self._files, self.seeds = list(files.values()), list(files)
        tables = read_episodes(self.path, files, len(self.info.action_names))
        self._first = np.cumsum([0, *(table.num_rows for table in tables[:-1])])
        self._pngs = chunked_array([chunk.field("bytes") for table in tables for chunk in table["frame"].chunks])
        try:
            frame_size(concat_arrays([table["frame"].chunk(0).field("bytes")[:1] for table in tables]), self._first)
        except DatasetError as error:
            raise DatasetError(f"{self.path} is damaged: {error}") from error
        table = concat_tables(tables)
        self.actions, self.rewards, self.terminated, self.truncated = (
            table[name].to_numpy() for name in ("action", "reward", "terminated", "truncated")
        )
        self.action_values = _action_values(table["action_values"], len(self.info.action_names))
        self.starts = np.repeat(self._first, [len(one) for one in tables])

    def __reduce__(self) -> tuple[type, tuple[Path, list[int]]]:
        """Let another process open the same episodes, instead of a copy of all frames."""
        return type(self), (self.path, self.seeds)

    def __len__(self) -> int:
        return len(self._pngs)

    @cached_property
    def scores(self) -> list[float]:
        """The sum of rewards of each episode, in the order of `seeds`."""
        return [float(rewards.sum()) for rewards in np.split(self.rewards, self._first[1:])]

    def frame(self, row: int) -> UInt8[np.ndarray, "height width 3"]:
        """Return the frame of a row."""
        try:
            return decode_rgb(
                self._pngs[row].as_py(), f"frame of row {row - self.starts[row]}", ("PNG",), upright=False
            )
        except ImageError as error:
            episode = int(np.searchsorted(self._first, row, side="right")) - 1
            raise DatasetError(f"{self._files[episode]}: {error}") from error

    def frames(self, row: int, history: int) -> UInt8[np.ndarray, "history height width 3"]:
        """Return the last `history` frames up to a row, oldest first; the first frame of an episode is repeated."""
        return np.stack([self.frame(max(self.starts[row], row - back)) for back in range(history - 1, -1, -1)])


def _action_values(column: ChunkedArray, num_actions: int) -> Float32[np.ndarray, "rows actions"]:
    values = np.full((len(column), num_actions), np.nan, np.float32)
    labelled = arrow.fill_null(arrow.list_value_length(column), 0).to_numpy() > 0
    values[labelled] = arrow.list_flatten(column).to_numpy().reshape(-1, num_actions)
    return values
