"""The levers of pixel value prediction: each is taken away alone, and all are judged on images never trained on."""

from dataclasses import replace

import numpy as np
import pytest

from envs.episodes import DatasetInfo, Episode, EpisodeWriter
from envs.protocol import MACHADO2018
from experiments.run import run_jobs
from experiments.studies.pvp_levers import ALL, LEVERS, LEVERS_CONFIG, LeversConfig, eval_sets, jobs
from pretrain.pvp_config import CONFIGS


@pytest.fixture
def config(tmp_path):
    """A study of seconds."""
    info = DatasetInfo("Carnival", ("noop",), MACHADO2018, "random", None, "abc", {})
    writer = EpisodeWriter(tmp_path / "data" / "random-Carnival", info)
    for seed in range(3):
        frames = np.random.default_rng(seed).integers(0, 256, (4, 7, 5, 3), dtype=np.uint8)
        frames = frames.repeat(30, axis=1).repeat(32, axis=2)
        writer.append(Episode(frames, np.zeros(4, int), np.zeros(4, np.float32), None, True, False, seed))
    trainer = ("dataloader_num_workers=0", "warmup_steps=1", "bf16=false")
    training = LEVERS_CONFIG.training.replace(preset="tiny-clip", grid="12", steps=2, images=2, questions=3)
    return LeversConfig(training.replace(trainer=trainer), games=("Carnival",), images=4, data_dir=tmp_path / "data")


def test_every_lever_changes_one_thing_and_the_last_takes_all_away():
    reading = CONFIGS["reading"].to_flat()
    for name, changes in LEVERS.items():
        if name not in (ALL, "no lever"):
            assert changes
            assert all(reading[field] != value for field, value in changes.items()), name
    taken = set(LEVERS["no lever"]) | {"attention_supervision_weight"}  # as earlier settings had it
    assert all(set(change) <= taken for change in LEVERS.values())


def test_the_sets_are_the_same_for_every_setting(config):
    first, again = eval_sets(config), eval_sets(config)
    assert set(first) == {"held-out games", "photographs", "synthetic"}
    for name, images in first.items():
        assert len(images) == 4
        assert all(np.array_equal(a.frames, b.frames) for a, b in zip(images, again[name], strict=True))


@pytest.mark.slow
def test_a_setting_gives_a_row_for_each_set_with_its_gates(config, tmp_path):
    few = replace(config, levers=(ALL, "AdamW for every parameter"))
    found = jobs((0,), tmp_path / "work", few)
    assert run_jobs("pvp-levers", found, tmp_path / "r.json") == 2
    rows = found[0].run()  # resumes a finished training
    assert [row["set"] for row in rows] == ["held-out games", "photographs", "synthetic"]
    for row in rows:
        assert row["fails_at"] in ("tokens", "patches", "within", "channels", "objects")
        assert row["mae"] > row["mae_image_mean"] * 0.5
        assert row["token_probe_mae"] > 0
