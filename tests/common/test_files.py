"""Files and directories appear whole, and what a dead process left goes when its name is written again."""

import os
import subprocess
import sys

import pytest

from common.files import atomic_directory, atomic_file, restore_directory, temporary_path, write_text_atomically


@pytest.fixture(scope="module")
def dead():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_dead_processes_left_is_removed_by_the_next_writer_and_nothing_else(tmp_path, dead):
    stay = [".a.json", f".b.{dead}.tmp.json", f".a.{dead}.tmp.png", f".a.{os.getppid()}.tmp.json", ".a.x.tmp.json"]
    for name in (*stay, f".a.{dead}.tmp.json", f".a.{os.getpid()}.tmp.json"):
        (tmp_path / name).write_text("")
    write_text_atomically(tmp_path / "a.json", "new")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*stay, "a.json"])
    assert (tmp_path / "a.json").read_text() == "new"


def test_a_directory_replaces_an_old_one_and_leaves_nothing_beside_it(tmp_path, dead):
    for name in ("run", f".run.{dead}.tmp", f".run.{dead}.old", f".run.{os.getpid()}.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old.txt").write_text("old")
    with atomic_directory(tmp_path / "run") as temporary:
        (temporary / "new.txt").write_text("new")
        assert (tmp_path / "run" / "old.txt").exists()
    assert [file.name for file in tmp_path.iterdir()] == ["run"]
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["new.txt"]


def test_an_error_leaves_the_old_version_and_nothing_hidden(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old.txt").write_text("old")
    for atomic in (atomic_directory(tmp_path / "run"), atomic_file(tmp_path / "file.txt")):
        with pytest.raises(RuntimeError), atomic:
            raise RuntimeError
    assert [file.name for file in tmp_path.rglob("*")] == ["run", "old.txt"]


def test_a_directory_that_was_being_replaced_comes_back(tmp_path, dead):
    old = tmp_path / f".state.{dead}.old"
    old.mkdir()
    temporary_path(tmp_path / "state")
    assert old.exists()  # the only version there is
    restore_directory(tmp_path / "state")
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
    restore_directory(tmp_path / "state")
    restore_directory(tmp_path / "nowhere" / "state")
