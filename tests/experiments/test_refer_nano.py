"""refer-nano in small: every arm is taught as its name says, and floors and rows come out of one test."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from envs.episodes import DatasetInfo, Episode, EpisodeWriter
from envs.protocol import MACHADO2018
from experiments import run
from experiments.run import Experiment, main
from experiments.studies import pvp_nano
from experiments.studies.conditions import ENCODER_ONLY, pretrain_condition
from experiments.studies.pvp_nano import OPEN
from experiments.studies.refer_nano import (
    HEAD,
    NANO,
    POINTS,
    SEEDS,
    ExperimentConfig,
    draw,
    floors,
    jobs,
    measure_floors,
    prepare,
)
from pretrain.data.frame_captions import caption_tokenizer
from pretrain.referring.recorded_games import GameReferringExample
from vlm import checkpoint
from vlm.clip import build_clip
from vlm.training.learning_rates import role_parameters


@pytest.fixture
def setting(tmp_path):
    """A setting of seconds, over frames that are already there."""
    rng = np.random.default_rng(0)
    for game in ("Pong", "Breakout", "Qbert"):
        info = DatasetInfo(game, ("noop",), MACHADO2018, "random", None, "abc", {})
        writer = EpisodeWriter(tmp_path / "data" / f"random-{game}", info)
        for seed in range(3):
            frames = np.zeros((4, 210, 160, 3), np.uint8)
            for frame in frames:
                for cell in rng.permutation(9)[: rng.integers(2, 5)]:
                    row, column = 30 + 60 * (cell // 3), 20 + 50 * (cell % 3)
                    frame[row : row + 12, column : column + 12] = rng.choice([(200, 72, 72), (66, 158, 130)])
            writer.append(Episode(frames, np.zeros(4, int), np.zeros(4, np.float32), None, True, False, seed))
    checkpoint.save(build_clip("tiny-clip", caption_tokenizer(), 0), tmp_path / "clip")
    short = replace(OPEN, steps=2, images=2, questions=4)
    frames = pvp_nano.ExperimentConfig(
        games=("Pong", "Breakout"), strangers=("Qbert",), episodes=3, hold=1, data=tmp_path / "data", regimes=(short,),
        tower=tmp_path / "clip", preset="tiny-clip", grid="4", workers=0,
    )  # fmt: skip
    return ExperimentConfig(
        frames, tmp_path / "taught", games=("Pong", "Breakout"), strangers=("Qbert",), images=2, grid=4, points=3,
        ways=tuple(replace(way, steps=2, expressions=2, count=6) for way in (HEAD, POINTS)), pictures=1, workers=0,
    )  # fmt: skip


def test_every_arm_is_taught_and_scored_on_known_and_on_strange_games(setting, tmp_path, monkeypatch):
    small = Experiment(
        lambda: prepare(setting),
        lambda seeds, work: jobs(seeds, work, setting),
        lambda seeds, work: draw(seeds, work, setting),
    )
    monkeypatch.setitem(run.EXPERIMENTS, "refer-nano", small)
    command = ["refer-nano", "--seeds", "0", "--out", str(tmp_path / "r.json"), "--work", str(tmp_path / "work")]
    assert main([*command, "--processes", "1"]) == 0
    rows = [row for row in json.loads((tmp_path / "r.json").read_text())["rows"] if "floor" not in row]
    done = {(row["encoder"], row["pvp"], row["mask"]) for row in rows}
    assert done == {(*arm, way.name) for way in (HEAD, POINTS) for arm in way.arms}
    assert {row["set"] for row in rows} == {"test", "held-out games"}
    assert all(row["n"] == 6 and 0 <= row["ciou"] <= 1 for row in rows)
    moved = {
        (encoder, pvp): checkpoint.read_training(tmp_path / "work" / f"masks-{encoder}-{pvp}-head-0" / "last")["parameter_updates"]
        for encoder, pvp in HEAD.arms
    }
    assert all((report["encoder"]["changed"] > 0) == (arm[0] == "adapted") for arm, report in moved.items())
    pixels = checkpoint.read_training(tmp_path / "taught" / "open-adapted-shuffled-0" / "last")["arguments"]
    assert pixels["shuffled"]
    picture = np.asarray(Image.open(tmp_path / "r.png"))
    assert picture.shape[1] > 7 * 160  # the truth and six arms
    assert picture.shape[0] > 2 * 210  # an item of each test
    assert draw(None, tmp_path, setting) is None
    points = checkpoint.read_training(tmp_path / "work" / "masks-frozen-none-points-0" / "last")
    assert points["arguments"]["gaze"] == 1
    assert points["started_from"] == {}


def test_pixels_are_taught_once_for_all_jobs_and_not_at_all_without_pvp(setting, tmp_path):
    start = pretrain_condition(setting.frames, "frozen", "none", 0, tmp_path)
    assert checkpoint.read_training(start) == {}
    taught = pretrain_condition(setting.frames, "adapted", "pvp", 0, tmp_path)
    before = checkpoint.content_hash(taught)
    longer = replace(setting.frames, regimes=(replace(OPEN, steps=9),))
    assert pretrain_condition(longer, "adapted", "pvp", 0, tmp_path) == taught
    assert checkpoint.content_hash(taught) == before != checkpoint.content_hash(start)


def test_sight_carries_on_encoder_and_connector_and_begins_a_new_decoder(setting, tmp_path):
    places = {
        pvp: pretrain_condition(setting.frames, "adapted", pvp, 0, tmp_path) for pvp in ("pvp", "none", ENCODER_ONLY)
    }
    taught, plain, seen = (
        {name: dict(of) for name, of in role_parameters(checkpoint.load(place)).items()} for place in places.values()
    )
    for role, like, unlike in (("encoder", taught, plain), ("connector", taught, plain), ("decoder", plain, taught)):
        assert all(torch.equal(tensor, like[role][name]) for name, tensor in seen[role].items())
        assert not all(torch.equal(tensor, unlike[role][name]) for name, tensor in seen[role].items())


def test_what_pvp_nano_has_trained_is_what_arms_start_from(setting, tmp_path):
    regime = setting.frames.regimes[0]
    pvp_nano.measure_arm(setting.frames, regime, "frozen", 1, setting.taught)
    trained = setting.taught / "open-frozen-1" / "last"
    before = checkpoint.content_hash(trained)
    assert pretrain_condition(setting.frames, "frozen", "pvp", 1, setting.taught) == trained
    assert checkpoint.content_hash(trained) == before


def test_floors_look_at_no_words_or_at_one_and_a_grid_bounds_what_points_can_reach(setting):
    frame = np.zeros((2, 210, 160, 3), np.uint8)
    frame[:, 30:42, 20:32] = frame[:, 90:102, 70:82] = (200, 72, 72)
    frame[:, 150:170, 120:140] = (66, 158, 130)
    truth = np.zeros((210, 160), bool)
    truth[30:42, 20:32] = True
    answers = {
        name: floor(GameReferringExample("the left-most red object", "extreme", "Pong", frame, truth))
        for name, floor in floors(64).items()
    }
    assert answers["all"].all()
    assert not answers["nothing"].any()
    assert answers["largest object"].sum() == 400
    assert answers["every object of the colour"].sum() == 2 * 144
    coarse = answers["truth on a grid of 64"]
    assert 0.5 < (coarse & truth).sum() / (coarse | truth).sum() < 1
    rows = measure_floors(setting)
    best = {row["set"]: max(r["ciou"] for r in rows if r["set"] == row["set"]) for row in rows}
    assert set(best) == {"test", "held-out games"}
    assert all(0.3 < value < 1 for value in best.values())


def test_the_published_experiment_fits_into_five_hours_of_two_cores_behind_pvp_nano(tmp_path):
    for seed in SEEDS:
        for encoder in ("adapted", "frozen"):
            (tmp_path / f"open-{encoder}-{seed}" / "last").mkdir(parents=True)
    whole = jobs(None, tmp_path, replace(NANO, taught=tmp_path))
    assert len(whole) == 1 + 3 * (len(HEAD.arms) + len(POINTS.arms))
    assert sum(job.seconds for job in whole) / 2 <= 5 * 3600
