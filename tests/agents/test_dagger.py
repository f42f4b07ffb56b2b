"""Rounds of DAgger improve a policy and resume after a kill to the same numbers."""

import json

import numpy as np
import pytest
import torch

from agents import clone, dagger, improve
from agents.dagger import DaggerConfig, describe, games_of, label_ceiling, train_round
from common.command import run
from common.errors import UserError
from envs.episodes import EpisodeDataset
from vlm import checkpoint
from vlm.presets import build

SMALL = ("--rounds", "2", "--episodes", "1", "--steps", "2", "--batch-size", "8", "--save-every", "1", "--workers", "0")


def command(*arguments):
    return run(lambda: improve.main([str(argument) for argument in arguments]))


@pytest.fixture
def short_games(monkeypatch):
    """Recordings of at most 60 steps, and few states labelled twice."""
    whole = dagger.record.Args
    monkeypatch.setattr(dagger.record, "Args", lambda **words: whole(**words, max_frames=240))
    monkeypatch.setattr(dagger, "STATES", 3)
    monkeypatch.setattr(dagger, "APART", 4)


def test_rounds_aggregate_recordings_and_a_killed_run_comes_to_the_same_weights(
    tiny, tmp_path, short_games, monkeypatch
):
    words = ("--game", "mspacman", "--checkpoint", tiny, "--teach-every", "2", *SMALL)
    assert command(*words, "--out", tmp_path / "whole") == 0
    first, second = (
        checkpoint.read_training(tmp_path / "whole" / f"round-{number}" / "trained" / "last") for number in range(2)
    )
    assert [data["agent"] for data in first["datasets"]] == ["vlm labelled by mspacman-expert"]
    assert len(second["datasets"]) == 2
    assert second["arguments"]["learning_rate"] == pytest.approx(0.7 * first["arguments"]["learning_rate"])
    lesson, steps = clone.BehaviorCloningObjective.forward, []

    def killed_in_the_fourth(self, **batch):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return lesson(self, **batch)

    monkeypatch.setattr(clone.BehaviorCloningObjective, "forward", killed_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        improve.main([str(word) for word in (*words, "--out", tmp_path / "killed")])
    assert command(*words, "--out", tmp_path / "killed") == 0
    assert len(steps) == 5
    one, other = (
        checkpoint.load(tmp_path / run / "round-1" / "trained" / "last").model.state_dict()
        for run in ("whole", "killed")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    results = [json.loads((tmp_path / run / "improve.json").read_text())["rows"] for run in ("whole", "killed")]
    assert results[0] == results[1]
    ceiling, *rounds = results[0]
    assert (ceiling["ceiling_of"], ceiling["agree"]) == ("MsPacman", 1.0)  # the expert draws nothing
    assert [(row["round"], row["labels"]) for row in rounds] == [(0, 30), (1, 30)]


def test_agreement_is_with_the_best_action_where_the_teacher_was_asked(tiny, tmp_path, short_games):
    command("--game", "mspacman", "--checkpoint", tiny, *SMALL, "--rounds", "1", "--out", tmp_path / "run")
    data = EpisodeDataset(tmp_path / "run" / "round-0" / "recorded-MsPacman")
    taught = ~np.isnan(data.action_values).all(axis=1)
    best = np.where(np.isfinite(data.action_values[taught]), data.action_values[taught], -np.inf).argmax(1)
    assert describe(data, "x")["agreed"] == pytest.approx(np.mean(best == data.actions[taught]))


def test_a_searching_teachers_ceiling_is_measured_once(tmp_path, short_games):
    found = label_ceiling(tmp_path, "Carnival", "planner")
    assert found["n"] == 3
    assert 0 <= found["agree"] <= 1
    (tmp_path / "ceiling-Carnival.json").write_text(json.dumps({"agree": 0.5}))
    assert label_ceiling(tmp_path, "Carnival", "planner") == {"agree": 0.5}


def test_a_rounds_training_is_the_callers_own(tmp_path):
    seen = []

    def teach(args):
        seen.append(args)
        return tmp_path / "made"

    args = clone.Args(data=(), out=tmp_path, steps=7)
    found = train_round(
        args, DaggerConfig(fall=0.5), [tmp_path], tmp_path / "start", tmp_path / "round-2", 2, teach=teach
    )
    assert found == tmp_path / "made"
    assert (seen[0].steps, seen[0].init, seen[0].learning_rate) == (7, tmp_path / "start", 0.25 * args.learning_rate)


def test_games_are_those_asked_for_or_all_that_were_taught(tiny, tmp_path):
    assert games_of((), tiny) == ["Carnival"]
    assert games_of(("ms. pac-man",), tiny) == ["MsPacman"]
    checkpoint.save(build("tiny"), tmp_path / "untaught")
    with pytest.raises(UserError, match="was taught no game; name one with --game"):
        games_of((), tmp_path / "untaught")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--episodes", "0"), "--episodes must be at least 1, got 0"),
        (("--fall", "0"), r"--fall in (0, 1]"),
        (("--record-seed", "899"), "must stay below 900"),
        (("--teacher", "vlm:runs/a"), "paddle-expert, got 'vlm:runs/a'"),
    ],
)
def test_settings_of_no_use_are_refused(words, message, tiny, tmp_path, capsys):
    assert command("--checkpoint", tiny, "--out", tmp_path / "run", *words) == 2
    assert message in capsys.readouterr().err
