"""Named experiments accumulate rows, do nothing twice and go on where they were interrupted."""

import json

import numpy as np
import pytest

from envs.episodes import DatasetInfo, Episode, EpisodeWriter
from envs.errors import EnvsError
from envs.protocol import MACHADO2018
from experiments import pvp_nano, run
from experiments.jobs import Job
from experiments.pvp_nano import Setting, draw_triptychs, jobs, mean_figures
from experiments.run import Args, clock, main, run_jobs
from pretrain.pixel_values import PixelValues


def counting(calls, number):
    def work():
        calls.append(number)
        return [{"mae": number}, {"mae": number + 0.5}]

    return Job({"encoder": "frozen", "seed": number}, 60, work)


def test_rows_accumulate_and_what_is_finished_is_not_done_again(tmp_path):
    calls, said = [], []
    work = [counting(calls, number) for number in range(3)]
    assert run_jobs("pvp-nano", work, tmp_path / "r.json", limit=2, say=said.append) == 2
    assert "0 of 3 jobs are done; the rest takes about 3 min" in said[0]
    assert run_jobs("pvp-nano", work, tmp_path / "r.json", say=said.append) == 1
    assert run_jobs("pvp-nano", work, tmp_path / "r.json", say=said.append) == 0
    assert calls == [0, 1, 2]
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [(row["seed"], row["mae"]) for row in rows] == [(0, 0), (0, 0.5), (1, 1), (1, 1.5), (2, 2), (2, 2.5)]
    assert all(row["commit"] and row["date"] for row in rows)


def test_rows_of_finished_jobs_are_kept_when_a_later_one_fails(tmp_path):
    def broken():
        raise KeyboardInterrupt

    work = [counting([], 0), Job({"seed": 1}, 1, broken)]
    with pytest.raises(KeyboardInterrupt):
        run_jobs("pvp-nano", work, tmp_path / "r.json")
    assert len(json.loads((tmp_path / "r.json").read_text())["rows"]) == 2


def test_another_experiments_file_is_not_added_to(tmp_path):
    run_jobs("other", [counting([], 0)], tmp_path / "r.json")
    with pytest.raises(EnvsError, match="holds other, expected pvp-nano"):
        run_jobs("pvp-nano", [], tmp_path / "r.json")


def test_names_are_checked_and_times_are_told():
    with pytest.raises(EnvsError, match=r"expected an experiment \(pvp-nano\), got 'pvp'; nearest: pvp-nano"):
        Args("pvp")
    assert clock(7 * 60) == "7 min"
    assert clock(2 * 3600 + 300) == "2 h 05 min"


def test_the_published_experiment_fits_into_four_hours_of_two_cores():
    whole = jobs(None, pvp_nano.Path("runs"))
    arms = [job for job in whole if "encoder" in job.key]
    assert len(arms) == 2 * 2 * 3
    assert sum(job.seconds for job in whole) <= 4 * 3600


def test_means_leave_out_what_is_missing_and_add_up_counts():
    rows = [{"mae": 1.0, "psnr": float("inf"), "small": None, "n": 4}, {"mae": 3.0, "psnr": 20.0, "small": 5.0, "n": 6}]
    assert mean_figures(rows) == {"mae": 2.0, "psnr": 20.0, "small": 5.0, "n": 10}


@pytest.fixture
def setting(tmp_path):
    """A setting of seconds, over frames that are already there."""
    rng = np.random.default_rng(0)
    for game in ("Pong", "Qbert"):
        info = DatasetInfo(game, ("noop",), MACHADO2018, "random", None, "abc", {})
        writer = EpisodeWriter(tmp_path / "data" / f"random-{game}", info)
        for seed in range(2):
            frames = rng.integers(0, 256, (3, 7, 4, 3), dtype=np.uint8).repeat(30, axis=1).repeat(40, axis=2)
            writer.append(Episode(frames, np.zeros(3, int), np.zeros(3, np.float32), None, True, False, seed))
    return Setting(
        games=("Pong",), strangers=("Qbert",), episodes=2, hold=1, data=tmp_path / "data", tower=None,
        preset="tiny-clip", grid="4", steps=4, images=2, questions=4, points=2, images_full=2, images_curve=1,
        places_curve=3, workers=0,
    )  # fmt: skip


def test_the_experiment_in_small_trains_every_arm_and_goes_on_after_a_kill(setting, tmp_path, monkeypatch):
    work, file = tmp_path / "work", tmp_path / "r.json"
    forward, steps = PixelValues.forward, []

    def killed_in_the_fourth(self, **batch):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return forward(self, **batch)

    monkeypatch.setattr(PixelValues, "forward", killed_in_the_fourth)
    monkeypatch.setitem(run.EXPERIMENTS, "pvp-nano", lambda seeds, work: jobs(seeds, work, setting))
    command = ["pvp-nano", "--seeds", "0", "--out", str(file), "--work", str(work)]
    with pytest.raises(KeyboardInterrupt):
        main(command)
    assert main(command) == 0
    assert len(steps) == 4 + 2 + 3 * 4  # the killed arm went on from its second step
    rows = json.loads(file.read_text())["rows"]
    floors = {(row["regime"], row["set"], row["floor"]) for row in rows if "floor" in row}
    assert ("open", "synthetic", "image mean") in floors
    assert ("familiar", "held-out episodes", "training mean") in floors
    arms = [row for row in rows if "encoder" in row]
    whole = [row for row in arms if not row["sample"]]
    assert len(whole) == 2 * (1 + 2)  # two encoders; one set of the familiar regime and two of the open one
    assert all(row["n"] == 2 * 16 and 0 <= row["invalid"] <= 1 and row["checkpoint"] for row in whole)
    familiar = [row for row in arms if row["sample"] and row["regime"] == "familiar" and row["encoder"] == "frozen"]
    assert [row["step"] for row in familiar] == [2, 4]
    monkeypatch.setattr(PixelValues, "forward", forward)
    pictures = draw_triptychs(work, tmp_path / "pictures", setting=setting)
    assert len(pictures) == 2 * 3
    assert all(picture.is_file() for picture in pictures)
