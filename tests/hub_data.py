"""Small datasets in the layouts of the hub, made by the tests."""

import io
import json

import imageio.v3 as imageio
import numpy as np
from datasets import Dataset, Features, Image, Value
from PIL import Image as PilImage

LENGTHS = (5, 3)  # rows of the episodes


def make_frames(rows, size=(210, 160), seed=0):
    """Frames of four by four blocks, which JPEG and video keep nearly."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows, size[0] // 10, size[1] // 10, 3), dtype=np.uint8)
    return blocks.repeat(10, axis=1).repeat(10, axis=2)


def encode(frame, kind="JPEG", mode="RGB"):
    """The bytes of a picture."""
    buffer = io.BytesIO()
    PilImage.fromarray(frame).convert(mode).save(buffer, format=kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def as_images(frames, kind="JPEG", mode="RGB"):
    return [{"bytes": encode(frame, kind, mode), "path": None} for frame in frames]


def write_parquet(file, columns, images=()):
    """One file as the hub's own library writes it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kinds = {str: "string", float: "float32", bool: "bool", int: "int64", bytes: "binary"}
    features = {name: Image() if name in images else Value(kinds[type(values[0])]) for name, values in columns.items()}
    Dataset.from_dict(columns, features=Features(features)).to_parquet(str(file))
    return file


def write_atari_parquet(folder, splits=("pong",), kind="JPEG", size=(210, 160), mode="RGB", card=True, **columns):
    """The layout of https://huggingface.co/datasets/blanchon/atari_parquet: a split a game; `columns` replaces some."""
    rows = sum(LENGTHS)
    for seed, split in enumerate(splits):
        found = {
            "image": as_images(make_frames(rows, size, seed), kind, mode),
            "episode": [number for number, length in enumerate(LENGTHS) for _ in range(length)],
            "frame_index": [index for length in LENGTHS for index in range(length)],
            "action": [(3 * row) % 6 for row in range(rows)],
        }
        write_parquet(folder / "data" / f"{split}-00000-of-00001.parquet", found | columns, ("image",))
    if card:
        files = "".join(f"\n  - split: {split}\n    path: data/{split}-*" for split in splits)
        (folder / "README.md").write_text(
            f"---\nlicense: other\nconfigs:\n- config_name: default\n  data_files:{files}\n---\n\n# Atari (parquet)\n"
        )
    return folder


def write_lerobot(folder, frame="observation.image", dtype="image", version="v2.1", task="Pong", cameras=()):
    """LeRobot's layout of version 2: `meta`, a Parquet file an episode, and perhaps a video an episode."""
    (folder / "meta").mkdir(parents=True)
    features = {name: {"dtype": dtype, "shape": [210, 160, 3], "names": None} for name in (frame, *cameras)}
    features |= {"action": {"dtype": "int64", "shape": [1], "names": None}}
    info = {
        "codebase_version": version,
        "robot_type": None,
        "total_episodes": len(LENGTHS),
        "chunks_size": 1000,
        "fps": 15,
        "splits": {"train": f"0:{len(LENGTHS)}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features,
    }
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    (folder / "meta" / "tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": task}) + "\n")
    for episode, length in enumerate(LENGTHS):
        frames, last = make_frames(length, seed=episode), range(length)[-1]
        columns = {
            "action": [(row + episode) % 6 for row in range(length)],
            "next.reward": [float(row) for row in range(length)],
            "next.done": [row == last for row in range(length)],
            "timestamp": [row / 15 for row in range(length)],
            "frame_index": list(range(length)),
            "episode_index": [episode] * length,
            "index": list(range(length)),
            "task_index": [0] * length,
        }
        if dtype == "image":
            columns = {name: as_images(frames, "PNG") for name in (frame, *cameras)} | columns
        else:
            video = folder / "videos" / "chunk-000" / frame / f"episode_{episode:06d}.mp4"
            video.parent.mkdir(parents=True, exist_ok=True)
            settings = {"fps": 15, "codec": "libx264", "macro_block_size": 1, "output_params": ["-crf", "10"]}
            imageio.imwrite(video, frames, plugin="FFMPEG", **settings)
        images = (frame, *cameras) if dtype == "image" else ()
        write_parquet(folder / "data" / "chunk-000" / f"episode_{episode:06d}.parquet", columns, images)
    return folder
