"""Tables of committed results: cells are text, with intervals over training seeds or games."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.score_table import human_normalized_scores, summarize
from envs.games import find_game
from envs.reference_scores import REFERENCES, all_references
from experiments.statistics import (
    Mean,
    Row,
    difference,
    filter_rows,
    interquartile_mean,
    mean_over_seeds,
    paired_differences,
    probability_of_improvement,
    seed_score_matrix,
)

Result = dict[str, Any]
EVAL_SETS = (
    ("out-of-distribution", "held-out games"), ("out-of-distribution", "photographs"),
    ("out-of-distribution", "synthetic"), ("in-distribution", "held-out episodes"),
)  # fmt: skip
BASELINES = ("training mean", "image mean", "patch mean", "blurred")
PROBES = (
    ("top5", "caption retrieval, top-5 of 256 (%)", 100.0),
    ("count_within", "objects within a game, R squared", 1.0),
    ("color_mae", "colour of each token's patch, error of 255", 1.0),
    ("position_r2", "position of each token, R squared", 1.0),
)
CONDITIONS = {
    ("adapted", "pvp"): "adapted, PVP",
    ("adapted", "none"): "adapted, no PVP",
    ("adapted", "shuffled"): "adapted, PVP with shuffled colours",
    ("frozen", "pvp"): "frozen, PVP",
    ("frozen", "none"): "frozen, no PVP",
    ("adapted", "encoder_only"): "adapted, PVP, new decoder",
}
REFERENCE = ("adapted", "none")  # of the probability of improvement
EFFECTS = (
    ("PVP, encoder adapted", ("adapted", "pvp"), ("adapted", "none")),
    ("PVP over its control with shuffled colours", ("adapted", "pvp"), ("adapted", "shuffled")),
    ("PVP, encoder frozen", ("frozen", "pvp"), ("frozen", "none")),
    ("unfreezing, with PVP", ("adapted", "pvp"), ("frozen", "pvp")),
    ("unfreezing, without PVP", ("adapted", "none"), ("frozen", "none")),
)  # fmt: skip
PUBLISHED = ("DQN", "IQN", "Rainbow")


@dataclass(frozen=True)
class TableRow:
    """A row: its label, and its cells by column; a missing cell is shown as a dash."""

    label: str
    cells: dict[str, str]


@dataclass(frozen=True)
class Table:
    """A caption, column names and rows."""

    caption: str
    columns: tuple[str, ...]
    rows: list[TableRow]


def _text(mean: Mean | None, digits: int = 1, scale: float = 1.0) -> str:
    return mean.text(digits, scale) if mean else "-"


def pvp_table(rows: list[Row], caption: str, metric: str = "mae") -> Table:
    """Return the PVP error of both encoders, their ratio, and the baselines, on each set of `pvp-nano`."""
    lines = []
    for regime, name in EVAL_SETS:
        own = filter_rows(rows, regime=regime, set=name)
        encoders = {encoder: filter_rows(own, encoder=encoder, sample=False) for encoder in ("adapted", "frozen")}
        cells = {encoder: _text(mean_over_seeds(found, metric)) for encoder, found in encoders.items()}
        cells["adapted / frozen"] = _text(difference(encoders["adapted"], encoders["frozen"], metric, ratio=True), 2)
        for row in own:
            if "baseline" in row and row.get(metric) is not None:
                cells[row["baseline"]] = f"{row[metric]:.1f}"
        lines.append(TableRow(f"{name} ({regime})", cells))
    return Table(caption, ("adapted", "frozen", "adapted / frozen", *BASELINES), lines)


def probe_table(rows: list[Row]) -> Table:
    """Return what probes read off the encoder of `pvp-nano` at the start, and adapted in either regime."""
    lines = []
    for metric, label, scale in PROBES:
        start = [row for row in filter_rows(rows, condition="start", encoder="clip") if row.get(metric) is not None]
        cells = {"semantic encoder": " and ".join(f"{scale * row[metric]:.2f}" for row in start) or "-"}
        for regime in ("out-of-distribution", "in-distribution"):
            adapted = filter_rows(rows, regime=regime, encoder="adapted")
            probes = [row for row in adapted if row["set"] in ("semantic probe", "patch probe")]
            cells[f"adapted, {regime}"] = _text(mean_over_seeds(probes, metric), 2, scale)
        lines.append(TableRow(label, cells))
    columns = ("semantic encoder", "adapted, out-of-distribution", "adapted, in-distribution")
    return Table("Probes of the encoder: semantics and image detail", columns, lines)


def segmentation_table(rows: list[Row], caption: str, method: str, name: str) -> Table:
    """Return cIoU, gIoU and precision at IoU 0.5 of each condition of `refer-nano` and of the baselines on a set."""
    lines, metrics = [], ("ciou", "giou", "p50")
    for (encoder, pvp), label in CONDITIONS.items():
        own = filter_rows(rows, encoder=encoder, pvp=pvp, mask=method, set=name)
        if own:
            cells = {metric: _text(mean_over_seeds(own, metric), 1, 100) for metric in metrics}
            lines.append(TableRow(label, cells))
    for row in rows:
        if "baseline" in row and row["set"] == name:
            cells = {metric: f"{100 * row[metric]:.1f}" for metric in metrics}
            lines.append(TableRow(f"baseline: {row['baseline']}", cells))
    return Table(caption, metrics, lines)


def pvp_before_play_table(rows: list[Row]) -> Table:
    """Return the PVP error of the models of `games-nano` before cloning, on all pixels and on small objects."""
    lines = []
    for game in sorted({row["game"] for row in rows}):
        own = filter_rows(rows, game=game)
        for label, suffix in (("", ""), (", small objects", "_small_objects")):
            metric = f"pvp_mae{suffix}"
            cells = {e: _text(mean_over_seeds(filter_rows(own, encoder=e), metric)) for e in ("adapted", "frozen")}
            for row in own:
                for name in ("image_mean", "patch_mean"):
                    if f"{name}_mae{suffix}" in row:
                        cells[name.replace("_", " ")] = f"{row[f'{name}_mae{suffix}']:.1f}"
            lines.append(TableRow(f"{find_game(game).title}{label}", cells))
    caption = "PVP error of 255 before cloning"
    return Table(caption, ("adapted", "frozen", "image mean", "patch mean"), lines)


def game_score_table(rows: list[Row], fraction: float) -> Table:
    """Return the scores of each condition of `games-nano` with a fraction of the demonstrations, and of random play."""
    _, reference = seed_score_matrix(rows, *REFERENCE, fraction)
    improvement, lines = f"P(better than {CONDITIONS[REFERENCE]})", []
    for (encoder, pvp), label in CONDITIONS.items():
        games, scores = seed_score_matrix(rows, encoder, pvp, fraction)
        if not len(scores):
            continue
        cells = {}
        for column, game in enumerate(games):
            own = filter_rows(rows, encoder=encoder, pvp=pvp, data_fraction=fraction, game=game)
            middle, low, high = interquartile_mean([row["scores"] for row in own])
            cells[find_game(game).title] = Mean.of(scores[:, column].tolist()).text(0)
            cells[f"{find_game(game).title}, IQM"] = f"{middle:.0f} [{low:.0f}, {high:.0f}]"
        if (encoder, pvp) != REFERENCE and len(reference) > 1 and len(scores) > 1:
            probability, low, high = probability_of_improvement(scores, reference)
            cells[improvement] = f"{probability:.2f} [{low:.2f}, {high:.2f}]"
        lines.append(TableRow(label, cells))
    random_rows = filter_rows(rows, condition="random")
    random = {find_game(row["game"]).title: f"{np.mean(row['scores']):,.0f}" for row in random_rows}
    titles = [find_game(game).title for game in sorted({row["game"] for row in rows})]
    columns = (*titles, *(f"{title}, IQM" for title in titles), improvement)
    lines += [TableRow("random play", random)] if random else []
    return Table(f"Scores with {fraction:.0%} of the demonstrations", columns, lines)


def effect_table(rows: list[Row], fraction: float) -> Table:
    """Return the effect of PVP and of unfreezing in `games-nano`, paired by training seed."""
    games, lines = {name: find_game(name).title for name in sorted({row["game"] for row in rows})}, []
    for label, condition, other in EFFECTS:
        cells: dict[str, str] = {}
        for name, title in games.items():
            points, nats = paired_differences(rows, fraction, name, condition, other)
            cells |= {f"{title}, points": points.text(0)} if points else {}
            cells |= {f"{title}, nats": nats.text(3)} if nats else {}
        if cells:
            lines.append(TableRow(label, cells))
    columns = tuple(f"{title}, {unit}" for unit in ("points", "nats") for title in games.values())
    return Table(f"Effects with {fraction:.0%} of the demonstrations", columns, lines)


def _published(game: str) -> dict[str, float]:
    """Return the reference scores of a game by agent, without its number of frames."""
    return {row.agent.partition(",")[0]: row.score for row in all_references(find_game(game))}


def released_table(result: Result) -> Table:
    """Return the released policy's scores beside the published ones, a row for each game."""
    lines: dict[str, dict[str, str]] = {}
    for line in summarize(result["rows"]):
        cells = lines.setdefault(line["game"], {})
        name = "random" if line["agent"] == "random" else "policy"
        cells[name] = f"{line['mean']:,.0f} [{line['low']:,.0f}, {line['high']:,.0f}]"
        published = _published(line["game"])
        cells |= {name: f"{published[name]:,.0f}" for name in (*PUBLISHED, "human") if name in published}
    columns = ("policy", *PUBLISHED, "random", "human")
    return Table("Mean score", columns, [TableRow(find_game(game).title, cells) for game, cells in lines.items()])


