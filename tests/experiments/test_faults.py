"""Kills are made before every file event, and what they do to a command is counted."""

import ctypes
import json
import os
import runpy
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from tqdm import tqdm

from common.command import run
from common.errors import UserError
from common.files import atomic_directory, write_text_atomically
from experiments.faults import mutations
from experiments.faults.__main__ import main
from experiments.faults.corruption import CANARY, TITLE
from experiments.faults.formats import FORMATS, Format
from experiments.faults.kills import FAULTS, measure
from experiments.faults.outputs import contents, differences, torn_files
from experiments.faults.parts import run_jobs
from experiments.faults.processes import Kill, run_in_child
from experiments.faults.tiny_commands import prepare, tiny_commands
from experiments.studies.jobs import Job


class Stub:
    """A command of a name that calls a function in its directory."""

    is_exact = True

    def __init__(self, write, name="stub"):
        self.write, self.name = write, name

    def run(self):
        self.write()
        return 0


def write_atomically():
    with atomic_directory(Path("model")) as temporary:
        (temporary / "weights.json").write_text("[1]")
    for step in range(3):
        write_text_atomically(Path("rows.json"), json.dumps(list(range(step + 1))))


def write_plainly():
    with Path("rows.json").open("w") as file:
        file.write("[1,")
        file.flush()
        Path("between").touch()
        file.write("2]")


def append_rows():
    rows = json.loads(Path("rows.json").read_text()) if Path("rows.json").exists() else []
    for row in range(2):
        write_text_atomically(Path("rows.json"), json.dumps([*rows, row]))
        rows.append(row)


def leave_hidden():
    Path(f".out.{os.getpid()}").touch()
    Path(f".out.{os.getpid()}").rename("out")


@pytest.mark.parametrize(
    ("write", "faults"),
    [
        (write_atomically, set()),
        (write_plainly, {"torn"}),
        (append_rows, {"doubled"}),
        (leave_hidden, {"left"}),
    ],
)
def test_each_fault_is_found_and_nothing_is_where_files_appear_whole(tmp_path, write, faults):
    (row,) = measure(Stub(write), tmp_path)
    assert row["kills"] == row["file_events"] > 0
    assert {fault for fault in FAULTS if row[fault]} == faults, row["examples"]
    assert bool(row["examples"]) == bool(faults)


def test_a_run_that_is_refused_loses_files_or_changes_them_is_told_with_an_example(tmp_path):
    def stuck():
        Path("begun").touch()
        if Path("out").exists():
            raise SystemExit("refused")
        Path("out").mkdir()
        Path("end").touch()

    (row,) = measure(Stub(stuck), tmp_path)
    assert (row["file_events"], row["stuck"], row["lost"]) == (3, 1, 1)
    assert row["examples"] == ["event 3: stuck: exit 70: SystemExit: refused", "event 3: lost: end"]


def test_runs_differ_by_what_is_lost_doubled_or_other():
    whole = {"a": "1", "b": [1, 2], "c": [1], "d": {"rows": [1]}, "e": "5"}
    resumed = {"a": "2", "b": [1], "c": [1, 1], "d": {"rows": [1]}, "f": "6"}
    found = differences(whole, resumed)
    assert found == {"lost": ["b", "e"], "doubled": ["c", "f"], "different": ["a"]}


def test_only_a_childs_own_files_are_events_and_a_kill_comes_before_one(tmp_path):
    def write():
        (tmp_path / "elsewhere").touch()
        Path("one").touch()
        Path("one").read_text()
        Path("one").rename("two")

    assert run_in_child(Stub(write).run, tmp_path / "child").events == 2
    (tmp_path / "child" / "two").unlink()
    killed = run_in_child(Stub(write).run, tmp_path / "child", Kill(event=2))
    assert (killed.code, killed.events) == (-9, 1)
    assert list(contents(tmp_path / "child")) == ["one"]


