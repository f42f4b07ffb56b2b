"""Games under conditions are the same games with one change; differences pair them by seed and number."""

import json
from functools import partial

import numpy as np
import pytest

from agents import score
from agents.agent import Actions
from agents.agent_wrappers import ChangedFramesAgent
from agents.robustness import condition_effects, format_robustness
from agents.rollout import play_games
from agents.score_rows import group_rows
from common.command import run
from envs.atari import make_envs
from envs.games import find_game
from envs.play_conditions import CONDITIONS, shift_frames

FRAME_CONDITIONS = [name for name, condition in CONDITIONS.items() if condition.frame_change]


def command(*arguments):
    return run(lambda: score.main([str(argument) for argument in arguments]))


def score_rows(out, *conditions):
    """Score three short games of random play in Carnival; return the rows by condition."""
    named = {"conditions": conditions} if conditions else {}
    score.score(score.Args(("random",), ("Carnival",), out, episodes=3, seeds=(4,), **named))
    return {row.get("condition", "plain"): row for row in json.loads(out.read_text())["rows"]}


@pytest.fixture
def short_games(monkeypatch):
    """Cut games at 400 emulator frames, for speed."""
    from dataclasses import replace

    from envs.protocol import PROTOCOLS

    monkeypatch.setitem(PROTOCOLS, "machado2018", replace(PROTOCOLS["machado2018"], max_episode_frames=400))


def test_plain_play_is_that_of_a_run_without_conditions_and_random_play_sees_no_frame(tmp_path, short_games):
    plain = score_rows(tmp_path / "plain.json")["plain"]
    rows = score_rows(tmp_path / "all.json", "all")
    assert list(rows) == ["plain", *list(CONDITIONS)[1:]]
    assert rows["plain"]["scores"] == plain["scores"]
    assert len(set(plain["scores"])) > 1
    for name in FRAME_CONDITIONS:
        assert rows[name]["scores"] == plain["scores"]
    for name in ("sticky-0", "sticky-0.5", "noop-30"):
        assert rows[name]["scores"] != plain["scores"]
        assert (rows[name]["seed"], len(rows[name]["scores"])) == (4, 3)
    assert all({"commit", "command"} <= row.keys() for row in rows.values())
    effects = {effect.condition: effect for effect in condition_effects(rows.values())}
    assert effects["shifted"].difference == (0, 0, 0)
    assert effects["sticky-0"].difference[0] != 0


def test_a_run_under_conditions_resumes_and_keeps_plain_and_changed_rows_apart(tmp_path, short_games, monkeypatch):
    out, played, play_job = tmp_path / "s.json", [], score.play_job

    def watched(job, *rest):
        played.append(job.condition.name)
        return play_job(job, *rest)

    monkeypatch.setattr(score, "play_job", watched)
    score_rows(out, "shifted")
    first = json.loads(out.read_text())["rows"]
    score_rows(out)  # is not taken for the shifted row
    score_rows(out, "unchanged", "shifted", "sticky-0")
    assert played == ["shifted", "unchanged", "sticky-0"]
    assert json.loads(out.read_text())["rows"][:1] == first


@pytest.mark.parametrize("name", ["history", "image_tokens", "max_new_tokens"])
def test_a_row_of_other_limits_does_not_count_as_played(tmp_path, short_games, monkeypatch, name):
    out, play_job = tmp_path / "s.json", score.play_job
    rows = score_rows(out)
    result = json.loads(out.read_text())
    out.write_text(json.dumps({**result, "rows": [{**rows["plain"], name: 2}]}))
    played = []
    monkeypatch.setattr(score, "play_job", lambda *rest: played.append(1) or play_job(*rest))
    score_rows(out)
    assert played == [1]
    assert [row.get(name) for row in json.loads(out.read_text())["rows"]] == [2, None]


class Watcher:
    """Keeps the frames that it sees, and does nothing."""

    name = "watcher"

    def __init__(self, action_names):
        self.action_names, self.seen, self.started = action_names, [], []

    def reset(self, seeds):
        self.started.append(list(seeds))

    def act(self, frames):
        self.seen.append(frames.copy())
        return Actions.legal(np.zeros(len(frames), dtype=int), self.action_names)


