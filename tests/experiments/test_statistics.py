"""Statistics on numbers that a reader can check by hand."""

import numpy as np
import pytest
from scipy import stats

from common.errors import UserError
from experiments.statistics import (
    Mean,
    difference,
    interquartile_mean,
    mean_over_seeds,
    paired_differences,
    performance_profiles,
    probability_of_improvement,
    seed_score_matrix,
)


def test_an_interval_is_students_over_seeds_and_one_seed_has_none():
    mean = Mean.of([10.0, 12.0, 17.0])
    low, high = stats.t.interval(0.95, 2, 13.0, stats.sem([10.0, 12.0, 17.0]))
    assert (mean.value - mean.half_width, mean.value + mean.half_width) == pytest.approx((low, high))
    assert mean.text() == f"13.0 [{low:.1f}, {high:.1f}]"
    assert Mean.of([0.5]).text(1, 100, "+") == "+50.0 (one seed)"


def test_a_mean_has_a_sign_if_its_whole_interval_has():
    assert [Mean(value, 2.0, 3).sign for value in (3.0, 1.0, -1.0, -3.0)] == [1, 0, 0, -1]
    assert Mean(3.0, None, 1).sign == 0


def test_differences_pair_conditions_by_seed_and_skip_unpaired_seeds():
    one = [{"seed": 0, "mae": 10.0}, {"seed": 1, "mae": 12.0}]
    other = [{"seed": 0, "mae": 20.0}, {"seed": 1, "mae": 26.0}, {"seed": 2, "mae": 99.0}]
    assert difference(one, other, "mae").value == pytest.approx(((10 - 20) + (12 - 26)) / 2)
    assert difference(one, other, "mae", ratio=True).value == pytest.approx((10 / 20 + 12 / 26) / 2)
    assert difference(one, [], "mae") is None


def test_a_second_row_of_a_condition_and_seed_is_refused_unless_it_says_the_same():
    rows = [{"seed": 0, "mae": 10.0}, {"seed": 0, "mae": 10.0}, {"seed": 1, "mae": 12.0}]
    assert mean_over_seeds(rows, "mae").value == 11.0
    with pytest.raises(UserError, match="got two of seed 1 with mae 12 and 13"):
        mean_over_seeds([*rows, {"seed": 1, "mae": 13.0}], "mae")
    scores = [{"game": "Pong", "seed": 0, "scores": [score]} for score in (1.0, 2.0)]
    with pytest.raises(UserError, match="got two of seed 0 with score 1 and 2"):
        seed_score_matrix(scores)


def test_all_games_of_unequal_seeds_count_in_profiles_and_interquartile_means():
    games = [[0.0] * 3, [*[0.0] * 3, *[900.0] * 27]]
    _, fractions, _ = performance_profiles({"one": games}, points=3)
    assert fractions["one"].tolist() == [27 / 33, 27 / 33, 0]
    assert interquartile_mean(games)[0] == 900.0


def test_policies_of_a_seed_are_paired_in_points_and_in_nats():
    shared = {"encoder": "adapted", "data_fraction": 1.0, "game": "Carnival"}
    rows = [
        {**shared, "pvp": pvp, "seed": seed, "scores": [score] * 2, "heldout_nll": nll}
        for pvp, seed, score, nll in (("pvp", 0, 90.0, 1.0), ("none", 0, 70.0, 1.25), ("none", 1, 5.0, 1.0))
    ]
    points, nats = paired_differences(rows, 1.0, "Carnival", ("adapted", "pvp"), ("adapted", "none"))
    assert (points.value, nats.value, points.n) == (20, 0.25, 1)


def test_the_probability_of_improvement_is_a_half_between_equals():
    assert probability_of_improvement(np.array([[3.0], [4.0]]), np.array([[1.0], [2.0]]))[0] == 1
    assert probability_of_improvement(np.array([[1.0], [2.0]]), np.array([[1.0], [2.0]]))[0] == 0.5


def test_the_interquartile_mean_leaves_out_the_best_and_the_worst_quarter():
    games = [[0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 9000.0], [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 9000.0]]
    middle, low, high = interquartile_mean(games)
    assert middle == 35.0
    assert low < middle < high
    assert interquartile_mean(games) == (middle, low, high)
    assert interquartile_mean([[7.0] * 4]) == (7.0, 7.0, 7.0)


def test_a_profile_is_the_fraction_of_games_above_a_score():
    games = {"one": [[0.0, 100.0, 200.0, 300.0], [50.0, 100.0, 400.0, 400.0]], "other": [[10.0] * 4]}
    scores, fractions, bounds = performance_profiles(games, points=9)
    one, (low, high) = fractions["one"], bounds["one"]
    assert scores.tolist() == np.linspace(0, 400, 9).tolist()
    assert one.tolist() == [7 / 8, 6 / 8, 4 / 8, 4 / 8, 3 / 8, 3 / 8, 2 / 8, 2 / 8, 0]
    assert (low <= one).all() and (one <= high).all()  # noqa: PT018
    assert low[3] < one[3] < high[3]
    assert fractions["other"].tolist() == bounds["other"][0].tolist() == [1, *[0] * 8]
