"""The text table and the plot of `agents.score`; the report's tables are in `experiments/tables.py`."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from scipy.stats import trim_mean

from agents.registry import parse_agent_id
from agents.score_rows import Row, games_a_seed, group_rows
from common.files import atomic_file
from common.intervals import SeedScores, pooled_interval
from envs.games import find_game
from envs.reference_scores import all_references


def mean_interval(scores: SeedScores) -> tuple[float, float, float]:
    """Return (mean, low, high): the mean score of all games and its 95 % bootstrap interval, for every seed's scores.

    rliable resamples runs of tasks; here a run is an episode and a task is a seed.
    """
    return pooled_interval(scores, np.mean, repetitions=2000)


def agent_label(row: Row) -> str:
    """Return an agent's name for people: without folders, with how it decodes."""
    agent_type, path = parse_agent_id(row["agent"])
    agent = f"{agent_type}:{Path(path).name}" if path and agent_type != "api" else row["agent"]
    decode = f" {row['decode']}," if row.get("decode") else ""
    told = "" if row.get("temperature") is None else f"{decode} temperature {row['temperature']:g}"
    return agent + told + (f", {row['history']} frames, few-shot {row['few_shot']}" if "few_shot" in row else "")


def summarize(rows: list[Row]) -> list[dict[str, Any]]:
    """Return one line for each agent on each game, with the games of all seeds pooled; the best of a game first."""
    table = []
    for (game, agent), group in group_rows(rows, agent_label).items():
        mean, low, high = mean_interval([row["scores"] for row in group])
        scores = np.sort(np.concatenate([row["scores"] for row in group]))
        steps = [row.get("steps", 1) for row in group]
        invalid = sum(row["invalid"] * count for row, count in zip(group, steps, strict=True))
        table.append(
            {
                "game": game, "agent": agent, "mean": mean, "low": low, "high": high,
                "median": float(np.median(scores)), "iqm": float(trim_mean(scores, 0.25)),
                "min": float(scores[0]), "max": float(scores[-1]), "games": len(scores), "seeds": len(group),
                "invalid": invalid / sum(steps), "invalid_answers": round(invalid), "steps": sum(steps),
                "steps_per_second": float(np.mean([row["steps_per_second"] for row in group])),
                "note": group[0].get("note", ""), "unequal": games_a_seed(group), "usage": format_usage(group),
            }
        )  # fmt: skip
    return sorted(table, key=lambda line: (line["game"], -line["mean"]))


def format_table(result: dict[str, Any]) -> str:
    """Return the scores with their intervals, beside the published ones, as text."""
    lines = [f"protocol {result['protocol']['name']}, mean with 95 % bootstrap interval"]
    table = summarize(result["rows"])
    head = f"{'mean':>8}{'interval':>18}{'IQM':>8}{'median':>8}{'games':>7}{'steps/s':>9}"
    for name in dict.fromkeys(line["game"] for line in table):
        game = find_game(name)
        lines.append(f"\n{game.title:<34}{head}")
        lines += [_format_line(line) for line in table if line["game"] == name]
        lines += [f"  {r.agent:<32}{r.score:>8,.0f}  {r.protocol}; {r.source}" for r in all_references(game)]
    return "\n".join([*lines, *format_human_normalized(table)])


def _format_line(line: dict[str, Any]) -> str:
    bounds = f"[{line['low']:,.0f}, {line['high']:,.0f}]"
    figures = f"{line['mean']:>8,.0f}{bounds:>18}{line['iqm']:>8,.0f}{line['median']:>8,.0f}"
    invalid = ""
    if line["invalid"]:
        invalid = f"{line['invalid_answers']:,} of {line['steps']:,} answers invalid ({line['invalid']:.1%})"
    notes = "  ".join(note for note in (line["note"], line["unequal"], invalid, line["usage"]) if note)
    return f"  {line['agent']:<32}{figures}{line['games']:>7}{line['steps_per_second']:>9.0f}  {notes}".rstrip()


def format_usage(rows: list[Row]) -> str:
    """Return what an endpoint was asked for some rows, in tokens and dollars where it counts them; else nothing."""
    asked = [row for row in rows if "requests" in row]
    if not asked:
        return ""
    total = {name: sum(row[name] for row in asked) for name in ("requests", "prompt_tokens", "completion_tokens")}
    told = f"{total['requests']:,} requests"
    if sum(row["answers_without_token_counts"] for row in asked):
        return f"{told}, tokens not counted"
    told += f", {total['prompt_tokens']:,} + {total['completion_tokens']:,} tokens"
    costs = [row["cost"] for row in asked]
    return told if None in costs else f"{told}, ${sum(costs):,.2f}"


def human_normalized_scores(table: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the human-normalized score of each agent on each game that has a human and a random reference score."""
    found: dict[str, dict[str, float]] = {line["agent"]: {} for line in table}
    for line in table:
        known = {row.agent: row.score for row in all_references(find_game(line["game"]))}
        if "random" in known and "human" in known:
            normalized = (line["mean"] - known["random"]) / (known["human"] - known["random"])
            found[line["agent"]][line["game"]] = normalized
    return found


def format_human_normalized(table: list[dict[str, Any]]) -> list[str]:
    """Return a line with the median over games for each agent that has at least two, under a heading."""
    lines = []
    for agent, scores in human_normalized_scores(table).items():
        if len(scores) > 1:
            each = ", ".join(f"{game} {score:.2f}" for game, score in scores.items())
            lines.append(f"  {agent:<32}{np.median(list(scores.values())):>8.2f}  {each}")
    return ["\nhuman-normalized score, median over games (0: random, 1: human)", *lines] if lines else []


def plot(result: dict[str, Any], file: Path) -> None:
    """Draw each game's mean scores with their intervals, the published ones as lines."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    table = summarize(result["rows"])
    games = list(dict.fromkeys(line["game"] for line in table))
    most = max(sum(line["game"] == game for line in table) for game in games)
    size = (5.5 * len(games), max(3.8, 2.0 + 0.25 * most))
    figure, axes = pyplot.subplots(1, len(games), figsize=size, squeeze=False, layout="constrained")
    for axis, game in zip(axes[0], games, strict=True):
        lines = [line for line in table if line["game"] == game][::-1]
        means = [line["mean"] for line in lines]
        errors = [[line["mean"] - line["low"] for line in lines], [line["high"] - line["mean"] for line in lines]]
        axis.barh([line["agent"] for line in lines], means, xerr=errors, color="#4c72b0", capsize=3)
        for known in all_references(find_game(game)):
            axis.axvline(known.score, color="#999999", linewidth=0.8, linestyle=":")
            axis.text(known.score, len(lines) - 0.45, known.agent.split(",")[0], rotation=60, fontsize=7)
        axis.set_title(find_game(game).title, pad=36)
        axis.set_xlabel("score of a whole game")
    with atomic_file(file) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)
