"""What a condition of play costs: differences to plain play on the same seeds and games, with paired intervals."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from agents.score_rows import SETTINGS, Row, distinct_labels, distinct_rows, settings_of
from agents.score_table import agent_label, mean_interval
from envs.games import find_game
from envs.play_conditions import CONDITIONS, UNCHANGED

AGENT_SETTINGS = tuple(name for name in SETTINGS if name != "condition")
Interval = tuple[float, float, float]  # value, low, high


@dataclass(frozen=True)
class ConditionEffect:
    """An agent's scores in a game under a condition, beside those of plain play.

    Args:
        mean: of all games, with its interval.
        games: their number.
        same_games: whether all of several games end with one score, as without any luck; intervals then mean little.
        difference: the mean of (score under the condition - score of plain play) over games of the same seed and
            number, with its interval; None without such pairs.
        share_kept: the mean score under the condition over that of plain play in these pairs; None where that is not
            above 0.
    """

    game: str
    agent: str
    condition: str
    mean: Interval
    games: int
    same_games: bool
    difference: Interval | None
    share_kept: float | None


def condition_effects(rows: Iterable[Row]) -> list[ConditionEffect]:
    """Return the effects of all conditions by game and agent, plain play first; empty without changed play."""
    rows = distinct_rows(rows)
    if all(_condition(row) == UNCHANGED.name for row in rows):
        return []
    labels = distinct_labels(rows, agent_label, AGENT_SETTINGS)
    groups: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        agent = labels[settings_of(row, AGENT_SETTINGS)]
        groups.setdefault((row["game"], agent), {}).setdefault(_condition(row), []).append(row)
    return [
        _effect(game, agent, condition, group[condition], group.get(UNCHANGED.name, []))
        for (game, agent), group in groups.items()
        for condition in sorted(group, key=_place)
    ]


def _condition(row: Row) -> str:
    return str(row.get("condition", UNCHANGED.name))


def _place(condition: str) -> int:
    return [*CONDITIONS, condition].index(condition)


def _effect(game: str, agent: str, condition: str, changed: list[Row], plain: list[Row]) -> ConditionEffect:
    scores = [row["scores"] for row in changed]
    every = np.concatenate(scores)
    difference, share_kept = None, None
    if condition != UNCHANGED.name and (pairs := paired_scores(changed, plain)):
        difference = mean_interval([(one - other).tolist() for one, other in pairs])
        kept, whole = (float(np.concatenate(side).mean()) for side in zip(*pairs, strict=True))
        share_kept = kept / whole if whole > 0 else None
    same_games = len(every) > 1 and len(set(every.tolist())) == 1
    mean = mean_interval(scores)
    return ConditionEffect(game, agent, condition, mean, len(every), same_games, difference, share_kept)


def paired_scores(changed: Iterable[Row], plain: Iterable[Row]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return, for every seed that both have, the scores of the games of the same number: changed, plain."""
    by_seed = {row.get("seed"): row["scores"] for row in plain}
    pairs = []
    for row in changed:
        if row.get("seed") in by_seed:
            both = list(zip(row["scores"], by_seed[row.get("seed")], strict=False))  # as many as the shorter row has
            one, other = np.array(both, dtype=float).T
            pairs.append((one, other))
    return pairs


def format_robustness(rows: Iterable[Row]) -> list[str]:
    """Return the effects of conditions as lines of text; none without changed play."""
    effects = condition_effects(rows)
    if not effects:
        return []
    lines = [
        "\nconditions of play: difference to unchanged on the same seeds and games, paired 95 % bootstrap interval"
    ]
    for game in dict.fromkeys(effect.game for effect in effects):
        head = f"{'mean':>8}{'difference':>12}{'interval':>20}{'kept':>7}{'games':>7}"
        lines.append(f"\n{find_game(game).title:<54}{head}")
        lines += [_format_line(effect) for effect in effects if effect.game == game]
    return lines


def _format_line(effect: ConditionEffect) -> str:
    difference, bounds = "-", "-"
    if effect.difference:
        value, low, high = effect.difference
        difference, bounds = f"{value:+,.0f}", f"[{low:+,.0f}, {high:+,.0f}]"
    kept = "-" if effect.share_kept is None else f"{effect.share_kept:.0%}"
    note = "  every game the same" if effect.same_games else ""
    figures = f"{effect.mean[0]:>8,.0f}{difference:>12}{bounds:>20}{kept:>7}{effect.games:>7}"
    return f"  {effect.agent + ': ' + effect.condition:<52}{figures}{note}"
