"""The tables of scores under changed conditions of play, of `agents.score --conditions`."""

from agents.robustness import ConditionEffect, condition_effects
from envs.games import find_game
from experiments.statistics import Row
from experiments.tables import Table

COLUMNS = ("mean", "difference to unchanged", "share kept", "games")


def robustness_tables(rows: list[Row]) -> list[Table]:
    """Return a table for each game: every agent under every condition, the differences with their paired intervals."""
    effects = condition_effects(rows)
    return [
        Table(find_game(game).title, COLUMNS, [_line(effect) for effect in effects if effect.game == game])
        for game in dict.fromkeys(effect.game for effect in effects)
    ]


def _line(effect: ConditionEffect) -> tuple[str, dict[str, str]]:
    mean, low, high = effect.mean
    games = f"{effect.games}, all with one score" if effect.same_games else str(effect.games)
    cells = {"mean": f"{mean:,.0f} [{low:,.0f}, {high:,.0f}]", "games": games}
    if effect.difference:
        value, low, high = effect.difference
        cells["difference to unchanged"] = f"{value:+,.0f} [{low:+,.0f}, {high:+,.0f}]"
    if effect.share_kept is not None:
        cells["share kept"] = f"{effect.share_kept:.0%}"
    return f"{effect.agent}: {effect.condition}", cells
