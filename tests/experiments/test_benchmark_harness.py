"""What benchmarks share: calls take turns, a row holds its ratio, counts below one are refused."""

import json
from dataclasses import dataclass

import pytest
import torch

from common.command import run
from experiments.benchmarks.harness import BenchmarkArgs, benchmark_main, comparison, interleaved


@dataclass(kw_only=True)
class Args(BenchmarkArgs):
    """Time nothing."""


def test_functions_take_turns_in_blocks():
    calls = []
    functions = {name: lambda number, name=name: calls.append((name, number)) for name in "ab"}
    seconds = interleaved(functions, 3, block=2)
    assert calls == [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("a", 2), ("b", 2)]
    assert [len(times) for times in seconds.values()] == [3, 3]


def test_the_result_holds_rows_threads_and_the_name_of_its_file(tmp_path, capsys):
    def measure(args):
        assert torch.get_num_threads() == 1
        return [comparison("work", 30.0, 10.0, "rest", "jobs per second", model=args.model_name())]

    assert benchmark_main(Args, measure, [5], "About.")(["--out", str(tmp_path / "work_speed.json")]) == 0
    result = json.loads((tmp_path / "work_speed.json").read_text())
    assert (result["name"], result["seeds"]) == ("work_speed", [5])
    (row,) = result["rows"]
    assert (row["candidate"], row["baseline"], row["ratio"], row["threads"]) == (30, 10, 3, 1)
    assert row["model"] == "untrained nano"
    assert "ratio 3" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--rounds", "--threads"])
def test_zero_counts_are_refused(option, tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "b.json"), option, "0"]
    assert run(lambda: benchmark_main(Args, lambda _: [], [], "")(arguments)) == 2
    assert f"{option} must be at least 1, got 0" in capsys.readouterr().err


def test_a_small_figure_is_not_rounded_to_nothing():
    row = comparison("open", 0.00042, 123.456, "rest", "seconds")
    assert (row["candidate"], row["baseline"]) == (0.00042, 123.46)
