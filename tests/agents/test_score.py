"""Scores are raw and resumable row by row; their intervals can be checked by hand."""

import json

import numpy as np
import pytest
import torch

from agents import score
from agents.model_limits import ModelLimits
from agents.score_table import (
    format_human_normalized,
    format_table,
    format_usage,
    human_normalized_scores,
    mean_interval,
    summarize,
)
from common.command import run
from common.errors import UserError
from experiments.model_classes.tiny_checkpoints import write
from vlm import checkpoint
from vlm.presets import build


def command(*arguments):
    return run(lambda: score.main([str(argument) for argument in arguments]))


@pytest.fixture
def short_games(monkeypatch):
    """Cut games at 400 emulator frames, for speed."""
    from dataclasses import replace

    from envs.protocol import PROTOCOLS

    monkeypatch.setitem(PROTOCOLS, "machado2018", replace(PROTOCOLS["machado2018"], max_episode_frames=400))


@pytest.mark.slow
def test_rows_hold_raw_scores_and_a_second_run_plays_only_what_is_missing(tmp_path, short_games, monkeypatch, capsys):
    out = tmp_path / "scores.json"
    arguments = ("--agents", "random", "--games", "pong", "Carnival", "--episodes", 2, "--out", out)
    assert command(*arguments, "--seeds", 1) == 0
    first = json.loads(out.read_text())
    assert [(row["game"], row["seed"], len(row["scores"])) for row in first["rows"]] == [
        ("Pong", 1, 2),
        ("Carnival", 1, 2),
    ]
    played = []
    play_job = score.play_job
    monkeypatch.setattr(score, "play_job", lambda job, *rest: played.append(job.seed) or play_job(job, *rest))
    assert command(*arguments, "--seeds", 1, 2) == 0
    assert played == [2, 2]
    result = json.loads(out.read_text())
    assert result["rows"][:2] == first["rows"]
    assert result["protocol"]["max_episode_frames"] == 400
    assert out.with_suffix(".png").stat().st_size > 5000
    assert "IQN, 200 M frames" in capsys.readouterr().out


def test_more_games_replace_the_shorter_row_and_fewer_play_nothing(tmp_path, short_games, monkeypatch):
    out = tmp_path / "scores.json"
    arguments = ("--agents", "random", "--games", "pong", "--out", out, "--seeds", 1, 2)
    assert command(*arguments, "--episodes", 1) == 0
    assert command(*arguments, "--episodes", 2) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["seed"], row["episodes"], len(row["scores"])) for row in rows] == [(1, 2, 2), (2, 2, 2)]
    monkeypatch.setattr(score, "play_job", lambda *_: pytest.fail("played again"))
    assert command(*arguments, "--episodes", 1) == 0
    assert json.loads(out.read_text())["rows"] == rows


def test_a_temperature_that_was_asked_for_is_not_taken_for_the_checkpoints_own(tmp_path, short_games, tiny):
    out = tmp_path / "vlm.json"
    arguments = ("--agents", f"vlm:{tiny}", "--games", "Carnival", "--episodes", 1, "--seeds", 1, "--out", out)
    assert command(*arguments, "--temperatures", 0.5) == 0
    assert command(*arguments, "--engine", "auto") == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["temperature"], row["engine"]) for row in rows] == [(0.5, "torch"), (0.0, "openvino")]


def test_any_seed_plays_and_published_results_have_a_range(tmp_path, short_games, monkeypatch, capsys):
    monkeypatch.setattr(score, "RESULTS", tmp_path / "results")
    arguments = ("--agents", "random", "--games", "pong", "--episodes", 1, "--seeds", 123_456_789)
    assert command(*arguments, "--out", tmp_path / "s.json") == 0
    assert command(*arguments, "--out", tmp_path / "results" / "s.json") == 2
    assert "holds scores of seeds 1000 to 1999, got 123456789" in capsys.readouterr().err


