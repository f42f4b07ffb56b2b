"""What the committed results say: means over training seeds with intervals, ready for a table or a page.

An interval over training seeds is Student's, of 95 %, over the seeds' figures; that of a difference is over the
differences of arms of the same seed, which share their data. With one seed there is none, and it is shown as such.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from common.intervals import bootstrap_interval, bootstrap_intervals

Row = dict[str, Any]
REPETITIONS = 1000  # of a bootstrap


@dataclass(frozen=True)
class Mean:
    """A mean over n seeds; half: of its 95 % interval's width, None where there is but one seed."""

    value: float
    half: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Return the mean of one value or more."""
        count = len(values)
        if count < 2:
            return cls(float(values[0]), None, count)
        wide = float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / count**0.5)
        return cls(float(np.mean(values)), wide, count)

    def text(self, digits: int = 1, scale: float = 1.0) -> str:
        """Return `19.9 [18.1, 21.7]`, or `19.9 (one seed)`."""
        value = f"{scale * self.value:.{digits}f}"
        if self.half is None:
            return f"{value} (one seed)"
        low, high = scale * (self.value - self.half), scale * (self.value + self.half)
        return f"{value} [{low:.{digits}f}, {high:.{digits}f}]"


@dataclass(frozen=True)
class Line:
    """A line of a table: what it is about, and its cells as text by column."""

    about: str
    cells: dict[str, str]


def by_seed(rows: Iterable[Row], figure: str) -> dict[int, float]:
    """Return a figure of each training seed; rows without it are left out."""
    return {row["seed"]: row[figure] for row in rows if row.get(figure) is not None}


def mean_over_seeds(rows: Iterable[Row], figure: str) -> Mean | None:
    """Return a figure's mean over training seeds, or None where no row has it."""
    values = list(by_seed(rows, figure).values())
    return Mean.of(values) if values else None


def difference(rows: Iterable[Row], others: Iterable[Row], figure: str, share: bool = False) -> Mean | None:
    """Return the mean over shared seeds of what the first arm has more than the second, or how many times as much."""
    one, other = by_seed(rows, figure), by_seed(others, figure)
    shared = sorted(one.keys() & other.keys())
    values = [one[seed] / other[seed] if share else one[seed] - other[seed] for seed in shared]
    return Mean.of(values) if values else None


