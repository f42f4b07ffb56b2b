"""A small refer-nano: every condition is trained as its name says and evaluated on one test set with the baselines."""

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
from experiments.studies.conditions import CONDITIONS, ENCODER_ONLY, pretrain_condition
from experiments.studies.pvp_nano import OUT_OF_DISTRIBUTION
from experiments.studies.refer_nano import (
    HEAD,
    POINTS,
    ExperimentConfig,
    baselines,
    draw,
    jobs,
    measure_baselines,
    prepare,
)
from pretrain.data.frame_captions import caption_tokenizer
from pretrain.referring.samples import ReferringSample
from vlm import checkpoint
from vlm.presets import build
from vlm.sinusoidal_init import init_number_embeddings
from vlm.training.learning_rates import role_parameters


@pytest.fixture
def config(tmp_path):
    """An experiment of seconds, over recorded frames."""
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
    captioner = build("tiny-clip", 0, caption_tokenizer())
    init_number_embeddings(captioner)
    checkpoint.save(captioner, tmp_path / "captioner", {})
    short = replace(OUT_OF_DISTRIBUTION, steps=2, images=2, questions=4)
    trainer = ("dataloader_num_workers=0", "warmup_steps=1")
    training = pvp_nano.NANO.training.replace(
        init=tmp_path / "captioner",
        preset="tiny-clip",
        grid="12",
        size=(216, 216),
        patch_expansion=2,
        skip_connection=False,
        val_episodes=1,
        trainer=trainer,
    )
    pretraining = pvp_nano.ExperimentConfig(
        training, games=("Pong", "Breakout"), held_out_games=("Qbert",), episodes=3, data_dir=tmp_path / "data",
        regimes=(short,), photographs=None,
    )  # fmt: skip
    fast = {"steps": 2, "expressions": 2, "images": 2, "grid": 4, "points": 3, "trainer": trainer}
    return ExperimentConfig(
        pretraining, tmp_path / "pretraining", games=("Pong", "Breakout"), held_out_games=("Qbert",), num_overlays=1,
        methods=tuple(
            replace(one, training=one.training.replace(**fast), test_expressions=6) for one in (HEAD, POINTS)
        ),
    )  # fmt: skip


@pytest.mark.slow
def test_every_condition_is_trained_and_evaluated_on_seen_and_on_held_out_games(config, tmp_path, monkeypatch):
    small = Experiment(
        lambda: prepare(config),
        lambda seeds, work: jobs(seeds, work, config),
        lambda seeds, work: draw(seeds, work, config),
    )
    monkeypatch.setitem(run.EXPERIMENTS, "refer-nano", small)
    command = ["refer-nano", "--seeds", "0", "--out", str(tmp_path / "r.json"), "--work", str(tmp_path / "work")]
    assert main([*command, "--processes", "1"]) == 0
    rows = [row for row in json.loads((tmp_path / "r.json").read_text())["rows"] if "baseline" not in row]
    done = {(row["encoder"], row["pvp"], row["mask"]) for row in rows}
    assert done == {(*condition, method.name) for method in (HEAD, POINTS) for condition in CONDITIONS}
    assert {row["set"] for row in rows} == {"test", "held-out games"}
    assert all(row["n"] == 6 and 0 <= row["ciou"] <= 1 for row in rows)
    updates = {
        (encoder, pvp): checkpoint.read_training(tmp_path / "work" / f"masks-{encoder}-{pvp}-head-0" / "last")
        for encoder, pvp in CONDITIONS
    }
    for (encoder, _), training in updates.items():
        assert (training["parameter_updates"]["encoder"]["changed"] > 0) == (encoder == "adapted")
    shuffled = tmp_path / "pretraining" / "out-of-distribution-adapted-shuffled-0" / "last"
    assert checkpoint.read_training(shuffled)["arguments"]["shuffle_targets"]
    picture = np.asarray(Image.open(tmp_path / "r.png"))
    assert picture.shape[1] > 7 * 160  # the truth and six conditions
    assert picture.shape[0] > 2 * 210  # an item of each test
    assert draw(None, tmp_path, config) is None
    points = checkpoint.read_training(tmp_path / "work" / "masks-frozen-none-points-0" / "last")
    assert points["arguments"]["attention_supervision_weight"] == 1
    assert points["started_from"] == {}


def test_pvp_is_trained_once_for_all_jobs_and_not_at_all_without_pvp(config, tmp_path):
    start = pretrain_condition(config.pretraining, "frozen", "none", 0, tmp_path)
    assert checkpoint.read_training(start) == {}
    trained = pretrain_condition(config.pretraining, "adapted", "pvp", 0, tmp_path)
    before = checkpoint.content_hash(trained)
    longer = replace(config.pretraining, regimes=(replace(OUT_OF_DISTRIBUTION, steps=9),))
    assert pretrain_condition(longer, "adapted", "pvp", 0, tmp_path) == trained
    assert checkpoint.content_hash(trained) == before != checkpoint.content_hash(start)


def test_encoder_only_keeps_encoder_and_connector_and_starts_a_new_decoder(config, tmp_path):
    trained, plain, replaced = (
        {name: dict(parameters) for name, parameters in role_parameters(checkpoint.load(path)).items()}
        for path in (
            pretrain_condition(config.pretraining, "adapted", pvp, 0, tmp_path) for pvp in ("pvp", "none", ENCODER_ONLY)
        )
    )
    again = pretrain_condition(config.pretraining, "adapted", ENCODER_ONLY, 0, tmp_path)
    assert again.name == ENCODER_ONLY  # it exists and is not made anew
    for role, like, unlike in (("encoder", trained, plain), ("connector", trained, plain), ("decoder", plain, trained)):
        assert all(torch.equal(tensor, like[role][name]) for name, tensor in replaced[role].items())
        assert not all(torch.equal(tensor, unlike[role][name]) for name, tensor in replaced[role].items())


@pytest.mark.slow
def test_conditions_start_from_the_models_of_pvp_nano(config, tmp_path):
    regime = config.pretraining.regimes[0]
    pvp_nano.measure_condition(config.pretraining, regime, "frozen", 1, config.pretraining_dir)
    trained = config.pretraining_dir / "out-of-distribution-frozen-1" / "last"
    before = checkpoint.content_hash(trained)
    assert pretrain_condition(config.pretraining, "frozen", "pvp", 1, config.pretraining_dir) == trained
    assert checkpoint.content_hash(trained) == before


def test_baselines_read_no_words_or_one_and_a_grid_bounds_points(config):
    frame = np.zeros((2, 210, 160, 3), np.uint8)
    frame[:, 30:42, 20:32] = frame[:, 90:102, 70:82] = (200, 72, 72)
    frame[:, 150:170, 120:140] = (66, 158, 130)
    truth = np.zeros((210, 160), bool)
    truth[30:42, 20:32] = True
    masks = {
        name: predict(ReferringSample(frame, ("the left-most red object",), truth[None], "Pong"))
        for name, predict in baselines(64).items()
    }
    assert masks["all"].all()
    assert not masks["nothing"].any()
    assert masks["largest object"].sum() == 400
    assert masks["every object of the colour"].sum() == 2 * 144
    coarse = masks["truth on a grid of 64"]
    assert 0.5 < (coarse & truth).sum() / (coarse | truth).sum() < 1
    rows = measure_baselines(config)
    best = {row["set"]: max(r["ciou"] for r in rows if r["set"] == row["set"]) for row in rows}
    assert set(best) == {"test", "held-out games"}
    assert all(0.3 < value < 1 for value in best.values())