def test_a_file_with_old_keys_is_resumed(tmp_path, short_games, monkeypatch):
    out = tmp_path / "scores.json"
    arguments = ("--agents", "random", "--games", "pong", "--episodes", 1, "--out", out)
    assert command(*arguments, "--seeds", 1) == 0
    out.write_text(out.read_text().replace('"steps', '"decisions'))
    assert command(*arguments, "--seeds", 1, 2) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["seed"], row["steps"]) for row in rows] == [(1, 100), (2, 100)]


def test_scores_do_not_depend_on_the_number_of_environments(tmp_path, short_games):
    rows = []
    for num_envs in (1, 3):
        out = tmp_path / f"{num_envs}.json"
        arguments = ("--agents", "random", "--games", "Carnival", "--episodes", 3, "--seeds", 4, "--num-envs", num_envs)
        assert command(*arguments, "--out", out) == 0
        rows.append(json.loads(out.read_text())["rows"][0]["scores"])
    assert rows[0] == rows[1]


def test_a_vlm_has_a_row_for_each_temperature_with_its_checkpoints_hash(tmp_path, short_games, tiny):
    out = tmp_path / "vlm.json"
    arguments = ("--agents", f"vlm:{tiny}", "--games", "Carnival", "--episodes", 1, "--seeds", 1, "--out", out)
    assert command(*arguments, "--temperatures", 0, 0.5) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["temperature"] for row in rows] == [0, 0.5]
    assert len({row["checkpoint"] for row in rows}) == 1
    assert all(row["invalid"] == 0 for row in rows)


def test_an_interval_is_that_of_a_normal_distribution_and_empty_for_constant_scores():
    assert mean_interval([[5.0, 5.0], [5.0, 5.0]]) == (5.0, 5.0, 5.0)
    games = [list(np.random.default_rng(seed).normal(100, 10, 30)) for seed in range(3)]
    mean, low, high = mean_interval(games)
    assert mean == pytest.approx(np.mean(games))
    spread = np.std(games) / np.sqrt(90)
    assert mean - low == pytest.approx(1.96 * spread, rel=0.25)
    assert high - mean == pytest.approx(1.96 * spread, rel=0.25)
    assert mean_interval(games) == (mean, low, high)


def test_a_summary_pools_seeds_and_keeps_agents_apart():
    def row(agent, seed, scores):
        counts = {"invalid": 0.0, "steps_per_second": 1.0}
        return {"agent": agent, "game": "Pong", "seed": seed, "scores": scores, **counts}

    table = summarize(
        [row("random", 1, [1.0, 3.0, 5.0, 7.0]), row("random", 2, [1.0, 3.0, 5.0, 7.0]), row("planner", 1, [9.0] * 4)]
    )
    assert [(line["agent"], line["mean"], line["games"], line["seeds"]) for line in table] == [
        ("planner", 9, 4, 1),
        ("random", 4, 8, 2),
    ]
    assert (table[1]["median"], table[1]["iqm"], table[1]["min"], table[1]["max"]) == (4, 4, 1, 7)


def row(seed, scores, **changes):
    settings = {"agent": "vlm", "decode": "scores", "temperature": 0.5, "engine": "torch", "checkpoint": "abc"}
    counts = {"invalid": 0.0, "steps": 10 * len(scores), "steps_per_second": 1.0}
    return {"game": "Pong", "seed": seed, "scores": scores, **settings, **counts, **changes}


def test_games_that_two_rows_repeat_count_once_and_rows_that_disagree_are_refused():
    (line,) = summarize([row(1, [1.0, 2.0, 3.0]), row(1, [1.0, 2.0, 3.0, 4.0, 5.0, 21.0])])
    assert (line["mean"], line["games"], line["seeds"]) == (6.0, 6, 1)
    with pytest.raises(UserError, match="two rows of vlm in Pong, seed 1, tell different scores of the same games"):
        summarize([row(1, [1.0, 2.0]), row(1, [1.0, 3.0, 4.0])])


