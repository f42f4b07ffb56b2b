"""Every model class does, and is refused, what docs/model-classes.md says: tests run the tasks that made its table."""

import pytest

from common.errors import UserError
from common.results import RESULTS, read_result
from experiments import report
from experiments.model_class_tables import model_class_tables
from experiments.model_classes import jobs
from experiments.model_classes.jobs import lacks_package
from experiments.model_classes.tasks import SLOW_TASKS, TASKS, TaskError, Trial, try_task
from experiments.model_classes.tiny_checkpoints import CLASSES

PROVENANCE = ("tiny_checkpoint", "commit", "dirty", "device", "date")
MEASURED = ("difference",)  # to rounding, which is the machine's own
ROWS = {(row["tiny_checkpoint"], row["task"]): row for row in read_result(RESULTS / f"{report.CLASSES}.json")["rows"]}
pytestmark = pytest.mark.usefixtures("spelled_numbers")


def cell(name, task):
    lacks = lacks_package(name)
    marks = [pytest.mark.skipif(bool(lacks), reason=f"it needs {lacks}")]
    marks += [pytest.mark.slow] if task in SLOW_TASKS else []
    return pytest.param(name, task, marks=marks)


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    """A function that returns the trial of a class, one for all of its tasks."""
    trials = {}

    def find(name):
        if name not in trials:
            trials[name] = Trial(name, tmp_path_factory.mktemp(name))
        return trials[name]

    return find


@pytest.mark.parametrize(("name", "task"), [cell(name, task) for name in CLASSES for task in TASKS])
def test_a_class_does_a_task_as_the_committed_table_says(trial, name, task):
    found, committed = try_task(trial(name), task), ROWS[name, task]
    without = (*PROVENANCE, *MEASURED)
    assert {key: found[key] for key in found if key not in without} == {
        key: committed[key] for key in committed if key not in without
    }, "run python -m experiments.run model-classes"


def test_the_committed_table_has_every_class_and_every_task_once():
    committed = read_result(RESULTS / f"{report.CLASSES}.json")["rows"]
    assert sorted(ROWS) == sorted((name, task) for name in CLASSES for task in TASKS)
    assert len(committed) == len(ROWS)


def test_the_committed_page_holds_what_the_committed_result_gives():
    assert report.CLASSES_DOCS.read_text() == report.classes_markdown(), "run python -m experiments.report --write-docs"


def test_a_task_that_is_done_wrongly_is_no_row(trial, monkeypatch):
    monkeypatch.setattr("experiments.model_classes.tasks.generate_text", lambda *_: ["fire"] * 2)
    with pytest.raises(TaskError, match=r"expected the answer '.*', got 'fire'"):
        try_task(trial("llava"), "generation")


def test_scores_that_do_not_depend_on_the_frame_are_a_fault(trial, monkeypatch):
    own = trial("llava").vlm
    monkeypatch.setattr(own, "preprocess", lambda frames: type(own).preprocess(own, 0 * frames), raising=False)
    with pytest.raises(TaskError, match="expected frames with different scores"):
        try_task(trial("llava"), "scores")


def test_a_training_that_moves_nothing_is_a_fault(trial, monkeypatch):
    monkeypatch.setattr(Trial, "cloned", trial("llava").directory)
    updates = {role: {"changed": int(role != "encoder")} for role in ("encoder", "connector", "decoder")}
    monkeypatch.setattr("vlm.checkpoint.read_training", lambda _: {"parameter_updates": updates})
    with pytest.raises(TaskError, match=r"expected \['connector', 'decoder', 'encoder'\] to have moved, got \['conn"):
        try_task(trial("llava"), "cloning")


def test_reasons_are_numbered_and_given_once():
    row = {"tiny_checkpoint": "a", "model_class": "A", "done": True}
    rows = [
        {**row, "task": "image input", "image_tokens": 16, "share_seen": 0.5},
        {**row, "task": "scores", "passes": 1, "difference": 4e-6},
        {**row, "task": "PVP", "done": False, "reason": "cannot"},
        {**row, "task": "points", "done": False, "reason": "cannot"},
        {**row, "task": "reloaded", "checkpoints": 1},
    ]
    play, pixels, kept, reasons = model_class_tables(rows)
    assert play.rows == [("A (`a`)", {"tokens": "16", "seen": "50%", "scores": "yes, one pass, 4e-06"})]
    assert pixels.rows == [("A (`a`)", {"PVP": "no (1)", "points": "no (1)"})]
    assert kept.rows == [("A (`a`)", {"reloaded": "yes"})]
    assert reasons.rows == [("1", {"the class": "cannot"})]


def test_it_is_not_measured_without_the_packages_of_some_classes(monkeypatch):
    monkeypatch.setattr(jobs.importlib.util, "find_spec", lambda name: None if name == "timm" else name)
    with pytest.raises(UserError, match=r"expected the packages timm, not installed; pip install -e '\.\[vlm\]'"):
        jobs.prepare()
