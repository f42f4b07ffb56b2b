"""The released reader is asked about images of four sets, each the same whenever it is asked."""

import numpy as np
import pytest
from PIL import Image

from envs.episodes import DatasetInfo, Episode, EpisodeWriter
from envs.protocol import MACHADO2018
from experiments.run import run_jobs
from experiments.studies.reader import ReaderConfig, draw, images_of, jobs
from experiments.tables import reader_table
from pretrain.pvp import train_pvp
from pretrain.pvp_config import CONFIGS


@pytest.fixture
def config(tmp_path):
    """A small model trained for two steps, and small sets."""
    info, rng = DatasetInfo("Carnival", ("noop",), MACHADO2018, "random", None, "abc", {}), np.random.default_rng(0)
    for name, episodes in (("random-Carnival", 12), ("random-Carnival-seed500", 3)):
        writer = EpisodeWriter(tmp_path / name, info)
        for seed in range(episodes):
            frames = rng.integers(0, 256, (3, 7, 5, 3), dtype=np.uint8).repeat(30, axis=1).repeat(32, axis=2)
            writer.append(Episode(frames, np.zeros(3, int), np.zeros(3, np.float32), None, True, False, seed))
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(5):
        pixels = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((240, 260)).save(folder / f"{number}.png")
    trainer = ("dataloader_num_workers=0", "warmup_steps=1", "bf16=false")
    training = CONFIGS["play-clip"].replace(
        preset="tiny-clip", grid="18px", steps=2, images=2, questions=3, synthetic=1.0, trainer=trainer
    )
    last = train_pvp(training.replace(out=tmp_path / "run"))
    return ReaderConfig(last, ("Carnival",), ("Carnival",), folder, tmp_path, images=1)


@pytest.mark.slow
def test_every_set_gives_a_row_with_an_interval_and_a_picture_shows_them(config, tmp_path):
    found = jobs(None, tmp_path, config)
    assert [job.key["set"] for job in found][:2] == ["held-out games", "photographs"]
    assert run_jobs("reader", found, tmp_path / "r.json") == 4
    (row,) = found[1].run()
    low, high = row["mae_interval"]
    assert low <= row["mae"] <= high
    assert row["images"] == 4
    ((label, cells),) = reader_table([{**row, "set": "photographs"}]).rows
    assert label == "photographs (4 images)"
    assert cells["error of 255"].startswith(f"{row['mae']:.2f} [")
    assert draw(None, tmp_path, config) is not None
    first, again = images_of(config, "photographs"), images_of(config, "photographs")
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(first, again, strict=True))