def test_the_mean_is_of_all_games_and_seeds_with_unequal_numbers_are_said():
    few, many = [10.0] * 3, [10.0] * 3 + [900.0] * 27
    (line,) = summarize([row(1, few), row(2, many)])
    assert line["mean"] == pytest.approx((6 * 10 + 27 * 900) / 33)
    assert line["low"] < line["mean"] < line["high"]
    assert (line["games"], line["unequal"]) == (33, "3 to 30 games a seed")
    result = {"protocol": {"name": "machado2018"}, "rows": [row(1, few), row(2, many)]}
    assert "3 to 30 games a seed" in format_table(result)
    assert "a seed" not in format_table({**result, "rows": [row(1, few), row(2, few)]})


@pytest.mark.parametrize(
    ("changes", "endings"),
    [
        ({"engine": "openvino"}, [", engine openvino", ", engine torch"]),
        ({"checkpoint": "def"}, [", checkpoint abc", ", checkpoint def"]),
        ({"temperature": 0.50000001}, [", temperature 0.5", ", temperature 0.50000001"]),
        ({"agent": "vlm:vlm", "temperature": 0.7}, ["", "vlm:vlm scores, temperature 0.7"]),
    ],
)
def test_rows_that_differ_in_a_setting_are_not_pooled_and_each_line_has_its_own_name(changes, endings):
    table = summarize([row(1, [1.0]), row(1, [3.0], **changes)])
    labels = sorted(line["agent"].removeprefix("vlm scores, temperature 0.5") for line in table)
    assert labels == endings
    assert sorted(line["mean"] for line in table) == [1.0, 3.0]


def test_two_checkpoints_of_one_folder_name_keep_lines_and_human_normalized_scores_of_their_own():
    rows = [row(1, [score], agent=f"vlm:{run}/last", game=game, checkpoint=run)
            for run, score in (("a", 0.0), ("b", 10.0)) for game in ("Pong", "Freeway")]  # fmt: skip
    found = human_normalized_scores(summarize(rows))
    assert len(found) == 2
    assert all(set(scores) == {"Pong", "Freeway"} for scores in found.values())


def test_human_normalized_scores_are_0_for_random_and_1_for_human_play():
    def line(agent, game, mean):
        return {"agent": agent, "game": game, "mean": mean}

    pong, freeway = (-20.2 + 14.6) / 2, 29.6
    table = [line("vlm", "Pong", pong), line("vlm", "Freeway", freeway), line("vlm", "Carnival", 9000)]
    assert human_normalized_scores(table)["vlm"] == pytest.approx({"Pong": 0.5, "Freeway": 1.0})
    assert format_human_normalized(table)[1].split()[:2] == ["vlm", "0.75"]
    assert format_human_normalized(table[:1]) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--agents", "rndom"), "nearest: random"),
        (("--games", "Pongg"), "nearest: Pong"),
        (("--episodes", 0), "--episodes must be at least 1"),
        (("--seeds", -5), "expected a seed of at least 0, got -5"),
        (("--agents", "human"), "agents.play --agent human"),
        (("--protocol", "mine"), "machado2018 or mnih2015"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(tmp_path, capsys, changes, message):
    arguments = ("--agents", "random", "--games", "Pong", "--out", tmp_path / "s.json", *changes)
    assert command(*arguments) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "s.json").exists()


def test_a_plot_is_not_drawn_over_the_scores_or_over_another_picture(tmp_path, short_games, capsys):
    arguments = ("--agents", "random", "--games", "Pong", "--episodes", 1)
    assert command(*arguments, "--out", tmp_path / "s.png") == 2
    assert "s.png would be written twice" in capsys.readouterr().err
    assert not (tmp_path / "s.png").exists()
    (tmp_path / "photo.png").write_bytes(b"mine")
    assert command(*arguments, "--out", tmp_path / "photo.json") == 2
    assert "photo.png exists and is not of this command" in capsys.readouterr().err
    assert (tmp_path / "photo.png").read_bytes() == b"mine"
    assert command(*arguments, "--out", tmp_path / "photo.png" / "below.json") == 2
    assert "cannot be written: Not a directory" in capsys.readouterr().err.splitlines()[-1]


