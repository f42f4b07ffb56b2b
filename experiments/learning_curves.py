"""The table and the figure of learners that improve from rewards alone."""

import numpy as np
from matplotlib.figure import Figure

from agents.score_table import mean_interval
from envs.games import find_game
from experiments.statistics import Row, filter_rows
from experiments.tables import Table

BINS = 12  # of a curve
FIRST, LAST = "points, first twelfth", "points, last twelfth"


def learning_tables(rows: list[Row]) -> list[Table]:
    """Return a table of each game: what each learner took, and what it scored at its end."""
    games = dict.fromkeys(row["game"] for row in rows)
    columns = ("thousand frames", "minutes", "frames a second", FIRST, LAST, "score")
    caption = "{}: points for 1,000 decisions of training; mean scores with 95 % bootstrap intervals over games"
    return [
        Table(caption.format(find_game(name).title), columns, _lines(filter_rows(rows, game=name))) for name in games
    ]


def _lines(rows: list[Row]) -> list[tuple[str, dict[str, str]]]:
    lines = []
    for learner, seed in dict.fromkeys((row["learner"], row["training_seed"]) for row in rows):
        own = filter_rows(rows, learner=learner, training_seed=seed)
        curve, cells = _curve(own), {}
        if curve:
            frames, seconds = curve[-1]["frames"], curve[-1]["seconds"]
            cells["thousand frames"], cells["minutes"] = f"{frames / 1000:,.0f}", f"{seconds / 60:.0f}"
            cells["frames a second"] = f"{frames / seconds:.0f}"
            points = [point for *_, point in _points(curve)]
            cells[FIRST], cells[LAST] = f"{points[0]:,.0f}", f"{points[-1]:,.0f}"
        for row in (row for row in own if "scores" in row):
            mean, low, high = mean_interval([row["scores"]])
            cells["score"] = f"{mean:,.0f} [{low:,.0f}, {high:,.0f}]"
        lines.append((learner, cells))
    return lines


def _curve(rows: list[Row]) -> list[Row]:
    return sorted((row for row in rows if "points_per_step" in row), key=lambda row: row["frames"])


def _points(curve: list[Row]) -> list[tuple[float, float, float]]:
    """Return the seconds and the frames at the middle of each bin of a curve, and its points for 1,000 decisions."""
    bins = [part for part in np.array_split(np.arange(len(curve)), BINS) if len(part)]
    column = {name: np.array([row[name] for row in curve]) for name in ("seconds", "frames", "points_per_step")}
    return [
        (
            float(column["seconds"][part].mean()),
            float(column["frames"][part].mean()),
            1000 * float(column["points_per_step"][part].mean()),
        )
        for part in bins
    ]


def learning_figure(rows: list[Row]) -> Figure:
    """Return what each learner earned over the minutes, and over the frames, that it took."""
    figure = Figure(figsize=(8.8, 3.0), layout="constrained")
    by_time, by_frames = figure.subplots(1, 2, sharey=True)
    by_time.set(xlabel="minutes of training", ylabel="points for 1,000 decisions")
    by_frames.set(xlabel="thousand frames", xscale="log")
    for learner in dict.fromkeys(row["learner"] for row in rows):
        if points := _points(_curve(filter_rows(rows, learner=learner))):
            seconds, frames, earned = np.array(points).T
            by_time.plot(seconds / 60, earned, marker="o", markersize=3, label=learner)
            by_frames.plot(frames / 1000, earned, marker="o", markersize=3, label=learner)
    by_time.set_ylim(bottom=0)
    by_time.legend(fontsize=8)
    return figure
