"""A dataset from anyone holds whole games of one size, or is refused by file in one line."""

import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from common.errors import UserError
from envs.episode_file import DatasetError, read_episode_file
from envs.episodes import INFO, DatasetInfo, Episode, EpisodeDataset, EpisodeWriter, read_info
from envs.protocol import MACHADO2018

NAMES = ("noop", "fire", "right")
LENGTH = 4


def make_episode(seed, height=10):
    rng = np.random.default_rng(seed)
    return Episode(
        frames=rng.integers(0, 256, (LENGTH, height, 8, 3), dtype=np.uint8),
        actions=rng.integers(3, size=LENGTH),
        rewards=rng.random(LENGTH).astype(np.float32),
        action_values=rng.random((LENGTH, 3)).astype(np.float32),
        terminated=True,
        truncated=False,
        seed=seed,
    )


@pytest.fixture
def stored(tmp_path):
    """A dataset of one episode."""
    info = DatasetInfo("Carnival", NAMES, MACHADO2018, "random", None, "abc", {})
    EpisodeWriter(tmp_path / "set", info).append(make_episode(1))
    return tmp_path / "set"


def rewrite(stored, **columns):
    """Replace whole columns of the episode, as plain values."""
    (file,) = stored.glob("data/*.parquet")
    rows = pyarrow.parquet.read_table(file).to_pylist()
    for name, values in columns.items():
        rows = [{**row, name: value} for row, value in zip(rows, values, strict=True)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file


def test_a_dataset_that_is_written_by_others_in_the_same_form_is_read(stored):
    before = EpisodeDataset(stored).action_values
    rewrite(stored, action_values=[[1.0, 2.0, 3.0], None, [], [1.0, 2.0, 3.0]])
    data = EpisodeDataset(stored)
    assert np.isnan(data.action_values).all(axis=1).tolist() == [False, True, True, False]
    assert before.shape == data.action_values.shape


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"action": [0, 1, 2, 3]}, "expected actions from 0 to 2, got 0 to 3"),
        ({"action": [0, -1, 2, 2]}, "expected actions from 0 to 2, got -1 to 2"),
        ({"action": [0, None, 2, 2]}, "expected a value in every row, got none in action"),
        ({"action": ["left", "", "", ""]}, "string: ''"),
        ({"action": [0.5, 0.0, 0.0, 0.0]}, "truncated"),
        ({"reward": [0.0, 1.0, float("nan"), 0.0]}, "expected finite rewards"),
        ({"reward": [None] * 4}, "got none in reward"),
        ({"action_values": [[1.0], [1.0, 2.0], [1.0, 2.0, 3.0], None]}, "expected 3 action_values or none in a row"),
        ({"action_values": [[1.0, 2.0, 3.0, 4.0]] * 4}, "expected 3 action_values or none in a row, got .4."),
        ({"action_values": [[1.0, None, 3.0]] * 4}, "expected 3 action_values or none in a row, got null"),
        ({"action_values": [{"a": 1.0}] * 4}, "Unsupported cast"),
        ({"episode": [1, 1, 2, 2]}, "expected the steps of one episode"),
        ({"step": [0, 2, 1, 3]}, "expected the steps of one episode, in order"),
        ({"terminated": [False] * 4}, "expected the last row, and no other"),
        ({"terminated": [True, False, False, True]}, "expected the last row, and no other"),
        ({"truncated": [False, False, False, True]}, "expected the last row, and no other"),
        ({"frame": [{"bytes": None, "path": "/etc/passwd"}] * 4}, "expected bytes in frame, got null"),
        ({"frame": [{"bytes": b"text", "path": None}] * 4}, "row 0: expected a frame as a PNG, got 4 bytes"),
        ({"frame": [{"bytes": b"GIF89a" + bytes(99), "path": None}] * 4}, "expected a frame as a PNG, got another"),
        ({"frame": [1, 2, 3, 4]}, "frame"),
    ],
)
def test_rows_of_other_kinds_are_refused_by_file(stored, columns, message):
    file = rewrite(stored, **columns)
    with pytest.raises(DatasetError, match=rf"^{file} is damaged: .*{message}.*\Z"):
        EpisodeDataset(stored)


def test_columns_that_are_missing_and_files_of_no_rows_are_refused(stored):
    (file,) = stored.glob("data/*.parquet")
    table = pyarrow.parquet.read_table(file)
    pyarrow.parquet.write_table(table.drop_columns(["reward"]), file)
    with pytest.raises(DatasetError, match=f"{file} is damaged"):
        EpisodeDataset(stored)
    pyarrow.parquet.write_table(table.slice(0, 0), file)
    with pytest.raises(DatasetError, match="expected at least one row"):
        EpisodeDataset(stored)


