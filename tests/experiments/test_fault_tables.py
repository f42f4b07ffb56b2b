"""The tables of faults have a row for each command and a column for each count."""

import pytest

from experiments.fault_tables import fault_tables
from experiments.sections import engine_differences, make_sections


@pytest.fixture
def rows():
    own = {"seconds": 2.5, "seed": 0, "dirty": False, "commit": "a" * 40, "date": "2026-11-30", "examples": []}
    return [
        {"fault": "kill", "command": "clone", "every": 1, "moments": 50, "kills": 1234, "torn": 0, "lost": 1} | own,
        {"fault": "mutation", "format": "sb3", "refused": 3, "slowest_seconds": 4.8} | own,
        {"fault": "disk full", "command": "pvp", "how": "real", "cases": 9, "untold": 0} | own,
        {"fault": "load", "name": "record", "num_envs": 64, "game": "Pong", "peak_mib": [1.0], "slope": 0.25} | own,
    ]


def test_each_kind_of_fault_has_a_table_of_its_counts(rows):
    kills, damages, failures, load = fault_tables(rows)
    assert kills.columns == ("kills", "torn", "lost")
    assert kills.rows == [("clone", {"kills": "1,234", "torn": "0", "lost": "1"})]
    assert damages.rows == [("sb3", {"refused": "3", "slowest seconds": "4.8"})]
    assert failures.rows == [("disk full: pvp", {"cases": "9", "untold": "0"})]
    assert load.rows == [("record, Pong, 64 at once", {"slope": "0.25"})]


def test_the_report_has_a_section_of_them(rows, tmp_path):
    result = {"name": "faults", "rows": rows}
    (section,) = make_sections({"faults": result}, tmp_path)
    assert section.name == "faults"
    assert [len(table.rows) for table in section.tables] == [1, 1, 1, 1]


def test_what_engines_decide_otherwise_stands_beside_scores():
    rows = [
        {"fault": "engines", "name": "openvino against torch", "game": game, "decisions": 500, "different": count}
        for game, count in (("Carnival", 1), ("MsPacman", 9))
    ]
    said = engine_differences({"rows": rows})
    assert (
        said
        == " OpenVINO chooses another action than torch in 1 of 500 in Carnival and 9 of 500 in Ms. Pac-Man, greedily."
    )
    assert engine_differences(None) == ""
