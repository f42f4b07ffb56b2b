"""How a command ends, and its check of counts and numbers."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.command import command, require_at_least, run
from common.errors import UserError


def test_a_count_below_the_minimum_is_refused_by_its_flag():
    args = SimpleNamespace(num_envs=0, episodes=1, max_frames=None)
    require_at_least(args, 1, "episodes", "max_frames")
    with pytest.raises(UserError, match="--num-envs must be at least 1, got 0"):
        require_at_least(args, 1, "episodes", "num_envs")


@dataclass
class Part:
    rate: float = 0.5


@dataclass
class Args:
    share: float | None = None
    rates: tuple[float, ...] = ()
    part: Part = field(default_factory=Part)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize("flag", ["--share", "--rates", "--part.rate"])
def test_a_number_that_is_not_finite_is_refused_by_its_flag(flag, number, capsys):
    main = command(Args, lambda args: pytest.fail("acted"), None, "{}")
    assert run(lambda: main([flag, number] if flag != "--rates" else [flag, "0.5", number])) == 2
    name = "--rate" if flag == "--part.rate" else flag
    assert capsys.readouterr().err == f"error: {name} must be a finite number, got {float(number)}\n"


@pytest.mark.parametrize("words", [["--sh\x1b]0;title\x07are", "1"], ["--share", "\x1b[2J"], ["--share", "\x9b2J"]])
def test_control_characters_of_a_command_line_do_not_reach_the_terminal(words, capsys):
    main = command(Args, lambda args: pytest.fail("acted"), None, "{}")
    assert run(lambda: main(words)) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: expected words without control characters, got '")
    assert printed.rstrip("\n").isprintable()


PRINTS = """
import sys
from common.command import run
def main():
    print(sys.argv[1] * int(sys.argv[2]))
    return 0
sys.exit(run(main))
"""


def start(*words, **options):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), **options.pop("env", {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment}
    return subprocess.Popen([sys.executable, "-c", PRINTS, *words], **pipes)


@pytest.mark.parametrize("count", ["1", "100000"])
def test_a_closed_pipe_is_one_line(count):
    process = start("word", count)
    process.stdout.close()
    error = process.stderr.read().decode()
    assert process.wait() == 2
    assert error == "error: the output was closed before its end: [Errno 32] Broken pipe\n"


def test_a_terminal_that_cannot_show_a_letter_gets_its_escape():
    process = start("caf\xe9-\udcff", "1", env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"})
    output, error = process.communicate()
    assert (process.returncode, error) == (0, b"")
    assert output == b"caf\\xe9-\\udcff\n"
