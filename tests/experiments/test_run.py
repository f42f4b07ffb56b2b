"""Named experiments accumulate rows, repeat no finished job and resume where they were interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import psutil
import pytest
from PIL import Image

from common.errors import UserError
from common.provenance import ROOT
from envs.episodes import DatasetInfo, Episode, EpisodeWriter
from envs.protocol import MACHADO2018
from experiments import run
from experiments.run import Args, Experiment, format_duration, main, run_jobs
from experiments.statistics import filter_rows
from experiments.studies.eval_sets import mean_metrics, photographs
from experiments.studies.jobs import Job
from experiments.studies.pvp_nano import (
    IN_DISTRIBUTION,
    NANO,
    OUT_OF_DISTRIBUTION,
    ExperimentConfig,
    draw,
    jobs,
    prepare,
)
from pretrain.data.frame_captions import caption_tokenizer
from pretrain.data.scikit_image_photographs import EVALUATION_PHOTOGRAPHS
from pretrain.pvp_objective import PvpObjective
from pretrain.reconstruct import comparison_grid
from vlm import checkpoint
from vlm.presets import build
from vlm.sinusoidal_init import init_number_embeddings


def counting(calls, number):
    def work():
        calls.append(number)
        return [{"mae": number}, {"mae": number + 0.5}]

    return Job({"encoder": "frozen", "seed": number}, 60, work)


def test_rows_accumulate_and_finished_jobs_are_not_repeated(tmp_path):
    calls, lines = [], []
    work = [counting(calls, number) for number in range(3)]
    assert run_jobs("pvp-nano", work, tmp_path / "r.json", limit=2, log=lines.append) == 2
    assert "0 of 3 jobs are done; the rest takes about 3 min" in lines[0]
    assert run_jobs("pvp-nano", work, tmp_path / "r.json", log=lines.append) == 1
    assert run_jobs("pvp-nano", work, tmp_path / "r.json", log=lines.append) == 0
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


def square(number):
    print("squaring")
    return [{"square": number**2}]


@pytest.mark.slow
def test_parallel_jobs_give_the_same_rows_and_write_logs(tmp_path):
    work = [Job({"condition": "square", "seed": number}, 1, partial(square, number)) for number in range(3)]
    assert run_jobs("other", work, tmp_path / "r.json", processes=2, logs=tmp_path / "logs") == 3
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert sorted((row["seed"], row["square"]) for row in rows) == [(0, 0), (1, 1), (2, 4)]
    assert (tmp_path / "logs" / "square-2.log").read_text() == "squaring\n"


LINGERING = """
import os, pathlib, time
from experiments.studies.eval_sets import mean_metrics, photographs
from experiments.studies.jobs import Job
from experiments.run import run_jobs

def linger():
    pathlib.Path("worker").write_text(str(os.getpid()))
    time.sleep(120)
    return []

if __name__ == "__main__":
    run_jobs("other", [Job({"seed": 0}, 1, linger)], pathlib.Path("r.json"), processes=2)
"""


@pytest.mark.slow
def test_workers_of_a_killed_run_end_with_it(tmp_path):
    (tmp_path / "lingering.py").write_text(LINGERING)
    paths = os.pathsep.join([str(ROOT), *sys.path])
    begun = subprocess.Popen([sys.executable, "lingering.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths})
    wait_until(lambda: (tmp_path / "worker").exists() and (tmp_path / "worker").read_text())
    worker = int((tmp_path / "worker").read_text())
    assert not has_ended(worker)
    begun.kill()
    begun.wait()
    wait_until(lambda: has_ended(worker))


SAVING = """
import os, pathlib, sys, time
from common.command import run
from common.interruption import deferred_interruption
from experiments.studies.jobs import Job
from experiments.run import run_jobs

def save():
    with deferred_interruption() as is_asked:
        pathlib.Path("begun").write_text("")
        while not is_asked():
            time.sleep(0.05)
        pathlib.Path("saved").write_text("")
    pathlib.Path("went-on").write_text("")

