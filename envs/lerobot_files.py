"""Datasets in LeRobot's layout, version 2: `meta/info.json`, a Parquet file and perhaps a video per episode.

    meta/info.json                                           features: columns, images and videos, with their shapes
    data/chunk-000/episode_000000.parquet                    rows; images are columns
    videos/chunk-000/observation.image/episode_000000.mp4    where frames are a video

Frames of a video are as lossy as it is. https://github.com/huggingface/lerobot
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
from pydantic import BaseModel

from common.errors import UserError, nearest
from common.json_file import checked, parse_json, read_json
from envs.column_map import COLUMN_MAPS
from envs.episode_file import DatasetError

INFO_FILE = Path("meta") / "info.json"
TASKS_FILE = Path("meta") / "tasks.jsonl"


class _Feature(BaseModel):
    dtype: str
    shape: list[int] | None = None


class _Info(BaseModel):
    """What is read of `meta/info.json`."""

    codebase_version: str
    features: dict[str, _Feature]


@dataclass(frozen=True)
class LeRobotLayout:
    """Where the frames of a dataset in LeRobot's layout are: in a column, or in videos of that name."""

    frame: str
    is_video: bool

    @property
    def patterns(self) -> tuple[str, ...]:
        """The files to download."""
        return ("data/*", f"videos/*/{self.frame}/*") if self.is_video else ("data/*",)


def read_layout(folder: Path, frame: str | None) -> LeRobotLayout:
    """Return where the frames are.

    Args:
        folder: of the dataset.
        frame: the feature that holds them, where there are several cameras.
    """
    file = folder / INFO_FILE
    try:
        info = checked(read_json(file), _Info, file)
    except UserError as error:
        raise DatasetError(str(error)) from error
    kinds = {name: feature.dtype for name, feature in info.features.items() if feature.dtype in ("image", "video")}
    if not kinds:
        raise DatasetError(f"{folder}: expected an image or a video among its features, got {', '.join(info.features)}")
    if frame is None and COLUMN_MAPS["lerobot"]["frame"] in kinds:
        frame = COLUMN_MAPS["lerobot"]["frame"]
    if frame is None and len(kinds) > 1:
        example = next(iter(kinds))
        raise DatasetError(f"{folder} has several images, {', '.join(kinds)}: choose one, --columns frame={example}")
    frame = frame or next(iter(kinds))
    if frame not in kinds:
        near = nearest(frame, kinds)
        raise DatasetError(
            f"{folder}: --columns frame={frame}: no such image; nearest: {near}; it has {', '.join(kinds)}"
        )
    is_video = kinds[frame] == "video"
    if is_video and not info.codebase_version.startswith("v2"):
        raise DatasetError(f"{folder}: expected a video per episode (LeRobot v2), got {info.codebase_version}")
    if Path(frame).name != frame:
        raise DatasetError(f"{file} is damaged: expected the name of a feature, got {frame}")
    return LeRobotLayout(frame, is_video)


def read_video(data: Path, frame: str) -> Iterator[np.ndarray]:
    """Yield the frames of the video beside an episode's Parquet file."""
    file = data.parents[2] / "videos" / data.parent.name / frame / f"{data.stem}.mp4"
    if not file.is_file():
        raise DatasetError(f"expected a video at {file}, found none")
    options: dict[str, Any] = {"plugin": "FFMPEG", "input_params": ["-f", "mp4"]}  # no playlist that names other files
    try:
        yield from imageio.imiter(file, **options)
    except Exception as error:  # of imageio or of its ffmpeg, which may lack the decoder
        reason = (" ".join(str(error).split()) or type(error).__name__)[-200:]
        raise DatasetError(f"{file} cannot be decoded by imageio's ffmpeg: {reason}") from error


def named_task(folder: Path) -> str | None:
    """Return the only task of a dataset, which may be a game's name."""
    file = folder / TASKS_FILE
    if not file.is_file() or file.stat().st_size > 2**16:
        return None
    lines = [line for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if len(lines) != 1:
        return None
    task = parse_json(lines[0].encode(), file)
    return str(task.get("task")) if isinstance(task, dict) else None
