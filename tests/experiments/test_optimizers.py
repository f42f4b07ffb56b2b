"""AdamW and Muon train on the same batches, and the table compares the time to the same value."""

import json
from dataclasses import replace

import numpy as np
import pytest
from transformers import TrainerState

from envs.episodes import DatasetInfo, Episode, EpisodeWriter
from envs.protocol import MACHADO2018
from experiments.run import run_jobs
from experiments.studies.optimizers import NANO, LossCurveCallback, jobs
from experiments.tables import optimizers_table


@pytest.fixture
def config(tmp_path):
    """A study of seconds."""
    info = DatasetInfo("MsPacman", ("noop", "up", "left"), MACHADO2018, "test", "planner", "abc", {})
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (6, 210, 160, 3), dtype=np.uint8)
    values = rng.normal(size=(6, 3)).astype(np.float32)
    out = tmp_path / "data"
    EpisodeWriter(out, info).append(Episode(frames, np.zeros(6, int), np.ones(6, np.float32), values, True, False, 0))
    trainer = ("dataloader_num_workers=0", "warmup_steps=1", "bf16=false")
    pvp = NANO.pvp.replace(preset="tiny-clip", grid="12", steps=50, images=2, questions=3, trainer=trainer)
    clone = NANO.clone.replace(preset="tiny", steps=50, batch_size=2, trainer=trainer, horizontal_flip=())
    return replace(NANO, pvp=pvp, clone=clone, demonstrations=replace(NANO.demonstrations, out=out))


@pytest.mark.slow
def test_each_task_gives_a_curve_for_each_optimizer(config, tmp_path):
    found = jobs((0,), tmp_path / "work", config)
    assert [job.key["task"] for job in found] == ["pixel values", "pixel values", "cloning", "cloning"]
    assert run_jobs("optimizers", found[:1] + found[2:3], tmp_path / "r.json") == 2
    rows = found[2].run()  # finished: its curve is read again
    assert [row["step"] for row in rows] == [25, 50]
    assert rows[0]["seconds"] <= rows[1]["seconds"]
    assert {row["metric"] for row in rows} == {"loss"}


def test_a_resumed_curve_has_no_entry_twice(tmp_path):
    curve = LossCurveCallback(tmp_path / "curve.json")
    curve.on_train_begin(None, TrainerState(global_step=0), None)
    for step in (25, 50):
        curve.on_log(None, TrainerState(global_step=step), None, {"loss": 1.0})
    resumed = LossCurveCallback(tmp_path / "curve.json")
    resumed.on_train_begin(None, TrainerState(global_step=25), None)
    resumed.on_log(None, TrainerState(global_step=50), None, {"loss": 2.0})
    rows = json.loads((tmp_path / "curve.json").read_text())
    assert [(row["step"], row["loss"]) for row in rows] == [(25, 1.0), (50, 2.0)]


def test_the_table_tells_when_muon_reaches_what_adamw_ends_at():
    def curve(optimizer, values):
        return [
            {"task": "cloning", "optimizer": optimizer, "metric": "loss", "step": 25 * n, "seconds": 10 * n, "value": v}
            for n, v in enumerate(values, 1)
        ]

    (task, cells), *rest = optimizers_table(curve("adamw", [3, 2, 1.5, 1.2]) + curve("muon", [2, 1.2, 1.1, 1.0])).rows
    assert task == "cloning"
    assert not rest
    assert cells["Muon, to AdamW's value"] == "50 steps, 20 s"
    assert cells["times as fast"] == "2.0"
    (_, slower), *_ = optimizers_table(curve("adamw", [3, 1]) + curve("muon", [3, 2])).rows
    assert "times as fast" not in slower
