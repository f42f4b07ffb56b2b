"""An output has one writer at a time."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.command import command, run
from common.errors import UserError
from common.output_lock import lock_file, output_lock, output_of

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys
from pathlib import Path
from common.output_lock import output_lock
with output_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held():
    """A function that lets another process lock an output until the test ends or the process is killed."""
    begun = []

    def hold(out):
        words = [sys.executable, "-c", HOLD, str(out)]
        begun.append(subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert begun[-1].stdout.readline() == b"locked\n"
        return begun[-1]

    yield hold
    for process in begun:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", ["run", "run-1.5", "scores.json", "mask.jpg"])
def test_a_second_writer_is_refused_in_one_line_until_the_first_is_gone(held, name, tmp_path, capsys):
    other, args = held(tmp_path / name), SimpleNamespace(out=tmp_path / name)
    main = command(lambda _: args, lambda args: args.out, None, "wrote {}")
    assert run(lambda: main([])) == 2
    expected = f"error: another command is writing {args.out}; wait for its end or choose another --out\n"
    assert capsys.readouterr().err == expected
    other.kill()
    other.wait()
    assert run(lambda: main([])) == 0
    assert not list(tmp_path.iterdir())


def test_one_process_locks_an_output_again_and_frees_it_at_the_end(held, tmp_path):
    with output_lock(tmp_path / "run"), output_lock(tmp_path / "run"):
        pass
    held(tmp_path / "run")
    with pytest.raises(UserError, match="another command is writing"), output_lock(tmp_path / "run"):
        pass


def test_other_names_of_an_output_have_its_lock(held, tmp_path, monkeypatch):
    held(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for name in (Path("run"), Path("other/../run"), Path("link")):
        with pytest.raises(UserError, match="another command is writing"), output_lock(name):
            pass
    assert [file.name for file in tmp_path.iterdir()] == ["link"]


def test_other_processes_of_a_launcher_leave_the_lock_to_the_first(held, tmp_path, monkeypatch):
    held(tmp_path / "run")
    for rank, refused in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        entered = []
        with contextlib.suppress(UserError), output_lock(tmp_path / "run"):
            entered.append(rank)
        assert (entered == []) is refused


def test_the_output_of_a_command_is_found_in_its_arguments():
    assert output_of(SimpleNamespace(out=Path("a"))) == Path("a")
    assert output_of(SimpleNamespace(run=SimpleNamespace(out=Path("b")))) == Path("b")
    assert output_of(SimpleNamespace(out=None)) is None
    assert output_of(SimpleNamespace()) is None


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="users have names on this system")
def test_a_user_without_a_name_locks_as_others_do(tmp_path, monkeypatch):
    def nameless():
        raise KeyError("getpwuid(): uid not found: 4321")

    monkeypatch.setattr("getpass.getuser", nameless)
    with output_lock(tmp_path / "run"):
        assert lock_file(tmp_path / "run").is_file()