def test_more_rows_than_a_game_has_are_refused_before_they_are_read(tmp_path):
    count = 10**6 + 1
    pyarrow.parquet.write_table(pyarrow.table({"frame": pyarrow.nulls(count)}), tmp_path / "many.parquet")
    with pytest.raises(DatasetError, match="expected at most 1,000,000 rows, got 1,000,001"):
        read_episode_file(tmp_path / "many.parquet", 3, seed=1)


def test_a_frame_that_is_repeated_too_often_is_refused_before_it_takes_memory(stored, monkeypatch):
    monkeypatch.setattr("envs.episode_file.MAX_BYTES", 10**6)
    file = rewrite(stored)
    row = {**pyarrow.parquet.read_table(file).to_pylist()[0], "frame": {"bytes": bytes(10**5), "path": None}}
    table = pyarrow.Table.from_pylist([row] * 12, pyarrow.parquet.read_schema(file))
    pyarrow.parquet.write_table(table, file)
    assert file.stat().st_size < 10**5
    with pytest.raises(DatasetError, match="expected at most 1,000,000 bytes of frames, got 1,200,000"):
        EpisodeDataset(stored)


def test_action_values_beyond_reason_are_refused_before_they_take_memory(stored):
    file = rewrite(stored, action_values=[[0.0] * 100_000] * LENGTH)
    with pytest.raises(DatasetError, match=r"expected 3 action_values in a row, got 400,0\d\d values in all"):
        EpisodeDataset(stored)
    assert file.stat().st_size < 10**5


def test_frames_of_two_sizes_are_refused(stored):
    first, other = make_episode(1), make_episode(2, height=12)
    file = rewrite(stored)
    writer = EpisodeWriter(stored, read_info(stored))
    writer.append(other)
    with pytest.raises(DatasetError, match="expected frames of one size, got 10 x 8 from row 0, 12 x 8 from row 4"):
        EpisodeDataset(stored)
    tall = pyarrow.parquet.read_table(stored / "data" / "episode-00000002.parquet")["frame"].to_pylist()
    mixed = pyarrow.parquet.read_table(file)["frame"].to_pylist()[:2] + tall[:2]
    assert len(mixed) == len(first.actions)
    rewritten = pyarrow.parquet.read_table(file).to_pylist()
    rewritten = [{**row, "frame": frame} for row, frame in zip(rewritten, mixed, strict=True)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rewritten), file)
    with pytest.raises(DatasetError, match=f"{file} is damaged: expected frames of one size, got 10 x 8 from row 0"):
        EpisodeDataset(stored)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"game": 5}, "game: .*valid string"),
        ({"action_names": []}, "action_names: .*at least 1 item"),
        ({"action_names": [["noop"]]}, r"action_names\.0: .*valid string"),
        ({"action_names": ["noop"] * 19}, "action_names: .*at most 18 items"),
        ({"protocol": None}, "protocol: .*object"),
        ({"protocol": {"frame_skip": 0}}, r"protocol\.frame_skip: .*got 0"),
        ({"protocol": {"repeat_action_probability": float("nan")}}, r"protocol\.repeat_action_probability"),
        ({"protocol": {"max_episode_frames": -1}}, r"protocol\.max_episode_frames: .*got -1"),
        ({"protocol": {"other": 1}}, r"protocol\.other: unexpected"),
        ({"versions": {"numpy": 2}}, r"versions\.numpy: .*valid string"),
        ({"other": 1}, "other: unexpected"),
    ],
)
def test_info_of_other_kinds_is_refused(stored, fields, message):
    content = json.loads((stored / INFO).read_text())
    if isinstance(fields.get("protocol"), dict):
        fields = {"protocol": content["protocol"] | fields["protocol"]}
    (stored / INFO).write_text(json.dumps(content | fields))
    with pytest.raises(DatasetError, match=rf"info\.json is damaged: {message}"):
        read_info(stored)


@pytest.mark.parametrize("content", ["[" * 200_000, "[]", "5", "", "\xff", '{"game": "Pong"}'])
def test_info_of_other_content_is_damaged(stored, content):
    (stored / INFO).write_bytes(content.encode("latin-1"))
    with pytest.raises(DatasetError, match=r"info\.json is damaged"):
        EpisodeDataset(stored)


@pytest.mark.parametrize("number", range(60))
def test_a_mutated_file_is_read_or_refused(stored, number):
    (file,) = stored.glob("data/*.parquet")
    rng, content = np.random.default_rng(number), bytearray(file.read_bytes())
    tail = len(content) - 3000  # the schema and the offsets
    for _ in range(1 + number % 3):
        content[int(rng.integers(tail if number % 2 else 0, len(content)))] = int(rng.integers(256))
    if number % 7 == 0:
        del content[int(rng.integers(len(content))) :]
    file.write_bytes(content)
    try:
        EpisodeDataset(stored)
    except UserError as error:
        refusal = str(error)
        assert file.name in refusal or "expected frames of one size" in refusal