def filter_rows(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Return the rows that have all the values."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


PVP_SETS = (
    ("open", "held-out games"), ("open", "photographs"), ("open", "synthetic"), ("familiar", "held-out episodes"),
)  # fmt: skip
FLOORS = ("training mean", "image mean", "patch mean", "blurred")


def pvp_lines(rows: list[Row], figure: str = "mae") -> list[Line]:
    """Return a line for each set of `pvp-nano`: both encoders, their difference, and the floors."""
    lines = []
    for regime, name in PVP_SETS:
        own = filter_rows(rows, regime=regime, set=name)
        arms = {arm: filter_rows(own, encoder=arm, sample=False) for arm in ("adapted", "frozen")}
        cells = {arm: _text(mean_over_seeds(found, figure)) for arm, found in arms.items()}
        cells["adapted / frozen"] = _text(difference(arms["adapted"], arms["frozen"], figure, share=True), 2)
        for floor in FLOORS:
            found = [row[figure] for row in own if row.get("floor") == floor and row.get(figure) is not None]
            cells[floor] = f"{found[0]:.1f}" if found else "-"
        lines.append(Line(f"{name} ({regime})", cells))
    return lines


MEANINGS = (
    ("top5", "captions found, top-5 of 256 (%)", 100.0), ("count_within", "objects within a game, R squared", 1.0),
    ("colour", "colour of each token's patch, error of 255", 1.0), ("place", "place of each token, R squared", 1.0),
)  # fmt: skip


def meaning_lines(rows: list[Row]) -> list[Line]:
    """Return a line for each measure of what the encoder knows: at the start, and adapted in either regime."""
    lines = []
    for figure, about, scale in MEANINGS:
        start = [row for row in filter_rows(rows, arm="start", encoder="clip") if row.get(figure) is not None]
        cells = {"semantic encoder": " and ".join(f"{scale * row[figure]:.2f}" for row in start) or "-"}
        for regime in ("open", "familiar"):
            own = [
                row
                for row in filter_rows(rows, regime=regime, encoder="adapted")
                if row["set"] in ("meaning", "detail")
            ]
            cells[f"adapted, {regime}"] = _text(mean_over_seeds(own, figure), 2, scale)
        lines.append(Line(about, cells))
    return lines


def _text(mean: Mean | None, digits: int = 1, scale: float = 1.0) -> str:
    return mean.text(digits, scale) if mean else "-"


def curves(rows: list[Row], regime: str, name: str, figure: str = "mae") -> dict[str, list[tuple[int, float]]]:
    """Return for each encoder the mean over seeds of a figure on samples, along training: pairs of step and value."""
    found: dict[str, list[tuple[int, float]]] = {}
    for arm in ("adapted", "frozen"):
        steps: dict[int, list[float]] = defaultdict(list)
        for row in filter_rows(rows, regime=regime, set=name, encoder=arm, sample=True):
            steps[row["step"]].append(row[figure])
        found[arm] = [(step, float(np.mean(values))) for step, values in sorted(steps.items())]
    return found


ARM_ORDER = (
    ("adapted", "pvp"), ("adapted", "none"), ("adapted", "shuffled"), ("frozen", "pvp"), ("frozen", "none"),
)  # fmt: skip


PVP_WORDS = {"none": "no PVP", "sight": "pvp, a new decoder"}


def refer_lines(rows: list[Row], mask: str, name: str) -> list[Line]:
    """Return a line for each arm of `refer-nano` with a way to a mask on a set, and one for each floor."""
    lines = []
    for encoder, pvp in (*ARM_ORDER, ("adapted", "sight")):
        own = filter_rows(rows, encoder=encoder, pvp=pvp, mask=mask, set=name)
        if own:
            cells = {figure: _text(mean_over_seeds(own, figure), 1, 100) for figure in ("ciou", "giou", "p50")}
            lines.append(Line(f"{encoder}, {PVP_WORDS.get(pvp, pvp)}", cells))
    for row in rows:
        if "floor" in row and row["set"] == name:
            cells = {figure: f"{100 * row[figure]:.1f}" for figure in ("ciou", "giou", "p50")}
            lines.append(Line(f"floor: {row['floor']}", cells))
    return lines


def arm_scores(rows: list[Row], encoder: str, pvp: str, share: float) -> tuple[list[str], np.ndarray]:
    """Return the games and float[seeds, games]: the mean score of each of an arm's policies in each."""
    own = filter_rows(rows, encoder=encoder, pvp=pvp, share=share)
    games = sorted({row["game"] for row in own})
    means = {(row["seed"], row["game"]): float(np.mean(row["scores"])) for row in own}
    seeds = [seed for seed in sorted({row["seed"] for row in own}) if all((seed, game) in means for game in games)]
    return games, np.array([[means[seed, game] for game in games] for seed in seeds]).reshape(len(seeds), len(games))


def interquartile_mean(seeds: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Return (iqm, low, high) of the scores of games of each seed: the mean of the middle half, and the 95 % bootstrap
    interval over games, stratified by seed, by rliable (Agarwal et al. 2021).
    """
    from rliable import metrics

    matrix = np.array(list(zip(*seeds, strict=False)))  # [games, seeds]
    return bootstrap_interval(matrix, metrics.aggregate_iqm, REPETITIONS)


def probability_of_improvement(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Return (chance, low, high): that a policy of the first arm, float[seeds, games], beats one of the second.

    rliable's probability of improvement and its 95 % stratified bootstrap interval (Agarwal et al. 2021).
    """
    from rliable import metrics

    return bootstrap_interval((one, other), metrics.probability_of_improvement, REPETITIONS)


def arm_games(rows: list[Row], game: str, share: float) -> dict[str, list[list[float]]]:
    """Return for each arm of `games-nano` the scores of its games of a kind, by training seed."""
    arms = {
        f"{encoder}, {'no PVP' if pvp == 'none' else pvp}": filter_rows(
            rows, game=game, share=share, encoder=encoder, pvp=pvp
        )
        for encoder, pvp in ARM_ORDER
    }
    return {name: [row["scores"] for row in found] for name, found in arms.items() if found}


def agent_games(rows: list[Row], game: str) -> dict[str, list[list[float]]]:
    """Return for each agent of a table of scores, at each temperature, the scores of its games of a kind, by seed."""
    found: dict[str, list[list[float]]] = {}
    for row in filter_rows(rows, game=game):
        how = "" if row.get("temperature") is None else f", temperature {row['temperature']:g}"
        found.setdefault(f"{row['agent'].partition(':')[0]}{how}", []).append(row["scores"])
    return found


@dataclass(frozen=True)
class Profile:
    """The share of games that end above each score, float[T] each; low and high: its 95 % interval."""

    scores: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray


def performance_profiles(games: dict[str, list[list[float]]], points: int = 60) -> dict[str, Profile]:
    """Return the performance profile of each agent in one game (Agarwal et al. 2021, sec. 4.2), by rliable.

    games: for each agent the scores of whole games by seed; intervals are over games, stratified by seed. All profiles
    share their scores, from 0 to the best game.
    """
    from rliable import library

    matrices = {name: np.array(list(zip(*seeds, strict=False))) for name, seeds in games.items()}  # [games, seeds]
    taus = np.linspace(0, max(float(found.max()) for found in matrices.values()), points)
    shares, bounds = bootstrap_intervals(matrices, lambda found: library.score_distributions(found, taus), 500)
    return {name: Profile(taus, shares[name], *bounds[name]) for name in matrices}


def game_lines(rows: list[Row], share: float) -> list[Line]:
    """Return a line for each arm of `games-nano` with a share of the demonstrations, and one for random play."""
    lines, (_, base) = [], arm_scores(rows, "adapted", "none", share)
    for encoder, pvp in ARM_ORDER:
        games, scores = arm_scores(rows, encoder, pvp, share)
        if not len(scores):
            continue
        cells = {game: Mean.of(scores[:, column].tolist()).text(0) for column, game in enumerate(games)}
        for game in games:
            own = filter_rows(rows, encoder=encoder, pvp=pvp, share=share, game=game)
            middle, low, high = interquartile_mean([row["scores"] for row in own])
            cells[f"{game}, IQM"] = f"{middle:.0f} [{low:.0f}, {high:.0f}]"
        if (encoder, pvp) != ("adapted", "none") and len(base) > 1 and len(scores) > 1:
            chance, low, high = probability_of_improvement(scores, base)
            cells["better than adapted, no PVP"] = f"{chance:.2f} [{low:.2f}, {high:.2f}]"
        lines.append(Line(f"{encoder}, {'no PVP' if pvp == 'none' else pvp}", cells))
    random = {row["game"]: f"{np.mean(row['scores']):,.0f}" for row in filter_rows(rows, arm="random")}
    return [*lines, Line("random play", random)] if random else lines


GAINS = (
    ("PVP, encoder adapted", ("adapted", "pvp"), ("adapted", "none")),
    ("its colours, beside the control's", ("adapted", "pvp"), ("adapted", "shuffled")),
    ("PVP, encoder frozen", ("frozen", "pvp"), ("frozen", "none")),
    ("unfreezing, with PVP", ("adapted", "pvp"), ("frozen", "pvp")),
    ("unfreezing, without PVP", ("adapted", "none"), ("frozen", "none")),
)  # fmt: skip


def paired_differences(
    rows: list[Row], share: float, game: str, arm: tuple[str, str], other: tuple[str, str]
) -> tuple[Mean | None, Mean | None]:
    """Return what one arm of `games-nano` has more than another in a game: points of the mean score, and nats less of
    cross-entropy with its teacher; None where no seed has both.
    """
    own, others = (
        [
            {**row, "points": float(np.mean(row["scores"])), "nats": -row["loss"] if "loss" in row else None}
            for row in filter_rows(rows, share=share, game=game, encoder=encoder, pvp=pvp)
        ]
        for encoder, pvp in (arm, other)
    )
    return difference(own, others, "points"), difference(own, others, "nats")


def gain_lines(rows: list[Row], share: float) -> list[Line]:
    """Return a line for each thing that `games-nano` asks about: what it adds in every game, pairs of the same seed."""
    lines = []
    for about, arm, other in GAINS:
        cells: dict[str, str] = {}
        for game in sorted({row["game"] for row in rows}):
            points, nats = paired_differences(rows, share, game, arm, other)
            cells |= {f"{game}, points": points.text(0)} if points else {}
            cells |= {f"{game}, nats": nats.text(3)} if nats else {}
        if cells:
            lines.append(Line(about, cells))
    return lines


READERS = ("adapted", "frozen")


def reading_lines(rows: list[Row]) -> list[Line]:
    """Return two lines for each game of `games-nano`, of all places and of small objects: how far off the answers of
    models after PVP and before play are, of 255, and what answers would be that do not read.
    """
    lines = []
    for game in sorted({row["game"] for row in rows}):
        own = filter_rows(rows, game=game)
        for about, part in ((game, ""), (f"{game}, small objects", "_objects")):
            cells = {name: _text(mean_over_seeds(filter_rows(own, encoder=name), f"read{part}")) for name in READERS}
            for floor in ("image mean", "patch mean"):
                found = [row[name] for row in own if (name := floor.replace(" ", "_") + part) in row]
                cells[floor] = f"{found[0]:.1f}" if found else "-"
            lines.append(Line(about, cells))
    return lines
