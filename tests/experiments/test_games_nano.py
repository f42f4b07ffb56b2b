"""A small games-nano: conditions clone the same episodes, a fraction is their first ones, rows hold raw scores."""

import json
from dataclasses import replace

import numpy as np
import pytest

from envs.episodes import DatasetInfo, Episode, EpisodeDataset, EpisodeWriter
from envs.protocol import MACHADO2018
from experiments import run
from experiments.run import Experiment, main
from experiments.studies import pvp_nano
from experiments.studies.conditions import CONDITIONS
from experiments.studies.games_nano import (
    NANO,
    DemonstratorConfig,
    ExperimentConfig,
    demonstrations,
    heldout_episodes,
    heldout_expert_nll,
    jobs,
    prepare,
)
from experiments.studies.pvp_nano import OUT_OF_DISTRIBUTION
from pretrain.data.frame_captions import caption_tokenizer
from vlm import checkpoint
from vlm.presets import build
from vlm.released_checkpoints import RELEASED_POLICY
from vlm.sinusoidal_init import init_number_embeddings


@pytest.fixture
def config(tmp_path):
    """An experiment of seconds: games of 20 agent steps, over recorded frames."""
    rng = np.random.default_rng(0)
    for game in ("Pong", "MsPacman"):
        info = DatasetInfo(game, ("noop",), MACHADO2018, "random", None, "abc", {})
        writer = EpisodeWriter(tmp_path / "data" / f"random-{game}", info)
        for seed in range(2):
            frames = rng.integers(0, 256, (4, 210, 160, 3), dtype=np.uint8)
            writer.append(Episode(frames, np.zeros(4, int), np.zeros(4, np.float32), None, True, False, seed))
    captioner = build("tiny", 0, caption_tokenizer())
    init_number_embeddings(captioner)
    checkpoint.save(captioner, tmp_path / "captioner", {})
    small = {"preset": "tiny", "val_episodes": 1, "trainer": ("dataloader_num_workers=0", "warmup_steps=1")}
    pretraining = pvp_nano.ExperimentConfig(
        NANO.pretraining.training.replace(
            init=tmp_path / "captioner", attention_supervision_weight=0.0, heads_by_number=False, **small
        ),
        games=("Pong",), held_out_games=(), episodes=2, data_dir=tmp_path / "data", photographs=None,
        regimes=(replace(OUT_OF_DISTRIBUTION, steps=2, images=2, questions=4),), eval_images=2,
    )  # fmt: skip
    return ExperimentConfig(
        pretraining, tmp_path / "pretraining", num_heldout_episodes=1, num_heldout_steps=8,
        data_fractions=(1.0, 0.5), clone_steps=(2, 1),
        demonstrators=tuple(
            DemonstratorConfig("MsPacman", "mspacman-expert", 2, *one, 80) for one in ((0.0, 40), (0.4, 42))
        ),
        cloning=NANO.cloning.replace(batch_size=4, game_weights=(), trainer=small["trainer"]),
        episodes=2, num_envs=2, engine="torch", protocol=replace(MACHADO2018, max_episode_frames=80),
    )  # fmt: skip


@pytest.mark.slow
def test_every_condition_is_cloned_and_plays_and_frozen_encoders_stay(config, tmp_path, monkeypatch):
    small = Experiment(lambda: prepare(config), lambda seeds, work: jobs(seeds, work, config))
    monkeypatch.setitem(run.EXPERIMENTS, "games-nano", small)
    command = ["games-nano", "--seeds", "3", "--out", str(tmp_path / "r.json"), "--work", str(tmp_path / "work")]
    assert main([*command, "--processes", "1"]) == 0
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    trained = [row for row in rows if "encoder" in row]
    conditions = {(row["encoder"], row["pvp"], row["data_fraction"]) for row in trained}
    assert conditions == {(*condition, fraction) for condition in CONDITIONS for fraction in (1.0, 0.5)}
    assert len(rows) == 1 + 2 * len(CONDITIONS), "two demonstrators of one game make one row"
    assert all(len(row["scores"]) == 2 and row["game"] == "MsPacman" for row in rows)
    assert all(row["experts"] == ["mspacman-expert"] for row in trained)
    assert all(0 <= row["action_accuracy"] <= 1 and row["heldout_nll"] > 0 for row in trained)
    assert all(("pvp_mae" in row) == (row.get("pvp") == "pvp") for row in rows)
    (random,) = (row for row in rows if row.get("condition") == "random")
    assert random["image_mean_mae"] > 0
    assert random["patch_mean_mae"] > 0
    for encoder, pvp in CONDITIONS:
        made = checkpoint.read_training(tmp_path / "work" / f"clone-{encoder}-{pvp}-1-3" / "last")
        assert (made["parameter_updates"]["encoder"]["changed"] > 0) == (encoder == "adapted")
        assert made["arguments"]["steps"] == 2


def test_a_fraction_of_the_demonstrations_is_their_first_episodes(config):
    whole, half = (EpisodeDataset(demonstrations(config, config.demonstrators[0], fraction)) for fraction in (1.0, 0.5))
    assert half.seeds == whole.seeds[:1]
    assert np.array_equal(half.actions, whole.actions[: len(half)])


def test_the_name_of_a_vlm_demonstrator_holds_its_content_hash():
    assert DemonstratorConfig("Carnival", "vlm", 1, 0.0, 10).name == f"vlm-{checkpoint.content_hash(RELEASED_POLICY)}"
    assert DemonstratorConfig("MsPacman", "mspacman-expert", 1, 0.0, 40).name == "mspacman-expert"


@pytest.mark.slow
def test_the_likelihood_is_measured_on_episodes_that_no_condition_trains_on(config):
    prepare(config)
    demonstrator = config.demonstrators[0]
    heldout, whole = heldout_episodes(config, demonstrator), demonstrations(config, demonstrator, 1.0)
    assert not set(EpisodeDataset(heldout).seeds) & set(EpisodeDataset(whole).seeds)
    one, again = (heldout_expert_nll(config, config.pretraining.training.model.init) for _ in range(2))
    assert one == again
    assert one["MsPacman"]["heldout_nll"] > 1
