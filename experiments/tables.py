"""Tables of committed results: cells are text, with intervals over training seeds or games."""

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
    games_of,
    interquartile_mean,
    mean_over_seeds,
    paired_differences,
    probability_of_improvement,
    seed_score_matrix,
)

EVAL_SETS = (
    ("out-of-distribution", "held-out games"), ("out-of-distribution", "photographs"),
    ("out-of-distribution", "synthetic"), ("out-of-distribution", "held-out episodes"),
)  # fmt: skip
BASELINES = ("training mean", "image mean", "patch mean", "blurred")
PROBES = (
    ("top5", "caption retrieval, top-5 of 256 (%)", 100.0),
    ("count_within", "objects within a game, R squared", 1.0),
)
TOWERS = {"captioner": "semantic encoder", "adapted": "adapted", "random": "random weights"}
CONDITIONS = {
    ("adapted", "pvp"): "adapted, PVP",
    ("adapted", "none"): "adapted, no PVP",
    ("adapted", "shuffled"): "adapted, PVP with shuffled colours",
    ("frozen", "pvp"): "frozen, PVP",
    ("frozen", "none"): "frozen, no PVP",
    ("adapted", "encoder_only"): "adapted, PVP, new decoder",
}
ENCODERS = ("adapted", "frozen")
REFERENCE = ("adapted", "none")  # of the probability of improvement
EFFECTS = (
    ("PVP, encoder adapted", ("adapted", "pvp"), ("adapted", "none")),
    ("PVP's encoder, new decoder", ("adapted", "encoder_only"), ("adapted", "none")),
    ("PVP over its control with shuffled colours", ("adapted", "pvp"), ("adapted", "shuffled")),
    ("PVP, encoder frozen", ("frozen", "pvp"), ("frozen", "none")),
    ("unfreezing, with PVP", ("adapted", "pvp"), ("frozen", "pvp")),
    ("unfreezing, without PVP", ("adapted", "none"), ("frozen", "none")),
)  # fmt: skip
PUBLISHED = ("DQN", "IQN", "Rainbow")


@dataclass(frozen=True)
class Table:
    """A caption, column names, and rows: a label and cells by column each; a missing cell is shown as a dash."""

    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[str, dict[str, str]]]


def by_condition(rows: list[Row], **values: Any) -> dict[str, list[Row]]:
    """Return the rows with all the values of each condition that has any, by its label."""
    found = {label: filter_rows(rows, encoder=e, pvp=pvp, **values) for (e, pvp), label in CONDITIONS.items()}
    return {label: own for label, own in found.items() if own}


def _mean(rows: list[Row], metric: str, digits: int = 1, scale: float = 1.0) -> str:
    mean = mean_over_seeds(rows, metric)
    return mean.text(digits, scale) if mean else "-"


def pvp_table(rows: list[Row], caption: str, metric: str = "mae") -> Table:
    """Return the PVP error of both encoders, their ratio, and the baselines, on each set of `pvp-nano`."""
    lines = []
    for regime, name in EVAL_SETS:
        own = filter_rows(rows, regime=regime, set=name)
        adapted, frozen = (filter_rows(own, encoder=encoder, sample=False) for encoder in ENCODERS)
        cells = {"adapted": _mean(adapted, metric), "frozen": _mean(frozen, metric)}
        if ratio := difference(adapted, frozen, metric, ratio=True):
            cells["adapted / frozen"] = ratio.text(2)
        measured = [row for row in own if "baseline" in row and row.get(metric) is not None]
        lines.append((f"{name} ({regime})", cells | {row["baseline"]: f"{row[metric]:.1f}" for row in measured}))
    return Table(caption, (*ENCODERS, "adapted / frozen", *BASELINES), lines)


LEVER_COLUMNS = (
    ("mae", "error of 255", 1),
    ("mae_red", "red", 1),
    ("mae_green", "green", 1),
    ("mae_blue", "blue", 1),
    ("mae_small_objects", "small objects", 1),
    ("mae_of_patch_means", "averaged over patches", 1),
    ("within_patch_correlation", "correlation within", 2),
    ("token_probe_mae", "probe of the tokens", 1),
)


