"""The policy that ships learns to play and to answer for pixels in one training, which goes on after a kill."""

import numpy as np
import pytest
import torch

from agents import dagger
from common.errors import UserError
from envs.episodes import DatasetInfo, Episode, EpisodeWriter
from envs.protocol import MACHADO2018
from experiments.policy import Args, main
from vlm import checkpoint
from vlm.training.mixture import MixtureObjective
from vlm.training_resolution import training_resolution

NAMES = ("noop", "fire", "right", "left", "right fire", "left fire")


@pytest.fixture
def taught(tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (12, 214, 160, 3), dtype=np.uint8)
    info = DatasetInfo("Carnival", NAMES, MACHADO2018, "planner", None, "abc", {})
    values = rng.normal(0, 50, (12, 6)).astype(np.float32)
    episode = Episode(frames, np.zeros(12, int), np.zeros(12, np.float32), values, True, False, 1)
    EpisodeWriter(tmp_path / "taught", info).append(episode)
    return tmp_path / "taught"


def arguments(taught, out):
    words = ["--data", taught, "--out", out, "--preset", "tiny", "--batch-size", 4, "--steps", 6, "--save-every", 2]
    words += ["--select-every", 0, "--warmup-steps", 1, "--workers", 0, "--pixel-share", 0.5, "--grid", 8]
    return [str(word) for word in [*words, "--images", 2, "--questions", 4]]


def test_both_tasks_teach_one_model_and_a_killed_run_goes_on_to_the_same_weights(taught, tmp_path, monkeypatch):
    assert main(arguments(taught, tmp_path / "whole")) == 0
    forward, tasks = MixtureObjective.forward, []

    def killed_in_the_fourth(self, task, **batch):
        tasks.append(int(task))
        if len(tasks) == 4:
            raise KeyboardInterrupt
        return forward(self, task, **batch)

    monkeypatch.setattr(MixtureObjective, "forward", killed_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        main(arguments(taught, tmp_path / "killed"))
    assert main(arguments(taught, tmp_path / "killed")) == 0
    assert len(tasks) == 4 + 4
    assert set(tasks) == {0, 1}
    whole, again = (checkpoint.load(tmp_path / name / "last").model.state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    step = tmp_path / "killed" / "checkpoints" / "checkpoint-6"
    assert (step / "readout.safetensors").is_file()
    record = checkpoint.read_training(tmp_path / "whole" / "last")
    assert record["games"] == ["Carnival"]
    assert training_resolution(tmp_path / "whole" / "last") == (210, 160)


def test_a_share_of_nothing_is_refused(taught, tmp_path):
    with pytest.raises(UserError, match=r"--pixel-share must be between 0 and 1, got 0\.0; without .* agents\.clone"):
        Args(data=(taught,), out=tmp_path, pixel_share=0.0)


def test_rounds_go_on_from_cloning_with_pixels_among_them(taught, tmp_path, monkeypatch):
    whole = dagger.record.Args
    monkeypatch.setattr(dagger.record, "Args", lambda **words: whole(**words, max_frames=80))
    monkeypatch.setattr(dagger, "STATES", 2)
    words = [*arguments(taught, tmp_path / "run"), "--round-steps", "3", "--episodes", "1", "--teach-every", "5"]
    assert main([*words, "--rounds", "1"]) == 0
    first = (tmp_path / "run" / "last").stat().st_mtime_ns
    assert main([*words, "--rounds", "2"]) == 0  # rounds may be added, and nothing is done again
    assert (tmp_path / "run" / "last").stat().st_mtime_ns == first
    made = checkpoint.read_training(tmp_path / "run" / "round-1" / "trained" / "last")
    assert len(made["datasets"]) == 3
    assert made["arguments"]["pixel_share"] > 0
    assert training_resolution(tmp_path / "run" / "round-1" / "trained" / "last") == (210, 160)