if __name__ == "__main__":
    sys.exit(run(lambda: run_jobs("other", [Job({"seed": 0}, 1, save)], pathlib.Path("r.json"), processes=2)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_workers_save_when_a_signal_ends_the_run(tmp_path, number, code):
    (tmp_path / "saving.py").write_text(SAVING)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    words = [sys.executable, "saving.py"]
    begun = subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, start_new_session=True)
    wait_until(lambda: (tmp_path / "begun").exists())
    os.killpg(begun.pid, number) if number == signal.SIGINT else begun.terminate()  # a terminal's Ctrl-C reaches all
    errors = begun.communicate(timeout=60)[1].decode()
    assert begun.returncode == code, errors
    assert (tmp_path / "saved").exists()
    assert not (tmp_path / "went-on").exists()
    assert errors.splitlines()[-1].endswith("repeat the command to go on")


def wait_until(true, seconds=90):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def has_ended(process):
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def fail():
    raise UserError("no data")


@pytest.mark.slow
def test_an_error_in_a_worker_is_raised_and_finished_rows_are_kept(tmp_path):
    work = [Job({"seed": 0}, 1, partial(square, 3)), Job({"seed": 1}, 1, fail)]
    for _ in range(2):  # the second time, the first job is done
        with pytest.raises(UserError, match="no data"):
            run_jobs("other", work, tmp_path / "r.json", processes=2, logs=tmp_path / "logs")
    assert [row["square"] for row in json.loads((tmp_path / "r.json").read_text())["rows"]] == [9]


def test_a_file_of_another_experiment_is_refused(tmp_path):
    run_jobs("other", [counting([], 0)], tmp_path / "r.json")
    with pytest.raises(UserError, match="holds other, expected pvp-nano"):
        run_jobs("pvp-nano", [], tmp_path / "r.json")


def test_unknown_names_are_refused_and_durations_are_formatted():
    with pytest.raises(UserError, match=r"expected an experiment \(optimizers, .*\), got 'pvp'; nearest: pvp-nano"):
        Args("pvp")
    with pytest.raises(UserError, match="--processes must be at least 1, got 0"):
        Args("pvp-nano", processes=0)
    assert format_duration(7 * 60) == "7 min"
    assert format_duration(2 * 3600 + 300) == "2 h 05 min"


TAKES_A_DAY = {"eight-games"}  # not run in full yet, as docs/concepts.md says


def test_a_study_without_a_result_is_called_so_in_the_docs():
    lines = (ROOT / "docs" / "concepts.md").read_text().splitlines()
    for name in TAKES_A_DAY:
        assert not (run.RESULTS / f"{name}.json").exists()
        (line,) = (line for line in lines if line.startswith(f"| `python -m experiments.run {name}"))
        assert "not run in full yet" in line


@pytest.mark.parametrize("name", sorted(run.EXPERIMENTS.keys() - TAKES_A_DAY))
def test_the_committed_results_hold_every_job_of_their_experiment(name, tmp_path):
    rows = json.loads((run.RESULTS / f"{name}.json").read_text())["rows"]
    missing = [job.title for job in run.EXPERIMENTS[name].jobs(None, tmp_path) if not run.is_done(job, rows)]
    assert missing == []


def test_photographs_are_windows_of_real_images_and_reproducible():
    found = photographs(2 * len(EVALUATION_PHOTOGRAPHS), (210, 160))
    assert all(image.shape == (210, 160, 3) and len(np.unique(image)) > 64 for image in found)
    assert all((one == other).all() for one, other in zip(found, photographs(16, (210, 160)), strict=True))
    assert any((one != other).any() for one, other in zip(found[:8], found[8:], strict=True))


def test_mean_metrics_skip_missing_values_and_add_up_counts():
    rows = [{"mae": 1.0, "psnr": float("inf"), "small": None, "n": 4}, {"mae": 3.0, "psnr": 20.0, "small": 5.0, "n": 6}]
    assert mean_metrics(rows) == {"mae": 2.0, "psnr": 20.0, "small": 5.0, "n": 10}


def game_frame(rng):
    """One to six squares of a random colour on black."""
    frame, colour = np.zeros((210, 160, 3), dtype=np.uint8), rng.integers(64, 256, 3)
    for place in rng.permutation(12)[: rng.integers(1, 7)]:
        row, column = 50 + 40 * (place // 4), 20 + 35 * (place % 4)
        frame[row : row + 12, column : column + 12] = colour
    return frame


@pytest.fixture
def config(tmp_path):
    """An experiment of seconds, over recorded frames."""
    rng = np.random.default_rng(0)
    for game in ("Pong", "Breakout", "Qbert"):
        info = DatasetInfo(game, ("noop",), MACHADO2018, "random", None, "abc", {})
        writer = EpisodeWriter(tmp_path / "data" / f"random-{game}", info)
        for seed in range(2):
            frames = np.stack([game_frame(rng) for _ in range(12)])
            writer.append(Episode(frames, np.zeros(12, int), np.zeros(12, np.float32), None, True, False, seed))
    captioner = build("tiny-clip", 0, caption_tokenizer())
    init_number_embeddings(captioner)
    checkpoint.save(captioner, tmp_path / "captioner", {})
    short = {"steps": 4, "images": 2, "questions": 4}
    training = NANO.training.replace(
        init=tmp_path / "captioner", preset="tiny-clip", grid="12", size=(216, 216), patch_expansion=2,
        skip_connection=False, val_episodes=1,
        trainer=("dataloader_num_workers=0", "warmup_steps=1"),
    )  # fmt: skip
    return ExperimentConfig(
        training, games=("Pong", "Breakout"), held_out_games=("Qbert",), episodes=2, data_dir=tmp_path / "data",
        photographs=None,
        regimes=tuple(replace(regime, **short) for regime in (IN_DISTRIBUTION, OUT_OF_DISTRIBUTION)),
        num_evals=2, eval_images=2, curve_images=1, curve_pixels=3, probe_train_frames=10, probe_test_frames=10,
        num_captions=8,
    )  # fmt: skip


@pytest.mark.slow
def test_a_small_experiment_trains_every_condition_and_resumes_after_a_kill(
    config, tmp_path, monkeypatch, kill_at_step
):
    work, file = tmp_path / "work", tmp_path / "r.json"
    steps = kill_at_step(PvpObjective, 4)
    small = Experiment(
        lambda: prepare(config), lambda seeds, work: jobs(seeds, work, config), partial(draw, config=config)
    )
    monkeypatch.setitem(run.EXPERIMENTS, "pvp-nano", small)
    command = ["pvp-nano", "--seeds", "0", "--out", str(file), "--work", str(work), "--processes", "1"]
    with pytest.raises(KeyboardInterrupt):
        main(command)
    assert main(command) == 0
    assert len(steps) == 4 + 2 + 3 * 4  # the killed condition resumed from its second step
    rows = json.loads(file.read_text())["rows"]
    baselines = {(row["regime"], row["set"], row["baseline"]) for row in rows if "baseline" in row}
    assert ("out-of-distribution", "synthetic", "image mean") in baselines
    assert ("in-distribution", "held-out episodes", "training mean") in baselines
    semantic, patch = ([row for row in rows if row["set"] == name] for name in ("semantic probe", "patch probe"))
    assert [row["encoder"] for row in semantic if row["regime"] == "both"] == ["captioner", "random", "pixels"]
    assert_semantics_stay_where_the_encoder_is_frozen(semantic)
    assert [row["encoder"] for row in patch] == ["captioner", "random", "adapted", "frozen", "adapted", "frozen"]
    assert patch[3]["color_mae"] == pytest.approx(patch[0]["color_mae"])
    retrieval = [row for row in rows if row["set"] == "caption retrieval"]
    assert [row["tower"] for row in retrieval] == ["captioner", "random", "adapted", "adapted"]
    assert all(0 <= row["top1"] <= row["top5"] <= 1 and row["different"] <= 8 for row in retrieval)
    trained = [row for row in rows if "sample" in row]
    whole = [row for row in trained if not row["sample"]]
    assert len(whole) == 2 * (1 + 4)  # two encoders; one set in distribution and four out of it
    assert all(row["n"] == 2 * 144 and 0 <= row["parse_failure_rate"] <= 1 and row["checkpoint"] for row in whole)
    curve = filter_rows(trained, sample=True, regime="in-distribution", encoder="frozen")
    assert [row["step"] for row in curve] == [2, 4]
    one = comparison_grid(
        {"original": np.zeros((216, 216, 3), np.uint8)} | dict.fromkeys("234", np.zeros((4, 4, 3), np.uint8))
    )
    picture = Image.open(file.with_suffix(".png"))
    assert picture.size == (2 * one.width, 5 * one.height)  # two images of each of five sets
    assert draw(None, tmp_path, config) is None


def assert_semantics_stay_where_the_encoder_is_frozen(rows):
    start = next(row for row in rows if row["encoder"] == "captioner")
    frozen = next(row for row in rows if row["encoder"] == "frozen")
    adapted = next(row for row in rows if row["encoder"] == "adapted")
    for name in ("game", "count", "count_within"):
        assert frozen[name] == pytest.approx(start[name])
    assert adapted["count_within"] != pytest.approx(start["count_within"])