def test_file_events_below_a_relative_directory_count(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_in_child(Stub(lambda: Path("one").write_text("1")).run, Path("runs") / "child").events == 1


def test_a_child_killed_amid_a_progress_bar_stops_no_later_one(tmp_path):
    tqdm(disable=True).get_lock()  # made in this process, as by any bar before

    def die_amid_a_bar():
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    def show_a_bar():
        with tqdm.get_lock():
            return 0

    assert run_in_child(die_amid_a_bar, tmp_path / "killed").code == -signal.SIGKILL
    assert run_in_child(show_a_bar, tmp_path / "next", Kill(seconds=10)).code == 0


def test_a_child_is_no_fork_of_this_process(tmp_path):
    """It would lack this process's threads, for which native libraries wait or crash."""

    def tell_parent():
        print(os.getppid(), threading.active_count())
        return 0

    with ThreadPoolExecutor(1) as pool:
        pool.submit(time.sleep, 0).result()
        parent, threads = run_in_child(tell_parent, tmp_path / "child").log.split()
    assert int(parent) not in (os.getpid(), 1)
    assert threads == "1"
    names = [task.read_text().strip() for task in Path(f"/proc/{parent}/task").glob("*/comm")]
    assert len([name for name in names if name.startswith("python")]) == 1, names


def test_a_crash_of_native_code_tells_where(tmp_path):
    def crash():
        ctypes.string_at(0)

    ended = run_in_child(crash, tmp_path / "child")
    assert ended.code == -signal.SIGSEGV
    assert "in crash" in ended.log


def test_files_that_cannot_be_read_are_torn(tmp_path):
    for name in ("a.json", "b.safetensors", "c.parquet", "d.zip", "e.pkl"):
        (tmp_path / name).write_text("{")
    for name in ("checkpoint-2", ".unfinished/checkpoint-4"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".hidden.json").write_text("{")
    assert torn_files(tmp_path) == ["a.json", "b.safetensors", "c.parquet", "d.zip", "e.pkl", "checkpoint-2"]


@pytest.mark.slow
def test_a_recording_survives_kills_at_its_ends(tmp_path):
    (row,) = measure(tiny_commands(prepare(tmp_path / "inputs"))["record"], tmp_path, every=9)
    assert row["kills"] == 3
    assert not any(row[fault] for fault in FAULTS), row["examples"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "every"), [("clone", 9), ("ppo", 9), ("expert", 11), ("study", 50)])
def test_a_training_survives_kills(tmp_path, name, every):
    out = tmp_path / "faults.json"
    words = ["--parts", "kills", "--work", str(tmp_path), "--commands", name, "--out", str(out)]
    words += ["--every", str(every), "--moments", "2"]
    assert run(lambda: main(words)) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["kills"] >= 4
    assert not any(row[fault] for fault in FAULTS), row["examples"]


def test_a_repeated_measurement_does_the_jobs_that_are_missing(tmp_path):
    done = []

    def rows(name, killed=False):
        for number in range(2):
            done.append((name, number))
            yield {"fault": "write", "number": number}
            if killed:
                raise KeyboardInterrupt

    def jobs(killed):
        for name in "ab":
            yield Job({"part": name, "seed": 0}, 0, partial(rows, name, killed and name == "b"))

    out = tmp_path / "faults.json"
    with pytest.raises(KeyboardInterrupt):
        list(run_jobs("faults", jobs(killed=True), out, [0]))
    assert [row["part"] for row in json.loads(out.read_text())["rows"]] == ["a", "a", "b"]
    assert [row["number"] for row in run_jobs("faults", jobs(killed=False), out, [0])] == [0, 1]
    result = out.read_text()
    found = [(row["part"], row["number"]) for row in json.loads(result)["rows"]]
    assert found == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert done == [("a", 0), ("a", 1), ("b", 0), ("b", 0), ("b", 1)]
    assert all({"commit", "dirty", "seconds", "date"} <= set(row) for row in json.loads(result)["rows"])
    assert list(run_jobs("faults", jobs(killed=True), out, [0])) == []
    assert json.loads(out.read_text())["rows"] == json.loads(result)["rows"]


