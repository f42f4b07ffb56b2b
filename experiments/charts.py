"""Charts of the report as SVG: effects beside the paper's, error curves along training, performance profiles."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.intervals import SeedScores
from experiments.findings import Effect
from experiments.statistics import Row, filter_rows, performance_profiles

COLORS = {"adapted": "#c2620e", "frozen": "#4c72b0"}
WIDTH, LABELS, VALUES, LINE = 360, 128, 112, 15  # pixels: a chart, its columns of labels and of values, and its lines


@dataclass(frozen=True)
class Chart:
    """An SVG and its caption."""

    svg: str
    caption: str


def effect_chart(effects: list[Effect], axis: str) -> str:
    """Return an SVG of effects with their intervals around a line at zero; the paper's are diamonds."""
    edges = [0.0] + [e.value + side * e.half_width for e in effects if e.value is not None for side in (-1, 1)]
    left, right = LABELS + 6, WIDTH - VALUES - 6
    low, high = min(edges), max(edges)
    if low == high:
        low, high = -1.0, 1.0

    def x(value: float) -> float:
        return round(left + (right - left) * (value - low) / (high - low), 1)

    bottom = LINE * len(effects) + 2
    parts = [f'<line x1="{x(0)}" x2="{x(0)}" y1="0" y2="{bottom}" class="zero"/>']
    for tick in MaxNLocator(3, steps=[1, 2, 5, 10]).tick_values(low, high):
        if low <= tick <= high:
            parts.append(f'<text x="{x(tick)}" y="{bottom + 11}" class="tick" text-anchor="middle">{tick:g}</text>')
    for number, effect in enumerate(effects):
        parts += _effect_marks(effect, LINE * number + LINE / 2, x)
    below = bottom + (11 if len(axis) < 20 else 24)  # a short label fits beside the ticks
    parts.append(f'<text x="0" y="{below}" class="tick">{escape(axis)}</text>')
    label = escape("; ".join(f"{effect.label}: {effect.text}" for effect in effects), quote=True)
    return (
        f'<svg viewBox="0 0 {WIDTH} {below + 4}" class="effects" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )


def _effect_marks(effect: Effect, y: float, x: Callable[[float], float]) -> list[str]:
    kind = "paper" if effect.from_paper else "ours"
    marks = [
        f'<text x="0" y="{y + 4}">{escape(effect.label)}</text>',
        f'<text x="{WIDTH}" y="{y + 4}" text-anchor="end" class="{kind}">{escape(effect.text)}</text>',
    ]
    if effect.value is not None and effect.from_paper:
        marks.append(f'<path d="M{x(effect.value) - 5} {y}l5 -5l5 5l-5 5z" class="paper"/>')
    elif effect.value is not None:
        left, right = x(effect.value - effect.half_width), x(effect.value + effect.half_width)
        marks.append(f'<line x1="{left}" x2="{right}" y1="{y}" y2="{y}" class="ours"/>')
        marks.append(f'<circle cx="{x(effect.value)}" cy="{y}" r="3.5" class="ours"/>')
    return marks


def curve_chart(rows: list[Row], regime: str, name: str) -> Chart:
    """Return the PVP error on a set along the training of both encoders, and the image mean's."""
    figure, axis = _figure("step", "error of 255")
    for encoder, color in COLORS.items():
        own = filter_rows(rows, regime=regime, set=name, encoder=encoder, sample=True)
        steps = sorted({row["step"] for row in own})
        if steps:
            means = [np.mean([row["mae"] for row in filter_rows(own, step=step)]) for step in steps]
            axis.plot(steps, means, marker="o", markersize=3, label=encoder, color=color)
    for row in filter_rows(rows, regime=regime, set=name, baseline="image mean"):
        axis.axhline(row["mae"], color="#888888", linewidth=0.9, linestyle=":", label="image mean")
    axis.set_ylim(bottom=0)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)
    return Chart(_svg(figure), f"{name} ({regime}): error on a sample of pixels along training")


def profile_chart(agents: Mapping[str, SeedScores], title: str) -> Chart:
    """Return each agent's fraction of games above a score; see `statistics.performance_profiles`."""
    figure, axis = _figure("score", "fraction of games above it")
    scores, fractions, bounds = performance_profiles(agents)
    for name in agents:
        (line,) = axis.plot(scores, fractions[name], label=name)
        axis.fill_between(scores, *bounds[name], color=line.get_color(), alpha=0.2, linewidth=0)
    axis.set_ylim(0, 1)
    axis.legend(fontsize=7)
    return Chart(_svg(figure), f"{title}: performance profiles (Agarwal et al. 2021), 95 % intervals shaded")


def _figure(x_label: str, y_label: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(4.4, 2.8), layout="constrained")
    axis = figure.subplots()
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    return figure, axis


def _svg(figure: Figure) -> str:
    svg = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "report"}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return svg.getvalue()[svg.getvalue().index("<svg") :]
