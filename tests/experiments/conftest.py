"""What tests of benchmarks share."""

import json

import pytest
import torch

from common.command import run
from vlm import checkpoint
from vlm.presets import build


@pytest.fixture
def tiny(tmp_path):
    """The checkpoint of a tiny model."""
    checkpoint.save(build("tiny", 1), tmp_path / "tiny", {})
    return tmp_path / "tiny"


@pytest.fixture
def benchmark_rows(tmp_path):
    """A function that runs a benchmark's `main` and returns the rows it wrote; torch's threads are restored."""
    threads = torch.get_num_threads()

    def rows(main, *arguments):
        out = tmp_path / "out_speed.json"
        assert run(lambda: main(["--out", str(out), *map(str, arguments)])) == 0
        return json.loads(out.read_text())["rows"]

    yield rows
    torch.set_num_threads(threads)


@pytest.fixture
def refusal(tmp_path, capsys):
    """A function that runs a benchmark's `main`, expects a user error and returns its text."""

    def text(main, *arguments):
        assert run(lambda: main(["--out", str(tmp_path / "out_speed.json"), *map(str, arguments)])) == 2
        return capsys.readouterr().err

    return text
