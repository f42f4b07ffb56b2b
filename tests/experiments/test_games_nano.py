"""games-nano in small: arms clone the same games, a tenth is a part of the whole, and rows hold raw scores."""

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
    SEEDS,
    DemonstratorConfig,
    ExperimentConfig,
    demonstrations,
    heldout_expert_nll,
    jobs,
    kept_games,
    prepare,
)
from experiments.studies.pvp_nano import FAMILIAR
from vlm import checkpoint
from vlm.pretrained import RELEASED_EXPERT


@pytest.fixture
def setting(tmp_path):
    """A setting of seconds: games of 20 decisions, and frames that are already there."""
    rng = np.random.default_rng(0)
    for game in ("Pong", "MsPacman"):
        info = DatasetInfo(game, ("noop",), MACHADO2018, "random", None, "abc", {})
        writer = EpisodeWriter(tmp_path / "data" / f"random-{game}", info)
        for seed in range(2):
            frames = rng.integers(0, 256, (4, 210, 160, 3), dtype=np.uint8)
            writer.append(Episode(frames, np.zeros(4, int), np.zeros(4, np.float32), None, True, False, seed))
    frames = pvp_nano.ExperimentConfig(
        games=("Pong",), strangers=(), episodes=2, hold=1, data=tmp_path / "data", tower=None,
        start=tmp_path / "captions" / "last",
        regimes=(replace(FAMILIAR, steps=2, images=2, questions=4),), preset="tiny", grid="4", gaze=0,
        workers=0, images_full=2,
    )  # fmt: skip
    return ExperimentConfig(
        frames, captioned=("Pong",), start_steps=1, taught=tmp_path / "taught", kept=1, decisions=8, shares=(1.0, 0.5),
        clone_steps=(2, 1),
        teachers=tuple(DemonstratorConfig("MsPacman", "pathfinder", 2, noise, seed, 80) for noise, seed in ((0.0, 40), (0.4, 42))),
        batch_size=4, game_shares=(), games=2, lanes=2, engine="torch",
        protocol=replace(MACHADO2018, max_episode_frames=80), workers=0,
    )  # fmt: skip


def test_every_arm_clones_and_plays_and_frozen_encoders_stay(setting, tmp_path, monkeypatch):
    small = Experiment(lambda: prepare(setting), lambda seeds, work: jobs(seeds, work, setting))
    monkeypatch.setitem(run.EXPERIMENTS, "games-nano", small)
    command = ["games-nano", "--seeds", "3", "--out", str(tmp_path / "r.json"), "--work", str(tmp_path / "work")]
    assert main([*command, "--processes", "1"]) == 0
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    arms = {(row["encoder"], row["pvp"], row["share"]) for row in rows if "encoder" in row}
    assert arms == {(*arm, share) for arm in CONDITIONS for share in (1.0, 0.5)}
    assert len(rows) == 1 + 2 * len(CONDITIONS), "two teachers of one game make one row"
    assert all(len(row["scores"]) == 2 and row["game"] == "MsPacman" for row in rows)
    assert all(row["teachers"] == ["pathfinder"] for row in rows if "encoder" in row)
    assert all(0 <= row["agreed"] <= 1 and row["loss"] > 0 for row in rows if "encoder" in row)
    assert all(("read" in row) == (row.get("pvp") == "pvp") for row in rows)
    (random,) = (row for row in rows if row.get("arm") == "random")
    assert random["image_mean"] > 0
    assert random["patch_mean"] > 0
    for encoder, pvp in CONDITIONS:
        made = checkpoint.read_training(tmp_path / "work" / f"clone-{encoder}-{pvp}-1-3" / "last")
        assert (made["parameter_updates"]["encoder"]["changed"] > 0) == (encoder == "adapted")
        assert made["arguments"]["steps"] == 2


def test_a_share_of_the_demonstrations_is_their_first_games(setting):
    whole, half = (EpisodeDataset(demonstrations(setting, setting.teachers[0], share)) for share in (1.0, 0.5))
    assert half.seeds == whole.seeds[:1]
    assert np.array_equal(half.actions, whole.actions[: len(half)])


def test_a_teacher_of_weights_is_known_by_them_so_that_rows_of_two_are_told_apart():
    assert DemonstratorConfig("Carnival", "vlm", 1, 0.0, 10).name == f"vlm-{checkpoint.content_hash(RELEASED_EXPERT)}"
    assert DemonstratorConfig("MsPacman", "pathfinder", 1, 0.0, 40).name == "pathfinder"


def test_a_policy_is_asked_to_foretell_games_that_no_arm_learns_from(setting):
    prepare(setting)
    kept, whole = kept_games(setting, setting.teachers[0]), demonstrations(setting, setting.teachers[0], 1.0)
    assert not set(EpisodeDataset(kept).seeds) & set(EpisodeDataset(whole).seeds)
    one, again = (heldout_expert_nll(setting, setting.frames.start) for _ in range(2))
    assert one == again
    assert one["MsPacman"]["loss"] > 1


def test_the_published_experiment_fits_into_ten_hours_of_two_cores(tmp_path):
    whole = jobs(None, tmp_path)
    assert len(whole) == 1 + len(SEEDS) * 2 * len(CONDITIONS)
    assert len(SEEDS) >= 5
    assert sum(job.seconds for job in whole) / 2 <= 10 * 3600
