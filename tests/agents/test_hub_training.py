"""Datasets of the hub train a policy as recorded games do."""

import fnmatch
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from agents import checkpoint_selection, clone
from agents.bc_dataset import load_labelled_datasets
from agents.checkpoint_selection import best_scores
from agents.clone_config import CONFIGS
from common.command import run
from envs import hub_source
from envs.hub_sets import local_dataset
from pretrain.data.images import EpisodeFrames, open_image_source
from tests.hub_data import make_frames, write_atari_parquet
from vlm import checkpoint

SMALL = ("--preset", "tiny", "--batch-size", 4, "--steps", 2, "--eval-every", 0)
TRAINER = ("--trainer", "warmup_steps=1", "dataloader_num_workers=0", "save_steps=2")


def command(*arguments):
    return run(lambda: clone.main([str(argument) for argument in arguments]))


@pytest.mark.slow
def test_a_policy_is_cloned_from_the_layout_of_atari_parquet_on_the_hub_and_resumes(tmp_path, monkeypatch, capsys):
    there = write_atari_parquet(tmp_path / "there", ("alien", "pong"))

    def download(repo_id, repo_type, revision, allow_patterns):
        for file in filter(Path.is_file, there.rglob("*")):
            path = str(file.relative_to(there))
            if any(fnmatch.fnmatch(path, pattern) for pattern in allow_patterns):
                (tmp_path / "cache" / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, tmp_path / "cache" / path)
        return str(tmp_path / "cache")

    monkeypatch.setattr(hub_source, "snapshot_download", download)
    name = "hf://owner/of-the-training-test:pong"
    arguments = (*SMALL, "--data", name, "--pvp-weight", 0.5, *TRAINER, "--out", tmp_path / "run")
    assert command(*arguments) == 0
    assert "Pong, 2 games, 8 steps, no scores" in capsys.readouterr().out
    training = checkpoint.read_training(tmp_path / "run" / "last")
    (dataset,) = training["datasets"]
    assert (dataset["game"], dataset["steps"], dataset["mean_score"]) == ("Pong", 8, None)
    assert dataset["versions"]["source"] == "hf://owner/of-the-training-test:default/pong"
    before = checkpoint.content_hash(tmp_path / "run" / "last")
    assert command(*arguments) == 0  # repeats a finished command
    assert checkpoint.content_hash(tmp_path / "run" / "last") == before


@pytest.mark.slow
def test_a_users_own_columns_train_too(tmp_path):
    folder = write_atari_parquet(tmp_path / "clone", ("train",))
    given = ("--data", folder, "--columns", "frame=image", "episode=episode", "--data-game", "pong")
    assert command(*SMALL, *given, *TRAINER, "--out", tmp_path / "run") == 0
    arguments = json.loads((tmp_path / "run" / "arguments.json").read_text())
    assert (arguments["columns"], arguments["data_game"]) == (["frame=image", "episode=episode"], "pong")


def test_what_is_learned_are_the_rows_of_the_dataset(tmp_path):
    config = CONFIGS["default"].replace(data=(Path(f"{write_atari_parquet(tmp_path / 'clone', kind='PNG')}:pong"),))
    (dataset,) = clone.load_datasets(config)
    assert dataset.targets.argmax(axis=1).tolist() == [(3 * row) % 6 for row in range(8)]
    assert np.array_equal(dataset.data.frames(3, 1)[0], make_frames(8)[3])


def test_a_mistake_in_the_options_is_one_line(tmp_path, capsys):
    folder = write_atari_parquet(tmp_path / "clone")
    capsys.readouterr()
    assert command(*SMALL, "--data", folder, "--columns", "frame=picture", "--out", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder}: --columns frame=picture: there is no such column; nearest: ")
    assert error.count("\n") == 1


def test_pixel_value_prediction_takes_the_same_names(tmp_path):
    folder = write_atari_parquet(tmp_path / "clone", ("alien", "pong"), kind="PNG")
    source = open_image_source(f"{folder}:pong")
    assert isinstance(source, EpisodeFrames)
    assert np.array_equal(source.image(2), make_frames(8, seed=1)[2])


def test_a_human_stands_for_experts_whose_score_is_unknown(tmp_path):
    assert best_scores([("Pong", None), ("Alien", None), ("Alien", 30.0)]) == {"Pong": 14.6, "Alien": 30.0}
    assert best_scores([("Carnival", None)]) == {"Carnival": 761.7}  # no human's is known: random play's and one
    data = load_labelled_datasets([local_dataset(write_atari_parquet(tmp_path / "clone"))], "soft", 1.0, 0.0)
    selection = checkpoint_selection.CheckpointSelectionCallback(None, data, None, tmp_path, {})
    assert selection.experts == {"Pong": 14.6}