def levers_table(rows: list[Row], eval_set: str) -> Table:
    """Return the error and the gates of each setting on one set, means over seeds, the best setting first."""
    own = filter_rows(rows, set=eval_set)
    levers = sorted({row["lever"] for row in own}, key=lambda name: _mean_of(filter_rows(own, lever=name), "mae") or 0)
    cells = {}
    for lever in levers:
        means = {metric: _mean_of(filter_rows(own, lever=lever), metric) for metric, *_ in LEVER_COLUMNS}
        cells[lever] = {
            title: f"{means[metric]:.{digits}f}" for metric, title, digits in LEVER_COLUMNS if means[metric] is not None
        }
    baselines = {
        title: f"{_mean_of(own, metric):.1f}"
        for title, metric in (("patch mean", "mae_patch_mean"), ("image mean", "mae_image_mean"))
    }
    caption = f"{eval_set}: the patch's mean is {baselines['patch mean']} off, the image's {baselines['image mean']}"
    return Table(caption, tuple(title for _, title, _ in LEVER_COLUMNS), list(cells.items()))


def gates_table(rows: list[Row]) -> Table:
    """Return the parts of the error and the gates of both encoders, means over seeds, on each set of `pvp-nano`."""
    lines = []
    for regime, name in EVAL_SETS:
        for encoder in ENCODERS:
            own = filter_rows(rows, regime=regime, set=name, encoder=encoder, sample=False)
            if own:
                cells = {title: _mean(own, metric, digits) for metric, title, digits in LEVER_COLUMNS}
                lines.append((f"{name}, {encoder}", cells))
    return Table("The error's parts, and the gates", tuple(title for _, title, _ in LEVER_COLUMNS), lines)


def reader_table(rows: list[Row]) -> Table:
    """Return the error of the released reader on each set, with its interval, its parts and what answers without it."""
    lines = []
    for row in rows:
        low, high = row["mae_interval"]
        cells = {title: f"{row[metric]:.{digits}f}" for metric, title, digits in LEVER_COLUMNS if row.get(metric)}
        cells["error of 255"] = f"{row['mae']:.2f} [{low:.2f}, {high:.2f}]"
        cells |= {"patch mean": f"{row['mae_patch_mean']:.1f}", "image mean": f"{row['mae_image_mean']:.1f}"}
        lines.append((f"{row['set']} ({row['images']} images)", cells))
    columns = (*(title for _, title, _ in LEVER_COLUMNS), "patch mean", "image mean")
    return Table("The released reader, greedy answers at all cells", columns, lines)


def one_model_table(rows: list[Row], scores: list[Row]) -> Table:
    """Return what one model does, a line a task: `rows` of `one-model`, `scores` of `agents.score` of its weights."""
    lines = [
        (f"plays {find_game(line['game']).title}", {"measure": "mean score", "value": _mean_and_interval(line)})
        for line in summarize(scores)
        if line["agent"] != "random"
    ]
    for row in (row for row in rows if "ciou" in row):
        ciou, low, high, everything = (100 * row[name] for name in ("ciou", "ciou_low", "ciou_high", "ciou_of_all"))
        cells = {"measure": "cIoU, percent", "value": f"{ciou:.1f} [{low:.1f}, {high:.1f}]"}
        cells |= {"gIoU": f"{100 * row['giou']:.1f}", "whole picture": f"{everything:.1f}"}
        cells |= {"nothing is meant, nothing is found": f"{100 * row['n_acc']:.1f}"}
        lines.append((f"finds what words mean ({row['n']} {row['set']})", cells))
    for row in (row for row in rows if "mae" in row):
        low, high = row["mae_interval"]
        cells = {"measure": "error of 255", "value": f"{row['mae']:.2f} [{low:.2f}, {high:.2f}]"}
        cells |= {"patch mean": f"{row['mae_patch_mean']:.1f}", "image mean": f"{row['mae_image_mean']:.1f}"}
        if row.get("mae_small_objects") is not None:
            cells["small objects"] = f"{row['mae_small_objects']:.1f}"
        lines.append((f"reads {row['set']} ({row['images']} images)", cells))
    columns = ("measure", "value", "gIoU", "whole picture", "nothing is meant, nothing is found")
    return Table("One model", (*columns, "patch mean", "image mean", "small objects"), lines)


def optimizers_table(rows: list[Row]) -> Table:
    """Return, for each task, what AdamW reaches and how long Muon takes to the same value; values are last points."""
    lines = []
    for task in dict.fromkeys(row["task"] for row in rows):
        curves = {
            name: sorted(filter_rows(rows, task=task, optimizer=name), key=lambda row: row["step"])
            for name in ("adamw", "muon")
        }
        if not all(curves.values()):
            continue
        adamw, muon = (curves[name] for name in ("adamw", "muon"))
        reached = next((row for row in muon if row["value"] <= adamw[-1]["value"]), None)
        cells = {
            "value": {"mae_expected": "error of 255", "loss": "nats"}[adamw[0]["metric"]],
            "steps": str(adamw[-1]["step"]),
            "AdamW": f"{adamw[-1]['value']:.2f} in {adamw[-1]['seconds']:.0f} s",
            "Muon": f"{muon[-1]['value']:.2f} in {muon[-1]['seconds']:.0f} s",
        }
        if reached:
            cells["Muon, to AdamW's value"] = f"{reached['step']} steps, {reached['seconds']:.0f} s"
            cells["times as fast"] = f"{adamw[-1]['seconds'] / reached['seconds']:.1f}"
        lines.append((task, cells))
    columns = ("value", "steps", "AdamW", "Muon", "Muon, to AdamW's value", "times as fast")
    return Table("Means over 25 training batches, on one core", columns, lines)


