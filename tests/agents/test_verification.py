"""Published games that are played again have the same scores; a changed score and other weights are found."""

import dataclasses
import json

import numpy as np
import pytest

from agents import score, verification
from agents.verification import PublishedRow, VerifyArgs, choose_games
from common.command import run
from envs.protocol import PROTOCOLS
from vlm import checkpoint
from vlm.presets import build


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A result of short games of random play and of a tiny VLM, and its path."""
    folder = tmp_path_factory.mktemp("published")
    weights = folder / "weights"
    checkpoint.save(build("tiny", seed=7), weights, {"games": ["Carnival"]})
    short = dataclasses.replace(PROTOCOLS["machado2018"], max_episode_frames=200)
    args = score.Args(("random", f"vlm:{weights}"), ("Carnival",), folder / "s.json", episodes=3, seeds=(1,))
    args = dataclasses.replace(args, temperatures=(1.0,), conditions=("unchanged", "shifted"), num_envs=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROTOCOLS, "machado2018", short)
        score.score(args)
    return args.out


@pytest.fixture
def result(published, tmp_path):
    """A copy of the result, and a function that writes it changed and returns its file."""

    def write(change):
        content = json.loads(published.read_text())
        change(content)
        file = tmp_path / "changed.json"
        file.write_text(json.dumps(content))
        return file

    return write


def verify(*arguments):
    return run(lambda: score.main(["--verify", *map(str, arguments)]))


def row_of(content, agent_type, condition=None):
    (row,) = [
        row
        for row in content["rows"]
        if row["agent"].partition(":")[0] == agent_type and row.get("condition") == condition
    ]
    return row


def test_all_games_come_out_the_same_whatever_is_played_at_once(published, capsys):
    rows = json.loads(published.read_text())["rows"]
    assert len({score for row in rows for score in row["scores"]}) > 2  # not equal by accident
    assert verify(published, "--fraction", 1, "--num-envs", 3) == 0  # published two at once
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["same"] * 12
    assert lines[-1].startswith("12 of 12 games came out the same, chosen from 12 by --seed ")


@pytest.mark.parametrize("agent_type", ["random", "vlm"])
@pytest.mark.parametrize("condition", [None, "shifted"])
def test_a_changed_score_is_found(result, capsys, agent_type, condition):
    def change(content):
        row = row_of(content, agent_type, condition)
        content["rows"] = [row]
        row["scores"][2] += 10
        row["commit"] = "0123456789abcdef"
        content["versions"]["numpy"] = "1.0"

    file = result(change)
    assert verify(file, "--fraction", 1, "--seed", 3) == 1
    lines = capsys.readouterr().out.splitlines()
    differing = [line for line in lines if line.startswith("differs")]
    true = row_of(json.loads(file.read_text()), agent_type, condition)["scores"][2] - 10
    assert len(differing) == 1
    where = ", shifted" if condition else ""
    assert f"Carnival{where}, seed 1, game 2: published {true + 10:,.0f}, replayed {true:,.0f};" in differing[0]
    assert f"; commit 0123456; versions that differ: numpy 1.0 -> {np.__version__}" in differing[0]
    assert lines[-1] == "2 of 3 games came out the same, chosen from 3 by --seed 3"


def test_exchanged_games_are_found(result, capsys):
    def change(content):
        scores = row_of(content, "random")["scores"]
        assert scores[0] != scores[-1]
        scores.reverse()
        content["rows"] = [row_of(content, "random")]

    assert verify(result(change), "--fraction", 1) == 1
    assert "differs  random, Carnival, seed 1, game 0" in capsys.readouterr().out


def test_rows_of_other_weights_and_of_endpoints_are_skipped_by_name(result, capsys):
    def change(content):
        row_of(content, "vlm")["checkpoint"] = "0" * 12
        del row_of(content, "vlm", "shifted")["checkpoint"]
        content["rows"].append({**row_of(content, "random"), "agent": "api:some/model"})
        content["rows"].append({**row_of(content, "random"), "agent": "vlm:gone", "checkpoint": "1" * 12})
        content["rows"].append({**row_of(content, "random"), "agent": "martian"})

    assert verify(result(change), "--fraction", 1) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    skipped = [line for line in lines if line.startswith("skipped: ")]
    expected = (
        "it was played by weights 000000000000, and those at hand, ",
        "the row does not say which weights played (1 row)",
        "skipped: api:some/model, Carnival: it answers from outside, and may answer otherwise (1 row)",
        "skipped: vlm:gone, Carnival: expected a checkpoint directory, got gone, which does not exist (1 row)",
        "skipped: martian, Carnival: expected an agent (",
    )
    assert len(skipped) == len(expected)
    assert all(words in line for words, line in zip(expected, skipped, strict=True))
    assert last.startswith("6 of 6 games came out the same, chosen from 6")


def test_a_result_of_other_weights_alone_is_refused_in_one_line(result, capsys):
    def change(content):
        content["rows"] = [{**row_of(content, "vlm"), "checkpoint": "0" * 12}]

    assert verify(result(change)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no game of " in line
    assert "played by weights 000000000000, and those at hand" in line


def test_released_weights_are_found_by_their_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "WEIGHTS", tmp_path)
    for name, seed in (("first", 1), ("second", 2), ("other", 3)):
        checkpoint.save(build("tiny", seed=seed), tmp_path / name, {})
    found = verification.find_weights(tmp_path / "first", checkpoint.content_hash(tmp_path / "second"))
    assert found == tmp_path / "second"


def test_an_archive_of_other_weights_is_told_apart(tmp_path):
    archive = tmp_path / "expert.zip"
    archive.write_bytes(b"weights")
    (settings,) = {score.EvalJob(f"sb3:{archive}", score.find_game("Pong"), 1).row_key(1)["checkpoint"]}
    row = PublishedRow(agent=f"sb3:{archive}", game="Pong", seed=1, scores=[1.0], checkpoint=settings)
    assert row.job().agent_id == f"sb3:{archive}"
    archive.write_bytes(b"others")
    with pytest.raises(verification.UserError, match=f"played by weights {settings}, and those at hand"):
        row.job()


def rows_of_many_sizes():
    sizes = {"a": 40, "b": 1, "c": 1}
    return [
        PublishedRow(agent="random", game=game, seed=seed, scores=[0.0] * size, condition=condition)
        for game, size in sizes.items()
        for seed in (1, 2)
        for condition in ("unchanged", "shifted")
    ]


def chosen(seed, **arguments):
    rows = rows_of_many_sizes()
    found = choose_games(rows, range(len(rows)), VerifyArgs("f", **arguments), np.random.default_rng(seed))
    return [(rows[index], number) for index, numbers in found.items() for number in numbers]


def test_at_least_one_game_of_each_agent_in_each_game_is_chosen_and_all_have_a_chance():
    for seed in range(20):
        games = chosen(seed, fraction=0.01)
        assert sorted((row.game, row.condition) for row, _ in games) == [
            (game, condition) for game in "abc" for condition in ("shifted", "unchanged")
        ]
    assert len(chosen(0, fraction=0.5)) == 84
    assert len(set((row.game, row.seed, row.condition, n) for row, n in chosen(0, fraction=1))) == 168
    assert [len(chosen(0, games_to_replay=count)) for count in (2, 30)] == [2, 30]
    assert {(row.seed, n) for seed in range(300) for row, n in chosen(seed, fraction=0.01) if row.game == "a"} == {
        (seed, number) for seed in (1, 2) for number in range(40)
    }
    assert chosen(5) == chosen(5) != chosen(6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fraction", 0), "--fraction must be above 0 and at most 1"),
        (("--games-to-replay", 0), "--games-to-replay must be at least 1"),
        (("--seed", -1), "--seed must be at least 0"),
    ],
)
def test_mistakes_are_one_line(published, capsys, arguments, message):
    assert verify(published, *arguments) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_file_of_another_kind_or_a_damaged_one_is_refused(result, capsys):
    def other(content):
        content["rows"] = [{"benchmark": "x", "candidate": 1.0}]

    def damaged(content):
        content["protocol"]["frame_skip"] = 0

    assert verify(result(other)) == 2
    assert "whose rows are no scores of an agent" in capsys.readouterr().err
    assert verify(result(damaged)) == 2
    assert "frame_skip" in capsys.readouterr().err


def test_the_flag_is_found_in_either_spelling_and_has_its_own_help(published, capsys):
    assert run(lambda: score.main([f"--verify={published}", "--games-to-replay", "1"])) == 0
    assert "1 of 1 games came out the same" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        score.main(["--verify", "x", "--help"])
    assert "--games-to-replay" in capsys.readouterr().out
