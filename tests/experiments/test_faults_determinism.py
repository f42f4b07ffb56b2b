"""Runs, numbers of environments and engines are compared, and what differs is counted."""

import json
import random
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest

from experiments.faults import determinism
from experiments.faults.determinism import (
    compare_engines,
    compare_envs,
    compare_films,
    compare_runs,
    env_commands,
    scored_games,
)
from experiments.faults.tiny_commands import TinyCommand, prepare, tiny_commands


class Stub:
    """A command that writes into its directory."""

    name = "stub"

    def __init__(self, write):
        self.write = write

    def run(self):
        self.write()
        return 0


def test_equal_runs_have_no_different_file_and_others_are_named(tmp_path):
    row = compare_runs(Stub(lambda: Path("weights").write_text("1")), tmp_path)
    assert (row["files"], row["different"], row["examples"]) == (1, 0, [])
    row = compare_runs(Stub(lambda: Path("weights").write_text(str(random.SystemRandom().random()))), tmp_path)
    assert (row["different"], row["examples"]) == (1, ["different: weights"])


def test_films_differ_by_frames_and_by_length(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    for name, shown in (("one", frames), ("same", frames), ("other", frames[[0, 2, 1]]), ("short", frames[:2])):
        imageio.mimwrite(tmp_path / f"{name}.mp4", list(shown), fps=10, codec="libx264rgb", output_params=["-crf", "0"])
    one = tmp_path / "one.mp4"
    assert compare_films(one, tmp_path / "same.mp4") == (3, 0)
    assert compare_films(one, tmp_path / "other.mp4") == (3, 2)
    assert compare_films(one, tmp_path / "short.mp4") == (3, 1)


class ScoreByEnvs(TinyCommand):
    """Scores three games, the last of them by the number of environments."""

    def run(self):
        num_envs = int(self.words[self.words.index("--num-envs") + 1])
        Path("scores.json").write_text(json.dumps({"rows": [{"seed": 0, "scores": [1, 2, num_envs]}]}))
        return 0


def test_games_that_differ_with_the_number_of_environments_are_named(tmp_path):
    row = compare_envs(ScoreByEnvs("score", "agents.score", ()), tmp_path, scored_games)
    assert (row["games"], row["different"], row["examples"]) == (3, 1, ["seed 0 game 2"])


@pytest.mark.slow
def test_one_and_twelve_environments_record_and_score_the_same_games(tmp_path):
    for command, read in env_commands():
        row = compare_envs(command, tmp_path, read)
        assert (row["games"], row["different"]) == (12, 0), row["examples"]
        assert row.get("max_probability_difference", 0.0) < 1e-5


@pytest.mark.slow
def test_a_training_and_a_film_are_equal_bit_for_bit(tmp_path):
    commands = tiny_commands(prepare(tmp_path / "inputs"))
    for name in ("pvp", "play"):
        row = compare_runs(commands[name], tmp_path)
        assert row["files"]
        assert not row["different"], row["examples"]
    assert (row["frames"], row["different_frames"]) == (120, 0)


@pytest.mark.slow
def test_engines_disagree_in_few_decisions_and_the_largest_difference_is_told(tmp_path):
    openvino, batch = compare_engines("Carnival", tmp_path, 0, count=50)
    assert openvino["decisions"] == batch["decisions"] == 50
    assert openvino["different"] <= 5
    assert 0 < openvino["max_log_prob_difference"] < 0.5
    assert batch["different"] == 0
    assert batch["max_log_prob_difference"] < 1e-3


def test_greedy_actions_that_differ_are_counted(tmp_path, monkeypatch):
    frames = [np.zeros((2, 2, 3), np.uint8)] * 3
    found = {("torch", 1): [[0.9, 0.1]] * 3, ("openvino", 1): [[0.9, 0.1], [0.4, 0.6], [0.9, 0.1]]}
    monkeypatch.setattr(determinism, "recorded_frames", lambda *_: frames)
    monkeypatch.setattr(
        determinism, "log_probs", lambda _, engine, __, batch: np.log(found.get((engine, batch), found["torch", 1]))
    )
    openvino, batch = compare_engines("Carnival", tmp_path, 0)
    assert (openvino["different"], openvino["examples"]) == (1, ["decision 1"])
    assert openvino["max_log_prob_difference"] == pytest.approx(np.log(6))
    assert (batch["different"], batch["max_log_prob_difference"]) == (0, 0.0)