def score_table(result: Result) -> Table:
    """Return the scores of every agent in a result of `agents.score`; human-normalized: 0 random play, 1 human."""
    table, lines = summarize(result["rows"]), []
    normalized = {agent: found for agent, found in human_normalized_scores(table).items() if agent != "random"}
    for line in table:
        interval = f"[{line['low']:,.0f}, {line['high']:,.0f}]"
        cells = {"mean": f"{line['mean']:,.0f} {interval}", "IQM": f"{line['iqm']:,.0f}", "games": str(line["games"])}
        if line["game"] in normalized.get(line["agent"], {}):
            cells["human-normalized"] = f"{normalized[line['agent']][line['game']]:.2f}"
        lines.append(TableRow(f"{find_game(line['game']).title}: {line['agent']}", cells))
    for agent, found in normalized.items():
        if len(found) > 2:
            cells = {"human-normalized": f"{np.median(list(found.values())):.2f}"}
            lines.append(TableRow(f"median: {agent}", cells))
    return Table("All scores", ("mean", "IQM", "games", "human-normalized"), lines)


def reference_table() -> Table:
    """Return the published scores with their protocols and sources."""
    lines = [
        TableRow(
            f"{find_game(row.game).title}: {row.agent}",
            {"score": f"{row.score:,.0f}", "protocol": row.protocol, "source": row.source},
        )
        for row in REFERENCES
    ]
    return Table("Reference scores", ("score", "protocol", "source"), lines)


def benchmark_table(results: Iterable[Result]) -> Table:
    """Return the speed of every benchmark's candidate and baseline."""
    lines = [
        TableRow(
            row["benchmark"],
            {name: f"{row[name]:g}" for name in ("candidate", "baseline", "ratio")}
            | {"unit": row["unit"], "the baseline is": row["baseline_name"]}
            | {"model": row["model"], "device": row.get("device", "cpu")},
        )
        for result in results
        for row in result["rows"]
    ]
    return Table("Speed", ("candidate", "baseline", "ratio", "unit", "the baseline is", "model", "device"), lines)


def table_markdown(table: Table) -> str:
    """Return a table as Markdown."""
    head: Sequence[str] = [f"**{table.caption}**", "", f"| | {' | '.join(table.columns)} |"]
    body = [f"| {row.label} | {' | '.join(row.cells.get(c, '-') for c in table.columns)} |" for row in table.rows]
    return "\n".join([*head, "|---" * (len(table.columns) + 1) + "|", *body])
