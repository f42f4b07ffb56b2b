"""The benchmark of recorded data reads the same frames through every reader."""

import numpy as np
import pytest
from datasets import config

from experiments.benchmarks import dataset_speed
from experiments.benchmarks.dataset_speed import READERS, record_episode, write_datasets


@pytest.fixture
def short(monkeypatch):
    """Episodes of 5 steps."""
    monkeypatch.setattr(dataset_speed, "EPISODE_STEPS", 5)


def test_every_reader_reads_the_same_frames_and_appends(short, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    info, episode = record_episode("MsPacman")
    write_datasets(tmp_path, info, episode, 3)
    for name, reader_class in READERS.items():
        reader, lossy = reader_class(tmp_path), name == "minari"
        frames = reader.episode(2)[:5].astype(int)
        assert np.corrcoef(frames.ravel(), episode.frames.ravel())[0, 1] > (0.5 if lossy else 1 - 1e-9), name
        assert np.array_equal(reader.frame(2, 3), frames[3]), name
        reader_class.append(tmp_path, dataset_speed.replace(episode, seed=3))
        assert len(reader_class(tmp_path).episode(3)) == 5 + lossy
        (tmp_path / "ours" / "data" / "episode-00000003.parquet").unlink(missing_ok=True)


def test_every_figure_stands_beside_each_baseline(short, tmp_path, monkeypatch, benchmark_rows):
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(dataset_speed, "in_new_process", dataset_speed.measure_reader)
    monkeypatch.setattr(dataset_speed.time, "sleep", lambda _: None)
    rows = benchmark_rows(dataset_speed.main, "--rows", 10, "--reads", 10, "--rounds", 1)
    assert len({(row["benchmark"], row["baseline_name"]) for row in rows}) == len(rows) == 10
    assert {row["rows"] for row in rows} == {10}
    assert all(row["candidate"] > 0 for row in rows if "memory" not in row["benchmark"])


def test_too_few_rows_are_refused(refusal):
    assert "--rows must be at least 2000, got 3" in refusal(dataset_speed.main, "--rows", 3)