def test_the_agent_alone_sees_changed_frames(short_games):
    game, agents, frames = find_game("Carnival"), [], []
    for change in (None, partial(shift_frames, down=4, right=4)):
        with make_envs(game, 1, CONDITIONS["unchanged"].protocol(score.find_protocol("machado2018"))) as envs:
            watcher = Watcher(envs.action_names)
            agent = ChangedFramesAgent(watcher, change) if change else watcher
            frames.append(np.stack([transition.frame for transition in play_games(agent, envs, [1])]))
            agents.append(watcher)
    plain, changed = (np.concatenate(agent.seen) for agent in agents)
    assert np.array_equal(frames[0], frames[1])  # the loop keeps the true ones
    assert np.array_equal(plain, frames[0])
    assert np.array_equal(changed, shift_frames(frames[0], 4, 4))
    assert agents[0].started == agents[1].started


def row(condition, seed, scores, agent="vlm", game="Carnival"):
    named = {"condition": condition} if condition else {}
    return {
        "agent": agent,
        "game": game,
        "seed": seed,
        "scores": scores,
        "invalid": 0.0,
        "steps_per_second": 1.0,
    } | named


def test_differences_pair_games_of_the_same_seed_and_number():
    rows = [
        row("shifted", 2, [30.0, 40.0]),
        row("shifted", 1, [90.0, 200.0, 300.0]),
        row("shifted", 3, [1000.0] * 3),  # no plain games of this seed
        row(None, 1, [100.0, 200.0]),
        row(None, 2, [50.0, 50.0, 5000.0]),
    ]
    plain, shifted = condition_effects(rows)
    assert (plain.condition, plain.games, plain.difference, plain.share_kept) == ("unchanged", 5, None, None)
    assert (shifted.condition, shifted.games) == ("shifted", 8)
    assert shifted.difference[0] == pytest.approx((-10 + 0 - 20 - 10) / 4)
    assert shifted.difference[1] < shifted.difference[0] < shifted.difference[2]
    assert shifted.share_kept == pytest.approx((90 + 200 + 30 + 40) / 400)


def test_an_interval_is_of_differences_not_of_scores():
    rng = np.random.default_rng(0)
    scores = rng.normal(5000, 1000, 30)
    rows = [row(None, 1, scores.tolist()), row("shifted", 1, (scores - 100 + rng.normal(0, 10, 30)).tolist())]
    _, shifted = condition_effects(rows)
    _, low, high = shifted.difference
    assert -110 < low < shifted.difference[0] < high < -90


def test_agents_and_games_have_effects_of_their_own_in_the_order_of_conditions():
    rows = [
        row("sticky-0", 1, [7.0, 7.0], agent="sb3:x.zip"),
        *(row(name, 1, [5.0, 6.0], game=game) for game in ("Pong", "Carnival") for name in ("shifted", None)),
        row(None, 1, [-2.0, -1.0], agent="sb3:x.zip"),
    ]
    found = [(effect.game, effect.agent, effect.condition) for effect in condition_effects(rows)]
    assert found == [
        ("Carnival", "sb3:x.zip", "unchanged"),
        ("Carnival", "sb3:x.zip", "sticky-0"),
        ("Pong", "vlm", "unchanged"),
        ("Pong", "vlm", "shifted"),
        ("Carnival", "vlm", "unchanged"),
        ("Carnival", "vlm", "shifted"),
    ]
    effects = condition_effects(rows)
    assert [effect.same_games for effect in effects] == [False, True, False, False, False, False]
    assert effects[1].share_kept is None  # of scores below 0 there is no share
    lines = [line.split() for line in format_robustness(rows)]
    assert ["sb3:x.zip:", "sticky-0", "7", "+8", "[+8,", "+9]", "-", "2", "every", "game", "the", "same"] in lines
    assert ["vlm:", "shifted", "6", "+0", "[+0,", "+0]", "100%", "2"] in lines


def test_plain_rows_alone_have_no_effects_and_are_pooled_whether_they_name_it_or_not():
    rows = [row(None, 1, [1.0]), row("unchanged", 2, [2.0])]
    assert condition_effects(rows) == []
    assert format_robustness(rows) == []
    assert len(group_rows(rows, lambda row: row["agent"])) == 1
    labels = [label for _, label in group_rows([*rows, row("shifted", 1, [3.0])], lambda row: row["agent"])]
    assert labels == ["vlm, condition unchanged", "vlm, condition shifted"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--conditions", "shfted"), "nearest: shifted"),
        (("--conditions", "score-hidden", "--games", "Alien"), "not in Alien"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_played(tmp_path, capsys, changes, message):
    arguments = ("--agents", "random", "--games", "Carnival", "--out", tmp_path / "s.json", *changes)
    assert command(*arguments) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "s.json").exists()
