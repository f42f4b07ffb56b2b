"""The one model's table holds a line for each of its tasks, and no score of other weights."""

from experiments.sections import one_model_section
from experiments.studies.one_model import ONE_MODEL, jobs
from experiments.tables import one_model_table

PIXELS = {"set": "photographs", "mae": 3.0, "mae_interval": [2.5, 3.5], "mae_patch_mean": 11.0}
PIXELS |= {"mae_image_mean": 36.9, "images": 32, "checkpoint": "abc"}
MASKS = {"set": "expressions about games", "ciou": 0.5, "ciou_low": 0.4, "ciou_high": 0.6, "giou": 0.7, "n_acc": 0.9}
MASKS |= {"checkpoint": "abc", "ciou_of_all": 0.02, "n": 400}
PLAYED = {
    "agent": "vlm",
    "game": "Carnival",
    "seed": 1000,
    "scores": [100.0, 200.0],
    "temperature": 0.5,
    "invalid": 0.0,
    "steps_per_second": 1.0,
}


def test_every_task_has_a_line():
    lines = dict(one_model_table([PIXELS, MASKS], [PLAYED]).rows)
    masks, pixels = "finds what words mean (400 expressions about games)", "reads photographs (32 images)"
    assert list(lines) == ["plays Carnival", masks, pixels]
    assert lines["plays Carnival"]["value"].startswith("150 [")
    assert lines[masks]["value"] == "50.0 [40.0, 60.0]"
    assert lines[masks]["gIoU"] == "70.0"
    assert lines[masks]["whole picture"] == "2.0"
    assert lines[pixels]["value"] == "3.00 [2.50, 3.50]"
    assert lines[pixels]["patch mean"] == "11.0"
    assert "small objects" not in lines[pixels]


def test_scores_of_other_weights_do_not_join():
    result = {"rows": [PIXELS, MASKS], "command": "c", "commit": "d", "date": "e"}
    for found, expected in (("abc", True), ("other", False)):
        section = one_model_section(result, {"rows": [{**PLAYED, "checkpoint": found}]}, [])
        assert any(label == "plays Carnival" for label, _ in section.tables[0].rows) is expected


def test_there_is_a_job_for_each_set(tmp_path):
    names = [job.key["set"] for job in jobs(None, tmp_path, ONE_MODEL)]
    assert [name for name in names if name.startswith("expressions about")] == names[-3:]
    assert len(set(names)) == len(names) == 7
