"""Verdicts follow from intervals, and tables and charts hold the numbers of the rows."""

import re

import pytest

from experiments.charts import effect_chart
from experiments.findings import Effect, headline_findings, play_finding, precision_finding, segmentation_finding
from experiments.tables import (
    effect_table,
    game_score_table,
    pvp_before_play_table,
    pvp_table,
    segmentation_table,
)


def errors(encoder, *values, **more):
    row = {"regime": "out-of-distribution", "set": "held-out games", "encoder": encoder, "sample": False, **more}
    return [{**row, "seed": seed, "mae": value} for seed, value in enumerate(values)]


def masks(encoder, pvp, *values):
    row = {"encoder": encoder, "pvp": pvp, "mask": "head", "set": "test"}
    return [{**row, "seed": seed, "ciou": value, "giou": value, "p50": value} for seed, value in enumerate(values)]


def played(encoder, pvp, *scores, **more):
    row = {"encoder": encoder, "pvp": pvp, "data_fraction": 1.0, "game": "Carnival", "heldout_nll": 1.0, **more}
    return [{**row, "seed": seed, "scores": [score, score]} for seed, score in enumerate(scores)]


def cells(table):
    return dict(table.rows)


@pytest.mark.parametrize(
    ("adapted", "verdict"),
    [((10.0, 12.0, 11.0), "Reproduced"), ((10.0, 30.0, 20.0), "Not reproduced"), ((), "Not measured")],
)
def test_precision_is_reproduced_if_the_interval_of_the_change_is_below_zero(adapted, verdict):
    finding = precision_finding(errors("adapted", *adapted) + errors("frozen", 20.0, 24.0, 22.0))
    assert finding.verdict.startswith(verdict)
    if verdict == "Reproduced":
        assert finding.effects[0].value == pytest.approx(-50)


@pytest.mark.parametrize(("no_pvp", "verdict"), [((60, 62, 61), "Reproduced"), ((101, 99, 100), "Half reproduced")])
def test_play_is_half_reproduced_if_pvp_has_no_part_in_the_gain(no_pvp, verdict):
    rows = played("adapted", "pvp", 100, 101, 99) + played("adapted", "none", *no_pvp)
    finding = play_finding(rows + played("frozen", "none", 40, 41, 42))
    assert finding.verdict == verdict
    assert finding.effects[0].value == pytest.approx(59)
    assert [effect.value for effect in finding.effects if effect.from_paper] == [80.34, 70.54]


def test_segmentation_is_not_reproduced_if_cIoU_falls():
    rows = masks("adapted", "pvp", 0.5, 0.52) + masks("frozen", "none", 0.7, 0.7) + masks("adapted", "none", 0.7, 0.7)
    finding = segmentation_finding(rows)
    assert finding.verdict == "Not reproduced"
    assert finding.effects[0].value == pytest.approx(-19)
    assert finding.effects[-1].value == 10.19


def test_a_study_without_results_is_named_as_not_measured():
    assert [finding.verdict for finding in headline_findings({})] == ["Not measured yet"] * 3
    assert "python -m experiments.run games-nano" in headline_findings({})[1].sentence


def test_a_chart_has_a_mark_for_every_value_within_its_axis():
    effects = [Effect("ours", "+5", 5.0, 2.0), Effect("paper", "+10", 10.0, from_paper=True), Effect("other", "lower")]
    svg = effect_chart(effects, "points")
    low, at, high = (float(re.search(rf'{name}="([\d.]+)"[^>]*class="ours"', svg)[1]) for name in ("x1", "cx", "x2"))
    assert low < at < high
    assert at - low == pytest.approx(high - at, abs=0.2)
    paper = float(re.search(r'<path d="M([\d.]+)', svg)[1]) + 5
    zero = float(re.search(r'x1="([\d.]+)"[^>]*class="zero"', svg)[1])
    assert (paper - zero) / (at - zero) == pytest.approx(2, abs=0.02)
    assert all(effect.text in svg for effect in effects)


def test_tables_of_pixels_and_masks_hold_means_ratios_and_baselines():
    baseline = {"regime": "out-of-distribution", "set": "held-out games", "baseline": "image mean", "mae": 33.3}
    rows = [*errors("adapted", 10.0, 12.0), *errors("frozen", 20.0, 26.0), baseline]
    row = cells(pvp_table(rows, ""))["held-out games (out-of-distribution)"]
    assert row["adapted"].startswith("11.0 [")
    assert row["adapted / frozen"].startswith("0.48 [")
    assert row["image mean"] == "33.3"
    rows = [*masks("adapted", "pvp", 0.7, 0.8), {**masks("", "", 0.03)[0], "baseline": "all"}]
    table = cells(segmentation_table(rows, "", "head", "test"))
    assert table["adapted, PVP"]["ciou"].startswith("75.0 [")
    assert table["baseline: all"]["ciou"] == "3.0"


def test_tables_of_games_hold_scores_improvement_effects_and_the_pixel_error_before():
    rows = played("adapted", "pvp", 100, 101, 102, 103, pvp_mae=20.0) + played("adapted", "none", 50, 51, 52, 53)
    random = {"condition": "random", "game": "Carnival", "scores": [10.0, 30.0], "image_mean_mae": 41.83}
    table = cells(game_score_table([*rows, random], 1.0))
    assert table["adapted, PVP"]["Carnival"].startswith("102 [")
    assert table["adapted, no PVP"]["Carnival, IQM"].startswith("52 [")
    assert table["adapted, PVP"]["P(better than adapted, no PVP)"] == "1.00 [1.00, 1.00]"
    assert table["random play"]["Carnival"] == "20"
    assert cells(effect_table(rows, 1.0))["PVP, encoder adapted"]["Carnival, points"] == "50 [50, 50]"
    before = cells(pvp_before_play_table([*rows, random]))["Carnival"]
    assert (before["adapted"], before["frozen"], before["image mean"]) == ("20.0 [20.0, 20.0]", "-", "41.8")
