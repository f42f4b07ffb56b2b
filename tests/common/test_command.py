"""How a command ends, and its check of counts and numbers."""

import errno
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

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


def out_of_gpu_memory():
    raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2 GiB.\nMore")


def out_of_memory_in_a_worker():
    raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")


def out_of_memory_of_matrix_products():
    raise RuntimeError("could not create a primitive")


@pytest.mark.parametrize(
    ("take", "reason"),
    [
        (lambda: bytearray(2**60), "MemoryError"),
        (lambda: np.zeros(2**58, np.uint8), "Unable to allocate 256. PiB"),
        (lambda: torch.empty(2**50), "DefaultCPUAllocator: can't allocate memory"),
        (out_of_gpu_memory, "CUDA out of memory. Tried to allocate 2 GiB."),
        (out_of_memory_in_a_worker, "is killed by signal: Killed."),
        (out_of_memory_of_matrix_products, "could not create a primitive"),
    ],
)
def test_memory_that_ends_is_one_line_and_other_defects_keep_their_traceback(take, reason, capsys):
    assert run(take) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: out of memory: ")
    assert reason in line
    assert line.endswith("as of a batch or --num-envs; what was finished is kept")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(lambda: torch.zeros(2, 3) @ torch.zeros(2, 3))


def cut_short_by_torch():
    try:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
    finally:
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 704 vs 598")


def cut_short_by_safetensors():
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def cut_short_by_an_encoder():
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError as error:
        raise RuntimeError("encoder closed") from error


@pytest.mark.parametrize("save", [cut_short_by_torch, cut_short_by_safetensors, cut_short_by_an_encoder])
def test_a_full_disk_is_one_line_whatever_library_writes(save, capsys):
    assert run(save) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: a file could not be written (is the disk full?): ")
    assert line.endswith("free space or choose another --out; what was finished is kept")
