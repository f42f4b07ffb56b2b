"""Failures of the machine are made around a command, and what they do to it is counted."""

import errno
import json
import os
import sys
import time
from pathlib import Path

import pytest

from common.command import run
from common.files import write_text_atomically
from common.output_lock import output_lock
from experiments.faults import failures
from experiments.faults.conditions import FailingFileEvents, can_mount, limit_memory, scatter_times
from experiments.faults.failures import FAILURES, Trial, measure_failure, read_while_appending, untold
from experiments.faults.processes import Ended, run_in_child
from experiments.faults.tiny_commands import prepare, tiny_commands


class Stub:
    """A command of a name that calls a function in its directory."""

    def __init__(self, write, name="stub"):
        self.write, self.name = write, name

    def run(self):
        return run(lambda: self.write() or 0)


def write_well():
    with output_lock(Path("rows.json")):
        rows = json.loads(Path("rows.json").read_text()) if Path("rows.json").exists() else []
        for row in range(len(rows), 3):
            rows.append([row] * 3000)
            write_text_atomically(Path("rows.json"), json.dumps(rows))


def write_badly():
    try:
        Path("rows.json").write_text("[" + "1, " * 30000)
        os.rename("rows.json", "rows.json")
        Path("rows.json").write_text("[" + "1, " * 30000 + "2]")
    except OSError:
        raise RuntimeError("no handler") from None


def counts(row):
    return {name for name in failures.FAULTS if row.get(name)}


@pytest.fixture
def mounts(tmp_path):
    if not can_mount(tmp_path / "mounted"):
        pytest.skip("mounting needs root")
    return True


@pytest.mark.parametrize("fault", [fault for fault in FAILURES if fault not in ("disk full", "out of memory")])
def test_a_command_that_writes_well_has_no_fault(tmp_path, fault):
    row = measure_failure(fault, Trial.of(Stub(write_well), tmp_path / "out", mounts=False))
    assert row["cases"]
    assert not counts(row), row["examples"]
    assert not row["examples"]


def test_a_real_disk_that_is_full_or_read_only_is_refused_and_repeated(tmp_path, mounts):
    trial = Trial.of(Stub(write_well), tmp_path / "out", mounts)
    for fault, failed in (("disk full", 3), ("read-only folder", 2)):
        row = measure_failure(fault, trial)
        assert (row["how"], row["failed"], counts(row)) == ("real", failed, set()), row["examples"]


def test_a_traceback_and_a_torn_file_are_told_with_examples(tmp_path, mounts):
    trial = Trial.of(Stub(write_badly), tmp_path / "out", mounts)
    row = measure_failure("disk full, simulated", trial)
    assert row["untold"] == row["failed"] == 3
    row = measure_failure("disk full", trial)
    assert counts(row) == {"untold", "torn"}
    assert row["examples"][0].endswith("RuntimeError: no handler")
    row = measure_failure("two runs at once", trial)
    assert row["untold"] == 1
    assert row["examples"] == ["event 1: untold: it was not refused"]


@pytest.mark.parametrize(
    ("code", "log", "told"),
    [
        (0, "", True),
        (2, "bar\rerror: the disk is full\n", True),
        (1, "error: the disk is full\n", False),
        (2, "error: one\nerror: two\n", False),
        (2, "Traceback (most recent call last):\nerror: one\n", False),
        (-6, "", False),
    ],
)
def test_a_failure_is_told_in_one_line_and_by_exit_code_2(code, log, told):
    assert untold(Ended(code, 0, 0.0, log)) == ([] if told else [f"exit {code}: {(log.splitlines() or [''])[-1]}"])


def test_a_full_disk_still_removes_and_a_read_only_one_does_not(tmp_path):
    def write(number):
        def act():
            (tmp_path / "out" / "old").touch()
            sys.addaudithook(FailingFileEvents(tmp_path / "out", 1, number))
            found = []
            for action in (Path("new").touch, Path("old").unlink):
                try:
                    action()
                except OSError as error:
                    found.append(errno.errorcode[error.errno])
            print(found)

        return act

    for number, expected in ((errno.ENOSPC, "['ENOSPC']\n"), (errno.EROFS, "['EROFS', 'EROFS']\n")):
        assert run_in_child(Stub(write(number)).run, tmp_path / "out").log == expected


def test_memory_that_ends_is_one_line_in_a_real_process(tmp_path):
    def take():
        limit_memory(2**26)
        bytearray(2**28)

    ended = run_in_child(Stub(take).run, tmp_path / "out")
    assert (ended.code, untold(ended)) == (2, [])
    assert ended.log.startswith("error: out of memory: MemoryError; free memory")


def test_times_are_scattered_so_that_the_newest_file_is_the_oldest(tmp_path):
    for number, name in enumerate("abc"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (number, number))
    scatter_times(tmp_path, seed=0)
    times = [(tmp_path / name).stat().st_mtime for name in "abc"]
    assert times == sorted(times, reverse=True)
    assert times[0] != times[2]


def test_a_reader_meets_no_half_file_and_one_that_does_is_told(tmp_path):
    def read(directory):
        file = directory / "rows.json"
        return len(json.loads(file.read_text())) if file.exists() else None

    def write_plainly():
        with Path("rows.json").open("w") as file:
            for number in range(100):
                file.write(f"{'[' if not number else ','}{number}")
                file.flush()
                time.sleep(0.002)
            file.write("]")

    row = read_while_appending(Trial.of(Stub(write_well), tmp_path / "well", False), read)
    assert (row["unread"], row["entries"], row["examples"]) == (0, 3, [])
    row = read_while_appending(Trial.of(Stub(write_plainly), tmp_path / "plain", False), read)
    assert row["unread"]
    assert "JSONDecodeError" in row["examples"][0]


@pytest.mark.slow
def test_a_recording_survives_all_failures(tmp_path):
    commands = tiny_commands(prepare(tmp_path / "inputs"))
    trial = Trial.of(commands["record"], tmp_path / "record", can_mount(tmp_path / "mounted"))
    for fault in FAILURES:
        if fault != "disk full" or trial.mounts:
            row = measure_failure(fault, trial)
            assert not counts(row), row["examples"]