def test_scores_under_two_protocols_are_not_mixed(tmp_path, short_games, capsys):
    out = tmp_path / "s.json"
    arguments = ("--agents", "random", "--games", "Pong", "--episodes", 1, "--out", out)
    assert command(*arguments) == 0
    assert command(*arguments, "--protocol", "mnih2015") == 2
    assert "holds scores under machado2018; choose another --out for mnih2015" in capsys.readouterr().err


def test_models_behind_endpoints_are_not_pooled_over_their_settings():
    row = {"game": "Pong", "agent": "api:some/model", "seed": 1, "invalid": 0.0, "steps_per_second": 1.0}
    shots = [{**row, "temperature": None, "history": 1, "few_shot": n, "scores": [float(n)]} for n in (0, 4)]
    assert [(line["agent"], line["mean"]) for line in summarize(shots)] == [
        ("api:some/model, 1 frames, few-shot 4", 4.0),
        ("api:some/model, 1 frames, few-shot 0", 0.0),
    ]


@pytest.mark.parametrize("name", ["image_tokens", "history", "max_new_tokens"])
def test_models_that_read_or_write_more_are_not_pooled(name):
    row = {"game": "Pong", "agent": "vlm:hub", "seed": 1, "invalid": 0.0, "steps_per_second": 1.0}
    lines = summarize([{**row, name: n, "scores": [float(n)]} for n in (1, 4)])
    assert [(line["agent"], line["mean"]) for line in lines] == [(f"vlm:hub, {name} {n}", n) for n in (4, 1)]


def test_what_an_endpoint_was_asked_stands_in_the_table_and_an_unknown_cost_is_not_made_up():
    asked = {"requests": 1000, "prompt_tokens": 90_000, "completion_tokens": 2000, "answers_without_token_counts": 0}
    priced, unpriced, uncounted = {"cost": 0.25}, {"cost": None}, {"cost": None, "answers_without_token_counts": 3}
    assert format_usage([row(1, [1.0])]) == ""
    usages = [[row(1, [1.0], **asked | own), row(2, [1.0], **asked | priced)] for own in (priced, unpriced, uncounted)]
    assert [format_usage(rows) for rows in usages] == [
        "2,000 requests, 180,000 + 4,000 tokens, $0.50",
        "2,000 requests, 180,000 + 4,000 tokens",
        "2,000 requests, tokens not counted",
    ]


def test_answers_that_name_no_action_are_counted_over_the_seeds():
    rows = [row(1, [1.0], invalid=0.5), row(2, [1.0, 2.0], invalid=0.1)]  # of 10 and of 20 answers
    table = format_table({"protocol": {"name": "machado2018"}, "rows": rows})
    assert "7 of 30 answers invalid (23.3%)" in table


def test_a_limit_reaches_the_models_of_transformers_and_not_the_presets_beside_them(tmp_path):
    hub, preset = write("llava", tmp_path / "llava"), tmp_path / "preset"
    checkpoint.save(build("tiny"), preset)
    saved = tmp_path / "saved"
    checkpoint.save(checkpoint.load(hub, torch.device("cpu")), saved)
    agents = (f"vlm:{hub}", f"vlm:{preset}", f"vlm:{saved}", "random")
    limits = ModelLimits(image_tokens=16, history=2, max_new_tokens=5)
    jobs = score.list_jobs(score.Args(agents, ("Pong",), tmp_path / "s.json", limits=limits))
    assert [job.limits for job in jobs] == [limits, ModelLimits(max_new_tokens=5), limits, ModelLimits()]


@pytest.mark.parametrize("flag", ["--history", "--image-tokens"])
def test_a_limit_that_no_agent_takes_is_refused_before_anything_is_played(flag, tmp_path, capsys):
    arguments = ("--agents", "random", "vlm", "--games", "Pong", flag, 2, "--out", tmp_path / "s.json")
    assert command(*arguments) == 2
    assert f"{flag}: expected a model of transformers" in capsys.readouterr().err
    assert not (tmp_path / "s.json").exists()