def _mean_of(rows: list[Row], metric: str) -> float | None:
    values = [row[metric] for row in rows if row.get(metric) is not None]
    return float(np.mean(values)) if values else None


def probe_table(rows: list[Row]) -> Table:
    """Return what captions and probes read off the encoder of `pvp-nano`: at the start, adapted, of random weights."""
    probes, lines = [row for row in rows if row["set"] in ("semantic probe", "caption retrieval")], []
    for metric, label, scale in PROBES:
        own = [row for row in probes if row.get(metric) is not None]
        by_tower = {
            column: [row for row in own if row.get("tower", row.get("encoder")) == name]
            for name, column in TOWERS.items()
        }
        cells = {
            column: _mean(rows, metric, 2, scale) if "seed" in rows[0] else f"{scale * rows[0][metric]:.2f}"
            for column, rows in by_tower.items()
            if rows
        }
        lines.append((label, cells))
    return Table("Semantics of the encoder", tuple(TOWERS.values()), lines)


def segmentation_table(rows: list[Row], caption: str, method: str, name: str) -> Table:
    """Return cIoU, gIoU and precision at IoU 0.5 of each condition of `refer-nano` and of the baselines on a set."""
    metrics = ("ciou", "giou", "p50")
    lines = [
        (label, {metric: _mean(own, metric, 1, 100) for metric in metrics})
        for label, own in by_condition(rows, mask=method, set=name).items()
    ]
    lines += [
        (f"baseline: {row['baseline']}", {metric: f"{100 * row[metric]:.1f}" for metric in metrics})
        for row in filter_rows(rows, set=name)
        if "baseline" in row
    ]
    return Table(caption, metrics, lines)


def pvp_before_play_table(rows: list[Row]) -> Table:
    """Return the PVP error of the models of `games-nano` before cloning, on all pixels and on small objects."""
    lines = []
    for game in games_of(rows):
        own = filter_rows(rows, game=game)
        for label, suffix in (("", ""), (", small objects", "_small_objects")):
            cells = {e: _mean(filter_rows(own, encoder=e), f"pvp_mae{suffix}") for e in ENCODERS}
            for name in ("image_mean", "patch_mean"):
                key = f"{name}_mae{suffix}"
                cells |= {name.replace("_", " "): f"{row[key]:.1f}" for row in own if key in row}
            lines.append((f"{find_game(game).title}{label}", cells))
    return Table("PVP error of 255 before cloning", (*ENCODERS, "image mean", "patch mean"), lines)


def game_score_table(rows: list[Row], fraction: float) -> Table:
    """Return the scores of each condition of `games-nano` with a fraction of the demonstrations, and of random play."""
    conditions, lines = by_condition(rows, data_fraction=fraction), []
    _, reference = seed_score_matrix(conditions.get(CONDITIONS[REFERENCE], []))
    improvement = f"P(better than {CONDITIONS[REFERENCE]})"
    for label, own in conditions.items():
        games, scores = seed_score_matrix(own)
        if not len(scores):
            continue
        cells = {}
        for column, game in enumerate(games):
            middle, low, high = interquartile_mean([row["scores"] for row in filter_rows(own, game=game)])
            cells[find_game(game).title] = Mean.of(scores[:, column].tolist()).text(0)
            cells[f"{find_game(game).title}, IQM"] = f"{middle:.0f} [{low:.0f}, {high:.0f}]"
        if label != CONDITIONS[REFERENCE] and len(reference) > 1 and len(scores) > 1:
            probability, low, high = probability_of_improvement(scores, reference)
            cells[improvement] = f"{probability:.2f} [{low:.2f}, {high:.2f}]"
        lines.append((label, cells))
    random = filter_rows(rows, condition="random")
    if random:
        cells = {find_game(row["game"]).title: f"{np.mean(row['scores']):,.0f}" for row in random}
        lines.append(("random play", cells))
    titles = [find_game(game).title for game in games_of(rows)]
    columns = (*titles, *(f"{title}, IQM" for title in titles), improvement)
    return Table(f"Scores with {fraction:.0%} of the demonstrations", columns, lines)


