"""Statistics of result rows: means over training seeds and rliable's aggregates, each with its 95 % interval.

An interval over training seeds is Student's t; that of a difference is over the differences of conditions with the same
seed, which share their data. One seed gives no interval, and its text says so.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from common.errors import UserError
from common.intervals import SeedScores, bootstrap_interval, bootstrap_intervals, pool, pooled_interval, score_matrices

Row = dict[str, Any]
REPETITIONS, PROFILE_REPETITIONS = 1000, 500  # bootstrap samples


@dataclass(frozen=True)
class Mean:
    """A mean over n seeds; half_width: of its 95 % interval, None for a single seed."""

    value: float
    half_width: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Return the mean of one value or more."""
        count = len(values)
        if count < 2:
            return cls(float(values[0]), None, count)
        half_width = float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / count**0.5)
        return cls(float(np.mean(values)), half_width, count)

    @property
    def sign(self) -> int:
        """1 or -1 if the whole interval is on that side of 0, otherwise 0."""
        return 0 if self.half_width is None or abs(self.value) <= self.half_width else int(np.sign(self.value))

    def text(self, digits: int = 1, scale: float = 1.0, sign: str = "") -> str:
        """Return `19.9 [18.1, 21.7]`, or `19.9 (one seed)`; sign "+" marks positive values."""
        value = f"{scale * self.value:{sign}.{digits}f}"
        if self.half_width is None:
            return f"{value} (one seed)"
        low, high = scale * (self.value - self.half_width), scale * (self.value + self.half_width)
        return f"{value} [{low:.{digits}f}, {high:.{digits}f}]"


def filter_rows(rows: Iterable[Row], **values: Any) -> list[Row]:
    """Return the rows that have all the values."""
    return [row for row in rows if all(row.get(name) == value for name, value in values.items())]


def games_of(rows: Iterable[Row]) -> list[str]:
    """Return the games of rows, each once, sorted."""
    return sorted({row["game"] for row in rows})


def by_seed(rows: Iterable[Row], metric: str) -> dict[int, float]:
    """Return a metric by training seed, without rows that lack it; `UserError` if two rows of a seed differ in it."""
    found: dict[int, float] = {}
    for row in rows:
        if (value := row.get(metric)) is not None and found.setdefault(row["seed"], value) != value:
            raise UserError(
                f"expected one row of each condition and seed, got two of seed {row['seed']} with {metric} "
                f"{found[row['seed']]:g} and {value:g}"
            )
    return found


def mean_over_seeds(rows: Iterable[Row], metric: str) -> Mean | None:
    """Return a metric's mean over training seeds, or None if no row has it."""
    values = list(by_seed(rows, metric).values())
    return Mean.of(values) if values else None


def difference(rows: Iterable[Row], others: Iterable[Row], metric: str, ratio: bool = False) -> Mean | None:
    """Return the mean over shared seeds of one condition minus another, or of their ratio, or None without any."""
    one, other = by_seed(rows, metric), by_seed(others, metric)
    shared = sorted(one.keys() & other.keys())
    values = [one[seed] / other[seed] if ratio else one[seed] - other[seed] for seed in shared]
    return Mean.of(values) if values else None


def paired_differences(
    rows: list[Row], fraction: float, game: str, condition: tuple[str, str], other: tuple[str, str]
) -> tuple[Mean | None, Mean | None]:
    """Return one condition of `games-nano` minus another in a game, each None without a shared seed.

    The first is in points of the mean score, the second in nats of the expert's log-likelihood.
    """
    one, two = (
        [
            {**row, "points": float(np.mean(row["scores"])), "nats": -row["heldout_nll"]}
            for row in filter_rows(rows, data_fraction=fraction, game=game, encoder=encoder, pvp=pvp)
        ]
        for encoder, pvp in (condition, other)
    )
    return difference(one, two, "points"), difference(one, two, "nats")


def seed_score_matrix(rows: list[Row]) -> tuple[list[str], np.ndarray]:
    """Return the games and float[seeds, games]: the mean score of each policy of a condition in each game."""
    games = games_of(rows)
    means: dict[tuple[int, str], float] = {}
    for game in games:
        own = [{"seed": row["seed"], "score": float(np.mean(row["scores"]))} for row in filter_rows(rows, game=game)]
        means |= {(seed, game): mean for seed, mean in by_seed(own, "score").items()}
    seeds = [seed for seed in sorted({row["seed"] for row in rows}) if all((seed, game) in means for game in games)]
    return games, np.array([[means[seed, game] for game in games] for seed in seeds]).reshape(len(seeds), len(games))


def interquartile_mean(scores: SeedScores) -> tuple[float, float, float]:
    """Return (iqm, low, high): the mean of the middle half of all games' scores and its 95 % interval.

    rliable's bootstrap over games, stratified by seed (Agarwal et al. 2021).
    """
    from rliable import metrics

    return pooled_interval(scores, metrics.aggregate_iqm, REPETITIONS)


def probability_of_improvement(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Return (probability, low, high) that a policy of one condition scores higher than one of another.

    Both are float[seeds, games]; rliable's 95 % stratified bootstrap interval (Agarwal et al. 2021).
    """
    from rliable import metrics

    return bootstrap_interval((one, other), metrics.probability_of_improvement, REPETITIONS)


def performance_profiles(
    agents: Mapping[str, SeedScores], points: int = 60
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the performance profiles of agents in one game (Agarwal et al. 2021, sec. 4.2), by rliable.

    These are scores float[T], from 0 or less to the best game's, and for each agent the fraction of games that score
    above each of them, float[T], and its 95 % interval (low, high), float[2, T], over games, stratified by seed.
    """
    from rliable import library

    matrices = {name: score_matrices(scores) for name, scores in agents.items()}
    every = np.concatenate([games for scores in agents.values() for games in scores])
    taus = np.linspace(min(0.0, float(every.min())), float(every.max()), points)
    fractions, bounds = bootstrap_intervals(
        matrices, lambda *scores: library.score_distributions(pool(*scores), taus), PROFILE_REPETITIONS
    )
    return taus, fractions, bounds
