"""The benchmark of rollouts plays true games at one table and at two, beside the model alone."""

import json

import pytest
import torch

from common.command import run
from experiments.benchmarks import rollout_speed
from vlm import checkpoint
from vlm.presets import build


@pytest.fixture(autouse=True)
def threads():
    """The benchmark sets torch's threads for its process; give them back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_both_ways_of_play_are_timed_beside_the_model_alone(tmp_path):
    checkpoint.save(build("tiny"), tmp_path / "tiny")
    words = ["--out", str(tmp_path / "b.json"), "--checkpoint", str(tmp_path / "tiny"), "--lanes", "4"]
    assert run(lambda: rollout_speed.main([*words, "--decisions", "12", "--rounds", "1"])) == 0
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert [row["benchmark"] for row in rows] == ["rollout, one table", "rollout, two tables"]
    assert all(row["ratio"] == pytest.approx(row["ours"] / row["rival"], rel=0.05) for row in rows)
    assert rows[0]["rival"] == rows[1]["rival"]


@pytest.mark.parametrize(("words", "told"), [(("--lanes", "3"), "must be even"), (("--decisions", "2"), "one a lane")])
def test_lanes_come_in_two_tables_worth(words, told, tmp_path, capsys):
    assert run(lambda: rollout_speed.main(["--out", str(tmp_path / "b.json"), *words])) == 2
    assert told in capsys.readouterr().err
