"""The benchmark measures both in one run and writes the house's form."""

import json

from common.command import run
from experiments.benchmarks import decision_speed
from vlm import checkpoint
from vlm.presets import build


def test_the_benchmark_times_both_and_writes_its_row(tmp_path):
    checkpoint.save(build("tiny", 1), tmp_path / "tiny", {})
    out = tmp_path / "bench.json"
    arguments = ["--out", str(out), "--checkpoint", str(tmp_path / "tiny"), "--decisions", "20"]
    assert run(lambda: decision_speed.main(arguments)) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["ours"] > 0
    assert row["rival"] > 0
    assert abs(row["ratio"] - row["ours"] / row["rival"]) < 0.05 * row["ratio"]
    assert row["model"] == checkpoint.content_hash(tmp_path / "tiny")


def test_too_few_decisions_are_refused(tmp_path, capsys):
    assert run(lambda: decision_speed.main(["--out", str(tmp_path / "b.json"), "--decisions", "3"])) == 2
    assert "--decisions must be at least 10, got 3" in capsys.readouterr().err
