"""Episodes are checked, and stored completely and without loss, or not at all."""

import io
import re

import numpy as np
import pyarrow.parquet as parquet
import pytest
from datasets import Dataset, load_dataset
from jaxtyping import UInt8
from PIL import Image

from common.errors import UserError
from envs.episodes import FEATURES, DatasetError, DatasetInfo, Episode, EpisodeDataset, EpisodeWriter, encode_png
from envs.protocol import MACHADO2018

NAMES = ("noop", "fire", "right")


def make_episode(seed, length=5, values=True, **changes):
    rng = np.random.default_rng(seed)
    fields = {
        "frames": rng.integers(0, 256, (length, 10, 8, 3), dtype=np.uint8),
        "actions": rng.integers(3, size=length),
        "rewards": rng.random(length).astype(np.float32),
        "action_values": rng.random((length, 3)).astype(np.float32) if values else None,
        "terminated": True,
        "truncated": False,
        "seed": seed,
    }
    return Episode(**{**fields, **changes})


def make_info(**changes):
    fields = {
        "game": "Carnival",
        "action_names": NAMES,
        "protocol": MACHADO2018,
        "agent": "random",
        "labels": None,
    }
    return DatasetInfo(**{**fields, "commit": "abc", "versions": {}, **changes})


@pytest.fixture
def stored(tmp_path):
    writer = EpisodeWriter(tmp_path / "set", make_info())
    episodes = [make_episode(1), make_episode(2, length=3, values=False)]
    for episode in episodes:
        writer.append(episode)
    return tmp_path / "set", episodes


def test_stored_episodes_are_read_back_bit_by_bit(stored):
    path, episodes = stored
    data = EpisodeDataset(path)
    assert len(data) == 8
    assert np.array_equal(np.stack([data.frame(i) for i in range(8)]), np.concatenate([e.frames for e in episodes]))
    for name, annotation in EpisodeDataset.__annotations__.items():
        assert isinstance(getattr(data, name), annotation)
    assert np.array_equal(data.actions, np.concatenate([e.actions for e in episodes]))
    assert np.array_equal(data.action_values[:5], episodes[0].action_values)
    assert np.isnan(data.action_values[5:]).all()
    assert data.scores == pytest.approx([e.score for e in episodes])
    assert data.info == make_info()


def test_history_repeats_the_first_frame_of_an_episode_and_never_crosses_into_another(stored):
    path, (first, second) = stored
    data = EpisodeDataset(path)
    assert isinstance(data.frames(4, 3), UInt8[np.ndarray, "3 10 8 3"])
    assert np.array_equal(data.frames(0, 2), first.frames[[0, 0]])
    assert np.array_equal(data.frames(4, 3), first.frames[[2, 3, 4]])
    assert np.array_equal(data.frames(5, 2), second.frames[[0, 0]])
    assert np.array_equal(data.frames(6, 2), second.frames[[0, 1]])


def test_hugging_face_datasets_loads_the_directory(stored, tmp_path):
    path, episodes = stored
    rows = load_dataset("parquet", data_files=str(path / "data" / "*.parquet"), cache_dir=tmp_path / "cache")["train"]
    assert len(rows) == 8
    assert np.array_equal(np.asarray(rows[0]["frame"]), episodes[0].frames[0])
    assert [row["terminated"] for row in rows] == [False] * 4 + [True] + [False] * 2 + [True]


def test_a_second_writer_adds_to_the_directory(stored):
    path, _ = stored
    writer = EpisodeWriter(path, make_info(commit="later"))
    assert writer.seeds() == {1, 2}
    writer.append(make_episode(3))
    assert len(EpisodeDataset(path)) == 13


def test_a_partly_written_episode_is_ignored(stored):
    path, _ = stored
    (path / "data" / ".episode-00000003.parquet.1").write_bytes(b"half")
    assert EpisodeDataset(path).seeds == [1, 2]


