"""Whole games on disk: a Hugging Face `datasets` directory of lossless frames, one Parquet file a game.

A row is a decision: `frame` (the PNG of the frame seen before acting), `action`, `action_values` (a teacher's value
of every action, where there was a teacher; NaN where it was not asked), `reward`, `episode` (the game's seed), `step`,
`terminated`, `truncated`. `info.json` beside the data tells game, actions, protocol, player and teacher.
Games are added one by one, each atomically: what is on disk is always whole games.
"""

import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Picture

from common.errors import UserError
from common.files import atomic_file, write_text_atomically
from envs.protocol import Protocol

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
INFO = "info.json"


class DatasetError(UserError):
    """A dataset that is missing, damaged or of another kind; the message names the file."""


@dataclass(frozen=True)
class Episode:
    """One whole game of T decisions.

    frames: uint8[T, H, W, 3], frame t is the one seen before action t; actions: int[T]; rewards: float32[T];
    action_values: float32[T, A] or None; terminated, truncated: how it ended; seed: the emulator's.
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    action_values: np.ndarray | None
    terminated: bool
    truncated: bool
    seed: int

    def __post_init__(self) -> None:
        frames, length = self.frames, len(self.actions)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            raise UserError(f"expected frames uint8[T, H, W, 3], got {frames.dtype}{list(frames.shape)}")
        if not length:
            raise UserError("expected an episode of at least one decision, got none")
        if self.actions.shape != (length,) or not np.issubdtype(self.actions.dtype, np.integer):
            raise UserError(f"expected actions int[T], got {self.actions.dtype}{list(self.actions.shape)}")
        if len(frames) != length or self.rewards.shape != (length,):
            raise UserError(f"expected {length} frames and rewards, got {len(frames)} and {len(self.rewards)}")
        values = self.action_values
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
    """What holds for every game of a dataset; `labels` names the teacher, if there was one."""

    game: str
    action_names: tuple[str, ...]
    protocol: Protocol
    agent: str
    labels: str | None
    commit: str
    versions: dict[str, str]

    def to_dict(self) -> dict:
        """Return plain values, for JSON."""
        return {
            **vars(self),
            "action_names": list(self.action_names),
            "protocol": self.protocol.to_dict(),
        }

    @classmethod
    def from_dict(cls, fields: dict) -> "DatasetInfo":
        """Return the info of `to_dict`."""
        names, protocol = tuple(fields["action_names"]), Protocol.from_dict(fields["protocol"])
        return cls(**{**fields, "action_names": names, "protocol": protocol})

    def same_data(self, other: "DatasetInfo") -> bool:
        """Whether games of both may lie in one dataset; commit and versions may differ."""
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("game", "action_names", "protocol", "agent", "labels")
        )


def encode_png(frame: np.ndarray) -> bytes:
    """Return a frame uint8[H, W, 3] as PNG; Atari frames have few colours and shrink to about 2 kB."""
    buffer = io.BytesIO()
    Picture.fromarray(frame).save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def decode_png(png: bytes) -> np.ndarray:
    """Return uint8[H, W, 3]."""
    return np.asarray(Picture.open(io.BytesIO(png)).convert("RGB"))


def read_info(path: Path) -> DatasetInfo:
    """Return a dataset's info; `DatasetError` names what is missing or damaged."""
    file = Path(path) / INFO
    if not file.is_file():
        raise DatasetError(f"expected a dataset directory with {INFO} in it, got {path}")
    try:
        return DatasetInfo.from_dict(json.loads(file.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{file} is damaged: {error}") from error


class EpisodeWriter:
    """Adds games to a dataset directory, made if it is not there; several writers may add to one directory."""

    def __init__(self, path: Path, info: DatasetInfo):
        self.path, self.info = Path(path), info
        self._data = self.path / "data"
        if (self.path / INFO).exists():
            there = read_info(self.path)
            if not there.same_data(info):
                raise DatasetError(
                    f"{path} holds {there.game} played by {there.agent} under {there.protocol.name}; "
                    f"{info.game} played by {info.agent} under {info.protocol.name} needs a directory of its own"
                )
        self._data.mkdir(parents=True, exist_ok=True)
        if not (self.path / INFO).exists():
            write_text_atomically(self.path / INFO, json.dumps(info.to_dict(), indent=1))

    def seeds(self) -> set[int]:
        """Return the seeds of the games that are there."""
        return {int(file.stem.split("-")[1]) for file in self._data.glob("episode-*.parquet")}

    def append(self, episode: Episode) -> Path:
        """Store one game; return its file."""
        length = len(episode.actions)
        values = episode.action_values
        if values is not None and values.shape[1] != len(self.info.action_names):
            raise UserError(f"expected {len(self.info.action_names)} action values a row, got {values.shape[1]}")
        last = np.arange(length) == length - 1
        rows = {
            "frame": [{"bytes": encode_png(frame), "path": None} for frame in episode.frames],
            "action": episode.actions.tolist(),
            "action_values": [None] * length if values is None else values.tolist(),
            "reward": episode.rewards.tolist(),
            "episode": [episode.seed] * length,
            "step": list(range(length)),
            "terminated": (last & episode.terminated).tolist(),
            "truncated": (last & episode.truncated).tolist(),
        }
        file = self._data / f"episode-{episode.seed:08d}.parquet"
        with atomic_file(file) as temporary:
            Dataset.from_dict(rows, features=FEATURES).to_parquet(str(temporary))
        return file


class EpisodeDataset:
    """Reads a dataset directory frame by frame, at random.

    The PNGs stay compressed in memory, about 2 kB a decision. Rows are ordered by game (seed) and step.

    actions: int64[N]; rewards: float32[N]; action_values: float32[N, A], NaN in rows without; starts: int64[N], the
    row at which each row's game began.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.info = read_info(self.path)
        files = sorted((self.path / "data").glob("episode-*.parquet"))
        if not files:
            raise DatasetError(f"{self.path} holds no finished game")
        tables = [self._read(file) for file in files]
        lengths = [table.num_rows for table in tables]
        first = np.cumsum([0, *lengths[:-1]])
        self._pngs = [png for table in tables for png in table["frame"].combine_chunks().field("bytes").to_pylist()]
        self.actions = np.concatenate([table["action"].to_numpy() for table in tables])
        self.rewards = np.concatenate([table["reward"].to_numpy() for table in tables])
        self.action_values = np.concatenate([self._values(table) for table in tables])
        self.starts = np.repeat(first, lengths)
        self.seeds = [int(table["episode"][0].as_py()) for table in tables]
        self._lengths = lengths

    @staticmethod
    def _read(file: Path):
        try:
            return parquet.read_table(file)
        except (OSError, ValueError) as error:
            raise DatasetError(f"{file} is damaged: {str(error).splitlines()[0]}") from error

    def _values(self, table) -> np.ndarray:
        width = len(self.info.action_names)
        column = table["action_values"].to_pylist()
        missing = [np.nan] * width
        return np.array([missing if row is None else row for row in column], dtype=np.float32).reshape(-1, width)

    def __len__(self) -> int:
        return len(self._pngs)

    @cached_property
    def scores(self) -> list[float]:
        """The score of each game, in order."""
        ends = np.cumsum(self._lengths)
        return [float(self.rewards[end - n : end].sum()) for end, n in zip(ends, self._lengths, strict=True)]

    def frame(self, row: int) -> np.ndarray:
        """Return the frame of a row, uint8[H, W, 3]."""
        return decode_png(self._pngs[row])

    def frames(self, row: int, history: int) -> np.ndarray:
        """Return the last `history` frames up to a row, oldest first, uint8[history, H, W, 3].

        Before the start of a game its first frame is repeated, as a player's memory does.
        """
        first = self.starts[row]
        return np.stack([self.frame(max(first, row - back)) for back in range(history - 1, -1, -1)])
