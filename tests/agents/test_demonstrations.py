"""Cloning by the names of games: teachers play what is lacking, once, and what they played is what is learnt."""

import json

import pytest

from agents import clone
from agents.demonstrations import expert_normalized_score
from common.command import run
from envs.episodes import EpisodeDataset


def command(*arguments):
    return run(lambda: clone.main([str(argument) for argument in arguments]))


SMALL = ("--preset", "tiny", "--batch-size", 4, "--select-every", 0, "--warmup-steps", 1, "--workers", 0, "--steps", 2)


def test_games_are_recorded_by_their_teachers_once_and_cloned_into_one_policy(tmp_path):
    games = ("--games", "pong", "Ms. Pac-Man", "--teach-episodes", 1, "--teach-frames", 40, "--room", tmp_path / "data")
    assert command(*games, "--out", tmp_path / "a", *SMALL) == 0
    training = json.loads((tmp_path / "a" / "last" / "training.json").read_text())
    assert training["games"] == ["MsPacman", "Pong"]
    places = {place.name: place for place in (tmp_path / "data").iterdir() if place.is_dir()}
    assert set(places) == {"paddle-expert-Pong", "mspacman-expert-MsPacman"}
    for place in places.values():
        data = EpisodeDataset(place)
        assert len(data.seeds) == 1
        assert data.info.protocol.max_episode_frames == 40
        assert data.info.agent.endswith("noise 0.05")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "data").rglob("*.parquet")}
    assert command(*games, "--out", tmp_path / "b", *SMALL) == 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "data").rglob("*.parquet")} == before


def test_a_game_can_have_another_teacher(tmp_path):
    games = ("--games", "Pong", "--teachers", "pong=random", "--teach-episodes", 1, "--teach-frames", 40)
    assert command(*games, "--room", tmp_path / "data", "--out", tmp_path / "a", *SMALL) == 0
    assert EpisodeDataset(tmp_path / "data" / "random-Pong").info.labels is None


def test_shares_count_from_random_play_so_that_scores_below_zero_do_not_outweigh_the_rest():
    teachers = {"Pong": 0.0, "Breakout": 26.4}
    assert expert_normalized_score({"Pong": [-20.2], "Breakout": [1.4, 1.4]}, teachers) == pytest.approx(0)
    assert expert_normalized_score({"Pong": [-10.1], "Breakout": [0.4, 27.4]}, teachers) == pytest.approx(0.5)
    assert expert_normalized_score({"Pong": [0.0], "Breakout": [26.4]}, teachers) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "expected --data, recorded games, or --games"),
        (("--games", "Pongg"), "nearest: Pong"),
        (("--games", "Pong", "--teachers", "Pong"), "expected GAME=AGENT"),
        (("--games", "Pong", "--teachers", "Pong=plnner"), "nearest: planner"),
        (("--games", "Pong", "--teachers", "Carnival=planner"), "names Carnival, which is not among --games"),
        (("--games", "Pong", "--teach-episodes", 0), "--teach-episodes must be at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, capsys, arguments, told):
    assert command(*arguments, "--room", tmp_path, "--out", tmp_path / "a", *SMALL) == 2
    assert told in " ".join(capsys.readouterr().err.split())
