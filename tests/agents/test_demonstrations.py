"""Cloning by the names of games: experts record what is missing, once, and the policy is cloned from it."""

import json

import pytest

from agents import clone
from agents.checkpoint_selection import expert_normalized_score
from common.command import run
from envs.episodes import EpisodeDataset


def command(*arguments):
    return run(lambda: clone.main([str(argument) for argument in arguments]))


SMALL = ("--preset", "tiny", "--batch-size", 4, "--eval-every", 0, "--steps", 2,
         "--trainer", "warmup_steps=1", "dataloader_num_workers=0")  # fmt: skip


def test_games_are_recorded_by_their_experts_once_and_cloned_into_one_policy(tmp_path):
    games = (
        "--games",
        "pong",
        "Ms. Pac-Man",
        "--demo-episodes",
        1,
        "--demo-max-frames",
        40,
        "--demo-dir",
        tmp_path / "data",
    )
    assert command(*games, "--out", tmp_path / "a", *SMALL) == 0
    training = json.loads((tmp_path / "a" / "last" / "training.json").read_text())
    assert training["games"] == ["MsPacman", "Pong"]
    places = {place.name: place for place in (tmp_path / "data").iterdir() if place.is_dir()}
    assert set(places) == {"paddle-expert-Pong", "mspacman-expert-MsPacman"}
    for place in places.values():
        data = EpisodeDataset(place)
        assert len(data.seeds) == 1
        assert data.info.protocol.max_episode_frames == 40
        assert data.info.agent.endswith("random actions 0.05")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "data").rglob("*.parquet")}
    assert command(*games, "--out", tmp_path / "b", *SMALL) == 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "data").rglob("*.parquet")} == before


def test_a_game_can_have_another_expert(tmp_path):
    games = ("--games", "Pong", "--experts", "pong=random", "--demo-episodes", 1, "--demo-max-frames", 40)
    assert command(*games, "--demo-dir", tmp_path / "data", "--out", tmp_path / "a", *SMALL) == 0
    assert EpisodeDataset(tmp_path / "data" / "random-Pong").info.labels is None


def test_normalized_scores_count_from_random_play_so_that_negative_scores_do_not_outweigh_the_rest():
    experts = {"Pong": 0.0, "Breakout": 26.4}
    assert expert_normalized_score({"Pong": [-20.2], "Breakout": [1.4, 1.4]}, experts) == pytest.approx(0)
    assert expert_normalized_score({"Pong": [-10.1], "Breakout": [0.4, 27.4]}, experts) == pytest.approx(0.5)
    assert expert_normalized_score({"Pong": [0.0], "Breakout": [26.4]}, experts) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected --data, recorded games, or --games"),
        (("--games", "Pongg"), "nearest: Pong"),
        (("--games", "Pong", "--experts", "Pong"), "expected GAME=AGENT"),
        (("--games", "Pong", "--experts", "Pong=plnner"), "nearest: planner"),
        (("--games", "Pong", "--experts", "Carnival=planner"), "names Carnival, which is not among --games"),
        (("--games", "Pong", "--demo-episodes", 0), "--demo-episodes must be at least 1"),
    ],
)
def test_contradictions_are_refused(tmp_path, capsys, arguments, message):
    assert command(*arguments, "--demo-dir", tmp_path, "--out", tmp_path / "a", *SMALL) == 2
    assert message in " ".join(capsys.readouterr().err.split())
