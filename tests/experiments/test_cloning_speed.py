"""The benchmark of cloning gives TRL the candidate's own batches, and both compute the same loss and gradient."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from envs.episodes import EpisodeWriter
from envs.games import action_names, find_game
from experiments.benchmarks import cloning_speed, dataset_speed
from experiments.benchmarks.cloning_models import LLAVA, PresetProcessor, image_of, processor_of, write_model
from experiments.benchmarks.cloning_speed import Args, Cloning, FineTuning, StepClock, game_batches
from vlm import checkpoint
from vlm.presets import build
from vlm.prompts import IMAGE

GAME = find_game("MsPacman")


@pytest.fixture
def sides(tmp_path, monkeypatch):
    """A function that returns both sides of the benchmark of a model, with batches of four frames."""
    monkeypatch.setattr(dataset_speed, "EPISODE_STEPS", 20)

    def build_sides(name):
        info, episode = dataset_speed.record_episode(GAME.name)
        EpisodeWriter(tmp_path / "data", info).append(episode)
        write_model(name, tmp_path / "model", GAME.title, action_names(GAME))
        args = Args(out=tmp_path / "out.json", batch_size=4, steps=1)
        cloning = Cloning(args, tmp_path / "model", tmp_path / "data", tmp_path / "runs")
        return cloning, FineTuning(args, cloning, GAME)

    return build_sides


@pytest.mark.parametrize("name", ["tiny", LLAVA])
def test_loss_and_gradient_of_both_are_the_same(name, sides):
    pytest.importorskip("trl", reason="pip install -e '.[baselines]'")
    cloning, tuning = sides(name)
    ours, theirs = cloning.first_step(), tuning.first_step()
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-3)
    assert ours["norm"] == pytest.approx(theirs["norm"], rel=1e-3)
    assert ours["loss"] > 1


def test_the_baseline_gets_the_batches_of_the_candidate(sides):
    cloning, tuning = sides("tiny")
    batches, end = cloning.batches(), tuning.vlm.tokenizer.eos_token
    parts = [part for batch in batches for part in game_batches(batch)]
    frames = np.concatenate([part.frames.numpy() for part in parts])
    answers = [action_names(GAME)[i] + end for part in parts for i in part.targets.argmax(1).tolist()]
    assert len(set(answers)) > 2
    assert tuning.data["completion"][:] == answers
    rows = [np.stack([np.asarray(frame) for frame in row["images"]]) for row in tuning.data]
    assert np.array_equal(np.stack(rows), frames)


def test_the_processor_of_presets_makes_the_models_own_input():
    vlm, rng = build("tiny", 1), np.random.default_rng(0)
    frames = rng.integers(0, 256, (2, vlm.history, 210, 160, 3), dtype=np.uint8)
    stacks = [[Image.fromarray(frame) for frame in stack] for stack in frames]
    processor = processor_of(vlm)
    assert isinstance(processor, PresetProcessor)
    made = processor(images=stacks, text=[f"a {IMAGE} b"] * 2, return_tensors="pt", add_special_tokens=False)
    assert torch.equal(made["pixel_values"], vlm.preprocess(frames))
    assert made["input_ids"][0].tolist().count(vlm.model.config.image_token_id) == 35


def test_the_llava_sees_the_whole_frame(tmp_path):
    write_model(LLAVA, tmp_path / "model", GAME.title, action_names(GAME))
    vlm = checkpoint.load(tmp_path / "model", torch.device("cpu"))
    assert image_of(vlm, np.zeros((210, 160, 3), np.uint8)).shape == (210, 210, 3)
    assert vlm.tokenizer.unk_token_id not in vlm.prompt_ids(vlm.action_prompt(GAME.title, action_names(GAME)))[1]


def test_a_clock_leaves_out_the_first_steps():
    clock = StepClock()
    clock.ends = [(0.0, 0.0), (5.0, 5.0), (6.0, 5.5), (8.0, 6.5)]
    assert clock.seconds().tolist() == [[1, 0.5], [2, 1]]


@pytest.mark.slow
def test_both_trainings_are_timed(benchmark_rows, monkeypatch):
    pytest.importorskip("trl", reason="pip install -e '.[baselines]'")
    monkeypatch.setattr(dataset_speed, "EPISODE_STEPS", 20)
    arguments = ["--models", "tiny", "--batch-size", 4, "--steps", 2, "--rounds", 2]
    rows = benchmark_rows(cloning_speed.main, *arguments)
    for row in rows:
        assert min(row["candidate"], row["baseline"]) > 0
        assert len(row["ratio_of_rounds"]) == 2
        assert row["n"] == 4


def test_without_trl_the_command_that_installs_it_is_named(refusal, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    said = refusal(cloning_speed.main, "--models", "tiny")
    assert "expected TRL" in said
    assert "pip install -e '.[baselines]'" in said


def test_zero_counts_are_refused(refusal):
    assert "--steps must be at least 1, got 0" in refusal(cloning_speed.main, "--steps", 0)
