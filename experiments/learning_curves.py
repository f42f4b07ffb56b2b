"""The table and the figure of learners that improve from rewards alone."""

import numpy as np
from matplotlib.figure import Figure

from agents.score_table import mean_interval
from envs.games import find_game
from experiments.statistics import Row, filter_rows
from experiments.tables import Table

LAST_POINTS = 4  # of the 20 of a curve, whose games are the last of training


def learning_tables(rows: list[Row]) -> list[Table]:
    """Return a table of each game: what each learner took, and what it scored at its end."""
    games = dict.fromkeys(row["game"] for row in rows)
    columns = ("thousand frames", "minutes", "frames a second", "last games of training", "greedy", "sampled")
    caption = "{}: mean scores with 95 % bootstrap intervals over games"
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
            last = [score for row in curve[-LAST_POINTS:] for score in row["training_scores"]]
            cells["last games of training"] = f"{np.mean(last):,.0f} ({len(last)} games)" if last else "-"
        for row in (row for row in own if "scores" in row):
            mean, low, high = mean_interval([row["scores"]])
            name = "sampled" if learner == "random" or row.get("temperature") else "greedy"
            cells[name] = f"{mean:,.0f} [{low:,.0f}, {high:,.0f}]"
        lines.append((learner, cells))
    return lines


def _curve(rows: list[Row]) -> list[Row]:
    return sorted((row for row in rows if "training_scores" in row), key=lambda row: row["frames"])


def learning_figure(rows: list[Row]) -> Figure:
    """Return the mean score of the games of training over the minutes, and over the frames, that each learner took."""
    figure = Figure(figsize=(8.8, 3.0), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    axes[0].set_ylabel("score of the games of training")
    for axis, label, column, unit in zip(
        axes, ("minutes of training", "thousand frames"), ("seconds", "frames"), (60, 1000), strict=True
    ):
        axis.set_xlabel(label)
        for learner in dict.fromkeys(row["learner"] for row in rows):
            curve = [row for row in _curve(filter_rows(rows, learner=learner)) if row["training_scores"]]
            if curve:
                means = [np.mean(row["training_scores"]) for row in curve]
                axis.plot([row[column] / unit for row in curve], means, marker="o", markersize=3, label=learner)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    return figure
