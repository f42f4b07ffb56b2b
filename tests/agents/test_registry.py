"""Agent ids: old ones are read in files, refused from users."""

import json
from dataclasses import replace

import pytest

from agents import record, score
from agents.registry import AGENT_TYPES, EXPERTS, OLD_AGENT_IDS, current_agent_name, parse_agent_id
from common.errors import UserError
from envs.episodes import INFO, EpisodeDataset, read_info
from envs.protocol import PROTOCOLS


@pytest.fixture
def short_games(monkeypatch):
    monkeypatch.setitem(PROTOCOLS, "machado2018", replace(PROTOCOLS["machado2018"], max_episode_frames=80))


@pytest.mark.parametrize(("old", "new"), OLD_AGENT_IDS.items())
def test_an_old_id_is_refused_with_the_new_one_as_the_nearest(old, new):
    assert new in EXPERTS
    assert old not in AGENT_TYPES
    with pytest.raises(UserError, match=f"got '{old}'; nearest: {new}$"):
        parse_agent_id(old)


def test_an_id_with_a_typing_error_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="got 'carnival'; nearest: carnival-expert"):
        parse_agent_id("carnival")


def test_old_names_are_replaced_in_agents_but_not_in_paths():
    for old, new in OLD_AGENT_IDS.items():
        assert current_agent_name(f"{old}, noise 0.1") == f"{new}, random actions 0.1"
        assert current_agent_name(f"vlm taught by {old}") == f"vlm labelled by {new}"
        for other in (f"vlm:runs/{old}", new, f"sb3:{old}/best.zip", "planner"):
            assert current_agent_name(other) == other


def test_a_dataset_recorded_under_an_old_id_is_read_and_continued(tmp_path, short_games):
    out = tmp_path / "set"
    record.record(record.Args(game="Pong", agent="paddle-expert", episodes=1, out=out))
    info = json.loads((out / INFO).read_text())
    (out / INFO).write_text(json.dumps({**info, "agent": "tracker", "labels": "tracker"}))
    assert EpisodeDataset(out).info.agent == "tracker"
    record.record(record.Args(game="Pong", agent="paddle-expert", episodes=2, out=out))
    assert len(EpisodeDataset(out).seeds) == 2
    assert read_info(out).labels == "tracker"


def test_a_result_row_with_an_old_id_counts_as_played(tmp_path, short_games, monkeypatch):
    args = score.Args(agents=("paddle-expert",), games=("Pong",), out=tmp_path / "s.json", episodes=1)
    rows = score.score(args)["rows"]
    args.out.write_text(args.out.read_text().replace("paddle-expert", "tracker").replace(': "expert with', ': "with'))
    monkeypatch.setattr(score, "play_job", None)
    again = score.score(args)["rows"]
    assert [row["agent"] for row in again] == ["paddle-expert"]
    assert [row["scores"] for row in again] == [row["scores"] for row in rows]
