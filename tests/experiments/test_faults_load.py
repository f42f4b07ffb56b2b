"""Memory and open files of hours of play, and memory of recordings: growth is found where there is some."""

import os

import numpy as np
import pytest

from experiments.faults import load
from experiments.faults.load import RAW_BYTES, measure_play, measure_recordings, sample_play, slopes


def test_growth_an_hour_is_that_after_the_warm_up():
    hours = np.arange(1, 101) / 10
    memory = np.where(hours < 2, 100 * hours, 200 + 5 * hours)
    samples = np.stack([hours, memory, np.where(hours < 2, 3, 9 + 2 * hours)], axis=1)
    assert slopes(samples) == pytest.approx((5, 2))


def test_samples_are_spread_over_the_hours_of_all_environments(monkeypatch):
    descriptors = []
    monkeypatch.setattr(
        load, "num_descriptors", lambda: descriptors.append(os.open("/dev/null", 0)) or len(descriptors)
    )
    samples = sample_play(hours=0.01, num_envs=3, seed=0, samples=10)
    for descriptor in descriptors:
        os.close(descriptor)
    assert samples[:, 0] == pytest.approx(np.arange(1, 11) / 1000, abs=4 / 60 / 3600)
    assert (samples[:, 1] > 2**20).all()
    assert slopes(samples)[1] == pytest.approx(1000, rel=0.1)  # one more file in each of ten samples of 0.001 hours


def test_a_row_tells_of_the_hours_it_measured():
    row = measure_play(seed=0, hours=0.005, num_envs=4)
    assert row["hours"] == pytest.approx(0.005, abs=1e-3)
    assert (row["num_envs"], row["samples"]) == (4, load.SAMPLES)
    assert row["files_an_hour"] == 0


@pytest.mark.slow
def test_recordings_hold_games_in_flight_compressed(tmp_path):
    alone, many = measure_recordings(tmp_path, seed=0, num_envs=8, lengths=(240, 960))
    assert (alone["num_envs"], many["num_envs"]) == (1, 8)
    assert many["bytes_a_decision"] < RAW_BYTES / 5
    assert many["peak_mib"][1] < 8 * 240 * RAW_BYTES / 2**20 / 2