def test_a_part_that_there_is_not_is_refused_with_the_nearest(tmp_path, capsys):
    words = ["--work", str(tmp_path), "--parts", "kill", "--out", str(tmp_path / "faults.json")]
    assert run(lambda: main(words)) == 2
    assert "got 'kill'; nearest: kills" in capsys.readouterr().err


def test_files_of_a_run_that_is_not_exact_count_by_name_and_number_of_entries(tmp_path):
    (tmp_path / "best.zip").write_text("one")
    (tmp_path / "evaluations.json").write_text('[{"scores": [1]}]')
    before = contents(tmp_path, is_exact=False)
    (tmp_path / "best.zip").write_text("other")
    (tmp_path / "evaluations.json").write_text('[{"scores": [2]}]')
    assert contents(tmp_path, is_exact=False) == before
    (tmp_path / "evaluations.json").write_text("[]")
    assert differences(before, contents(tmp_path, is_exact=False))["lost"] == ["evaluations.json"]


def test_a_command_that_there_is_not_is_refused_with_the_nearest(tmp_path, capsys):
    words = ["--work", str(tmp_path), "--commands", "clon", "--out", str(tmp_path / "faults.json")]
    assert run(lambda: main(words)) == 2
    assert "got 'clon'; nearest: clone" in capsys.readouterr().err


def bad_format(read):
    """A format of one text file, that a function opens."""

    def damage(place, rng):
        (place / "text").write_text(str(rng.integers(10**9)))
        return "other text"

    def open_text(place):
        return read(place) if (place / "text").read_text() != "whole" else 0

    def prepare(place):
        place.mkdir()
        (place / "text").write_text("whole")

    return Format("text", 2, prepare, damage, open_text)


def exit_without_a_word(_):
    return 2


def refuse(_):
    def main():
        raise UserError("no")

    return run(main)


def run_foreign_code(place):
    (place / "foreign.py").write_text("x = 1")
    runpy.run_path(place / "foreign.py")
    return 0


def make_canary(_):
    Path(CANARY).touch()
    return 0


def take_memory(_):
    taken = bytearray(100)
    taken.extend(bytes(2**26))  # too much for pages that are free already
    return len(taken) * 0


@pytest.mark.parametrize(
    ("read", "faults"),
    [
        (refuse, {"refused"}),
        (lambda _: 0, {"accepted"}),
        (lambda _: 1 // 0, {"tracebacks"}),
        (lambda _: 3, {"tracebacks"}),
        (exit_without_a_word, {"tracebacks"}),
        (lambda _: os.system("true"), {"executions"}),
        (make_canary, {"executions"}),
        (run_foreign_code, {"executions"}),
        (lambda place: Path("../outside").write_text("") or 0, {"escapes"}),
        (lambda place: os.rename(place / "text", "../outside") or 0, {"escapes"}),
        (lambda _: print(TITLE) or 0, {"control_sequences"}),
        (lambda _: time.sleep(5) or 0, {"slow"}),
        (take_memory, {"memory"}),
    ],
)
def test_each_fault_of_an_opened_file_is_found(tmp_path, monkeypatch, read, faults):
    if faults == {"slow"}:
        monkeypatch.setattr(mutations, "MAX_SECONDS", 0.5)
    monkeypatch.setattr(mutations, "MAX_BYTES", 2**25)
    (row,) = mutations.measure(bad_format(read), tmp_path, 0)
    assert {name for name in ("refused", "accepted", *mutations.FAULTS) if row[name] == 2} == faults, row
    assert len(row["examples"]) == 2 * bool(faults & set(mutations.FAULTS))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_damaged_files_and_requests_are_refused_or_read(tmp_path, name):
    (row,) = mutations.measure(FORMATS[name], tmp_path, 10**6, 2 if name == "request" else 7)
    assert not any(row[fault] for fault in mutations.FAULTS), row["examples"]
    assert row["refused"] > 0


def test_a_seed_damages_a_file_in_the_same_way(tmp_path):
    form = FORMATS["refer"]
    form.prepare(tmp_path / "example")
    done = [mutations.mutate(form, tmp_path / "example", tmp_path / str(seed), seed) for seed in (1, 1, 2)]
    assert done[0] == done[1] != done[2]
