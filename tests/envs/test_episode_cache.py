"""Mapped rows are those of the Parquet files as they are now, whatever happens to the cache."""

import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from datasets import config

from common import files
from envs import episode_cache
from envs.episode_cache import cache_folder
from envs.episodes import INFO, DatasetError, DatasetInfo, Episode, EpisodeDataset, EpisodeWriter
from envs.protocol import MACHADO2018

ROOT = Path(__file__).resolve().parents[2]
INFO_OF_TESTS = DatasetInfo("Carnival", ("noop", "fire", "right"), MACHADO2018, "random", None, "abc", {})


def make_episode(seed, number=None, length=4):
    rng = np.random.default_rng(seed if number is None else number)
    return Episode(
        frames=np.repeat(rng.integers(0, 256, (length, 1, 1, 3), dtype=np.uint8), 80, axis=1).repeat(8, axis=2),
        actions=rng.integers(3, size=length),
        rewards=rng.random(length).astype(np.float32),
        action_values=rng.random((length, 3)).astype(np.float32),
        terminated=True,
        truncated=False,
        seed=seed,
    )


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A dataset of the episodes of seeds 1 and 2, whose files are as good as old."""
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(episode_cache, "SETTLED_NS", -1)
    writer = EpisodeWriter(tmp_path / "set", INFO_OF_TESTS)
    for seed in (1, 2):
        writer.append(make_episode(seed))
    return tmp_path / "set"


@pytest.fixture
def parsed(monkeypatch):
    """The seeds of the Parquet files that are read."""
    seeds, read = [], episode_cache.read_episode_file

    def note(file, num_actions, seed):
        seeds.append(seed)
        return read(file, num_actions, seed)

    monkeypatch.setattr(episode_cache, "read_episode_file", note)
    return seeds


def assert_rows(data, *episodes):
    """Check every column of a dataset."""
    for name in ("actions", "rewards", "action_values"):
        assert np.array_equal(getattr(data, name), np.concatenate([getattr(one, name) for one in episodes])), name
    assert np.array_equal(
        np.stack([data.frame(row) for row in range(len(data))]), np.concatenate([one.frames for one in episodes])
    )
    assert data.seeds == [one.seed for one in episodes]


def file_of(stored, seed):
    return stored / "data" / f"episode-{seed:08d}.parquet"


def hidden_files(folder):
    return [file.name for file in folder.iterdir() if file.name.startswith(".")]


def test_a_second_opening_maps_the_rows_of_the_first(stored, parsed):
    assert_rows(EpisodeDataset(stored), make_episode(1), make_episode(2))
    assert parsed == [1, 2]
    before = pyarrow.total_allocated_bytes()
    data = EpisodeDataset(stored)
    assert parsed == [1, 2]
    assert pyarrow.total_allocated_bytes() - before < 1000
    assert str(cache_folder(stored) / "episode-00000002.arrow") in Path("/proc/self/maps").read_text()
    assert_rows(data, make_episode(1), make_episode(2))


def test_an_added_episode_alone_is_read_and_an_open_dataset_stays_as_it_is(stored, parsed):
    old = EpisodeDataset(stored)
    EpisodeWriter(stored, INFO_OF_TESTS).append(make_episode(3))
    assert_rows(EpisodeDataset(stored), *map(make_episode, (1, 2, 3)))
    assert parsed == [1, 2, 3]
    assert_rows(old, make_episode(1), make_episode(2))


def test_a_removed_episode_is_gone_and_an_open_dataset_keeps_it(stored):
    old = EpisodeDataset(stored)
    file_of(stored, 1).unlink()
    assert_rows(EpisodeDataset(stored), make_episode(2))
    EpisodeWriter(stored, INFO_OF_TESTS).append(make_episode(3))
    EpisodeDataset(stored)
    assert sorted(file.stem[-1] for file in cache_folder(stored).glob("episode-*.arrow")) == ["2", "3"]
    assert_rows(old, make_episode(1), make_episode(2))


@pytest.mark.parametrize("in_place", [True, False], ids=["in place", "renamed"])
def test_another_file_of_the_same_size_and_time_is_read_again(stored, tmp_path, in_place):
    EpisodeDataset(stored)
    file = file_of(stored, 2)
    before = file.stat()
    writer = EpisodeWriter(tmp_path / "other", INFO_OF_TESTS)
    for number in range(100, 1000):
        episode = make_episode(2, number)
        new = writer.append(episode)
        if new.stat().st_size == before.st_size:
            break
    assert new.stat().st_size == before.st_size
    if in_place:
        file.write_bytes(new.read_bytes())
    else:
        os.replace(new, file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert_rows(EpisodeDataset(stored), make_episode(1), episode)


def test_a_file_that_changed_just_now_is_not_kept(stored, parsed, monkeypatch):
    monkeypatch.setattr(episode_cache, "SETTLED_NS", 3600 * 10**9)
    for _ in range(2):
        assert_rows(EpisodeDataset(stored), make_episode(1), make_episode(2))
    assert parsed == [1, 2, 1, 2]
    assert not list(cache_folder(stored).glob("episode-*.arrow"))


def test_a_file_that_is_damaged_after_it_was_kept_is_refused(stored):
    EpisodeDataset(stored)
    file = file_of(stored, 2)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DatasetError, match=r"episode-00000002\.parquet is damaged"):
        EpisodeDataset(stored)


def test_rows_are_checked_again_for_other_actions(stored):
    EpisodeDataset(stored)
    info = stored / INFO
    info.write_text(info.read_text().replace('"right"', '"right", "left"'))
    with pytest.raises(DatasetError, match="expected 4 action_values or none in a row"):
        EpisodeDataset(stored)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-100],
        lambda content: b"",
        lambda content: bytes(len(content)),
        lambda content: b"x" * 99,
    ],
    ids=["cut", "empty", "zeros", "other"],
)
def test_a_damaged_arrow_file_is_made_again(stored, parsed, damage):
    EpisodeDataset(stored)
    kept = cache_folder(stored) / "episode-00000001.arrow"
    kept.write_bytes(damage(kept.read_bytes()))
    for _ in range(2):
        assert_rows(EpisodeDataset(stored), make_episode(1), make_episode(2))
    assert parsed == [1, 2, 1]


def test_an_arrow_file_of_other_columns_is_made_again(stored, parsed):
    EpisodeDataset(stored)
    kept = cache_folder(stored) / "episode-00000001.arrow"
    with pyarrow.ipc.open_file(kept.read_bytes()) as reader:
        table = reader.read_all()
    with pyarrow.ipc.new_file(str(kept), table.drop_columns(["reward"]).schema) as writer:
        writer.write_table(table.drop_columns(["reward"]))
    assert_rows(EpisodeDataset(stored), make_episode(1), make_episode(2))
    assert parsed == [1, 2, 1]


def test_a_folder_that_cannot_be_written_leaves_frames_in_memory_with_one_line(stored, monkeypatch, capsys):
    (stored.parent / "cache").write_text("a file where the cache would be")
    assert_rows(EpisodeDataset(stored), make_episode(1), make_episode(2))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{stored}: frames stay in memory, {cache_folder(stored)} cannot be written: ")


def test_a_full_disk_is_not_filled_further(stored, monkeypatch, capsys):
    monkeypatch.setattr(episode_cache, "MIN_FREE", 2**60)
    assert_rows(EpisodeDataset(stored), make_episode(1), make_episode(2))
    assert capsys.readouterr().err.endswith("cannot be written: No space left on device\n")
    assert not list(cache_folder(stored).glob("episode-*.arrow"))


def test_a_disk_that_fills_up_keeps_what_was_finished_and_nothing_torn(stored, monkeypatch, capsys):
    replace, done = files.replace_file, []

    def fill_up(temporary, file):
        if file.suffix == ".arrow" and done:
            raise OSError(errno.ENOSPC, "No space left on device")
        done.append(file)
        replace(temporary, file)

    monkeypatch.setattr(files, "replace_file", fill_up)
    assert_rows(EpisodeDataset(stored), make_episode(1), make_episode(2))
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [file.name for file in cache_folder(stored).glob("episode-*.arrow")] == ["episode-00000001.arrow"]
    assert not hidden_files(cache_folder(stored))


def test_another_process_opens_the_same_episodes_without_a_copy_of_the_frames(stored):
    data = EpisodeDataset(stored)
    sent = pickle.dumps(data)
    assert len(sent) < 1000
    EpisodeWriter(stored, INFO_OF_TESTS).append(make_episode(0))
    assert_rows(pickle.loads(sent), make_episode(1), make_episode(2))


OPEN = """
import sys, os
from pathlib import Path
from common import files
from envs import episode_cache
from envs.episodes import EpisodeDataset
episode_cache.SETTLED_NS = -1
if sys.argv[2] == "killed":
    files.replace_file = lambda temporary, file: os._exit(9)
data = EpisodeDataset(Path(sys.argv[1]))
print(len(data), sum(int(data.frame(row).sum()) for row in range(len(data))))
"""


def start(stored, how):
    environment = os.environ | {"HF_DATASETS_CACHE": str(config.HF_DATASETS_CACHE), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", OPEN, str(stored), how]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_killed_process_leaves_nothing_torn_and_several_may_start_at_once(stored, parsed):
    killed = start(stored, "killed")
    assert killed.wait() == 9
    assert len(hidden_files(cache_folder(stored))) == 1
    assert not list(cache_folder(stored).glob("episode-*.arrow"))
    started = [start(stored, "read") for _ in range(3)]
    expected = sum(int(make_episode(seed).frames.sum(dtype=int)) for seed in (1, 2))
    assert [process.communicate()[0] for process in started] == [f"8 {expected}\n"] * 3
    assert not hidden_files(cache_folder(stored))
    assert_rows(EpisodeDataset(stored), make_episode(1), make_episode(2))
    assert parsed == []