@pytest.mark.parametrize("changes", [{"game": "Pong"}, {"agent": "planner"}, {"action_names": ("noop",)}])
def test_episodes_of_different_data_are_refused(stored, changes):
    with pytest.raises(DatasetError, match="needs a directory of its own"):
        EpisodeWriter(stored[0], make_info(**changes))


def test_a_damaged_file_is_named(stored):
    path, _ = stored
    file = path / "data" / "episode-00000002.parquet"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DatasetError, match=r"episode-00000002\.parquet is damaged"):
        EpisodeDataset(path)


@pytest.mark.parametrize("name", ["episode-00000002 (copy).parquet", "Copy of episode-00000002.parquet"])
def test_a_stray_copy_of_an_episode_is_named_and_not_counted(stored, name):
    path, _ = stored
    (path / "data" / name).write_bytes((path / "data" / "episode-00000002.parquet").read_bytes())
    for use in (EpisodeDataset, lambda path: EpisodeWriter(path, make_info()).seeds()):
        with pytest.raises(DatasetError, match=rf"{re.escape(name)} is no episode of the dataset: .* is it a copy\?"):
            use(path)


def test_a_copy_under_the_name_of_another_episode_is_named(stored):
    path, _ = stored
    (path / "data" / "episode-00000009.parquet").write_bytes((path / "data" / "episode-00000002.parquet").read_bytes())
    with pytest.raises(DatasetError, match=r"09\.parquet is damaged: it holds the episode of seed 2; is it a copy\?"):
        EpisodeDataset(path)


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def with_second_frame(path, content):
    """Put other content into row 1 of the episode of seed 2, and return its file."""
    file = path / "data" / "episode-00000002.parquet"
    rows = parquet.read_table(file).to_pydict()
    rows["frame"][1] = {"bytes": content, "path": None}
    Dataset.from_dict(rows, features=FEATURES).to_parquet(str(file))
    return file


def test_a_frame_is_checked_as_any_picture_and_named_by_its_file_and_row(stored):
    path, _ = stored
    file = with_second_frame(path, encode_png(np.zeros((10, 8, 3), np.uint8))[:-40])
    data = EpisodeDataset(path)
    assert data.frame(5).shape == (10, 8, 3)
    with pytest.raises(DatasetError) as refused:
        data.frames(7, 2)
    assert str(refused.value).startswith(f"{file}: frame of row 1")
    assert "is not a PNG picture, or is damaged" in str(refused.value)
    assert "BytesIO" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GIF89a", "row 1: expected a frame as a PNG, got 6 bytes"),
        (png(Image.new("1", (12_000, 12_000))), "expected frames of one size, got 10 x 8 from row 0, 12000 x 12000"),
        (b"", "row 1: expected a frame as a PNG, got 0 bytes"),
    ],
    ids=["kind", "large", "empty"],
)
def test_a_frame_whose_head_is_not_as_the_others_is_refused_when_the_dataset_opens(stored, content, message):
    path, _ = stored
    file = with_second_frame(path, content)
    with pytest.raises(DatasetError, match=message) as refused:
        EpisodeDataset(path)
    assert str(refused.value).startswith(f"{file} is damaged")


def test_a_missing_dataset_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"with info\.json in it, got .*nowhere"):
        EpisodeDataset(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": np.zeros((5, 10, 8), np.uint8)}, r"expected frames uint8\[T, H, W, 3\]"),
        ({"frames": np.zeros((4, 10, 8, 3), np.uint8)}, "expected 5 frames and rewards, got 4"),
        ({"rewards": np.zeros(4, np.float32)}, "expected 5 frames and rewards"),
        ({"actions": np.zeros(5)}, r"expected actions int\[T\]"),
        ({"action_values": np.zeros((4, 3), np.float32)}, r"expected action_values float32\[5, A\]"),
        ({"truncated": True}, "either terminated or truncated"),
        ({"terminated": False}, "either terminated or truncated"),
    ],
)
def test_an_inconsistent_episode_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        make_episode(1, **changes)
