"""Stratified bootstrap intervals by rliable (Agarwal et al. 2021); the same scores always give the same interval."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

ScoreMatrices = np.ndarray | tuple[np.ndarray, ...]
SeedScores = Sequence[Sequence[float]]  # the scores of whole games by seed


def score_matrices(scores: SeedScores) -> ScoreMatrices:
    """Return the scores of all games, to be resampled within each seed.

    They are float[games, seeds], or float[games, 1] for each seed where seeds have unequal numbers of games.
    """
    if len({len(games) for games in scores}) == 1:
        return np.array(list(zip(*scores, strict=True)))
    return tuple(np.array(games)[:, None] for games in scores)


def pool(*matrices: np.ndarray) -> np.ndarray:
    """Return the scores of `score_matrices` as one array."""
    return matrices[0] if len(matrices) == 1 else np.concatenate([matrix.ravel() for matrix in matrices])


def pooled_interval(
    scores: SeedScores, statistic: Callable[[np.ndarray], float], repetitions: int
) -> tuple[float, float, float]:
    """Return (value, low, high) of a statistic of all games' scores, resampled within each seed."""
    return bootstrap_interval(score_matrices(scores), lambda *matrices: statistic(pool(*matrices)), repetitions)


def bootstrap_intervals(
    scores: Mapping[str, ScoreMatrices], statistic: Callable[..., np.ndarray], repetitions: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return a statistic of every agent, float[K], and its 95 % interval (low, high), float[2, K].

    Args:
        scores: for each agent float[runs, tasks], resampled over runs; or several such matrices, each resampled alone.
        statistic: maps an agent's matrices to float[K].
        repetitions: the number of bootstrap samples.
    """
    from rliable.library import get_interval_estimates  # slow to import

    state = np.random.get_state()
    np.random.seed(0)  # rliable 1.2 draws from numpy's global generator whatever random_state it is given
    try:
        return get_interval_estimates(dict(scores), statistic, reps=repetitions)
    finally:
        np.random.set_state(state)


def bootstrap_interval(
    scores: ScoreMatrices, statistic: Callable[..., float], repetitions: int
) -> tuple[float, float, float]:
    """Return (value, low, high) of a scalar statistic; see `bootstrap_intervals`."""
    points, bounds = bootstrap_intervals({"": scores}, lambda *found: np.array([statistic(*found)]), repetitions)
    low, high = bounds[""][:, 0]
    return float(points[""][0]), float(low), float(high)