def effect_table(rows: list[Row], fraction: float) -> Table:
    """Return the effect of PVP and of unfreezing in `games-nano`, paired by training seed."""
    games, lines = {name: find_game(name).title for name in games_of(rows)}, []
    for label, condition, other in EFFECTS:
        cells: dict[str, str] = {}
        for name, title in games.items():
            points, nats = paired_differences(rows, fraction, name, condition, other)
            cells |= {f"{title}, points": points.text(0)} if points else {}
            cells |= {f"{title}, nats": nats.text(3)} if nats else {}
        if cells:
            lines.append((label, cells))
    columns = tuple(f"{title}, {unit}" for unit in ("points", "nats") for title in games.values())
    return Table(f"Effects with {fraction:.0%} of the demonstrations", columns, lines)


def _games(line: Row) -> str:
    return f"{line['games']} ({line['unequal']})" if line["unequal"] else str(line["games"])


def _mean_and_interval(line: Row) -> str:
    return f"{line['mean']:,.0f} [{line['low']:,.0f}, {line['high']:,.0f}]"


def released_table(rows: list[Row]) -> Table:
    """Return the released policy's scores beside the published ones, a row for each game."""
    table = summarize(rows)
    random = {line["game"]: _mean_and_interval(line) for line in table if line["agent"] == "random"}
    policies = [line for line in table if line["agent"] != "random"]
    lines = []
    for name in dict.fromkeys(line["game"] for line in table):
        title, own = find_game(name).title, [line for line in policies if line["game"] == name]
        cells = {"random": random[name]} if name in random else {}
        for known in all_references(find_game(name)):
            agent = known.agent.partition(",")[0]  # without its number of frames
            cells |= {agent: f"{known.score:,.0f}"} if agent in (*PUBLISHED, "human") else {}
        for line in own:
            label = f"{title}: {line['agent']}" if len(own) > 1 else title
            lines.append((label, cells | {"policy": _mean_and_interval(line)}))
        lines += [] if own else [(title, cells)]
    return Table("Mean score", ("policy", *PUBLISHED, "random", "human"), lines)


def all_scores_table(rows: list[Row]) -> Table:
    """Return the scores of every agent, rows of `agents.score`; human-normalized: 0 random play, 1 human."""
    table, lines = summarize(rows), []
    normalized = {agent: found for agent, found in human_normalized_scores(table).items() if agent != "random"}
    for line in table:
        cells = {"mean": _mean_and_interval(line), "IQM": f"{line['iqm']:,.0f}", "games": _games(line)}
        if line["game"] in normalized.get(line["agent"], {}):
            cells["human-normalized"] = f"{normalized[line['agent']][line['game']]:.2f}"
        lines.append((f"{find_game(line['game']).title}: {line['agent']}", cells))
    for agent, found in normalized.items():
        if len(found) > 2:
            lines.append((f"median: {agent}", {"human-normalized": f"{np.median(list(found.values())):.2f}"}))
    return Table("All scores", ("mean", "IQM", "games", "human-normalized"), lines)


def reference_table() -> Table:
    """Return the published scores with their protocols and sources."""
    lines = [
        (
            f"{find_game(row.game).title}: {row.agent}",
            {"score": f"{row.score:,.0f}", "protocol": row.protocol, "source": row.source},
        )
        for row in REFERENCES
    ]
    return Table("Reference scores", ("score", "protocol", "source"), lines)


def benchmark_table(rows: list[Row]) -> Table:
    """Return the speed of every benchmark's candidate and baseline."""
    figures = ("candidate", "baseline", "ratio")
    lines = [
        (
            ", ".join(filter(None, (row["benchmark"], row.get("precision")))),
            {name: f"{row[name]:g}" for name in figures}
            | {"unit": row["unit"], "the baseline is": row["baseline_name"]}
            | {"model": row["model"], "device": row.get("device", "cpu")},
        )
        for row in rows
    ]
    return Table("Speed", (*figures, "unit", "the baseline is", "model", "device"), lines)


def table_markdown(table: Table) -> str:
    """Return a table as Markdown."""
    head = [f"**{table.caption}**", "", f"| | {' | '.join(table.columns)} |", "|---" * (len(table.columns) + 1) + "|"]
    body = [f"| {label} | {' | '.join(cells.get(c, '-') for c in table.columns)} |" for label, cells in table.rows]
    return "\n".join([*head, *body])
