"""Who teaches each game, and the games that teachers play to be learnt from, recorded where they are not there yet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agents import record
from agents.registry import parse_agent_id
from common.errors import UserError
from envs.games import find_game
from envs.reference_scores import all_references

DEFAULT_EXPERTS = {  # and the planner for every other game
    "Carnival": "carnival-expert",
    "MsPacman": "mspacman-expert",
    "Pong": "paddle-expert",
    "Breakout": "paddle-expert",
}


def default_expert(game: str) -> str:
    """Return who teaches a game where nobody else is named."""
    return DEFAULT_EXPERTS.get(game, "planner")


def expert_normalized_score(scores: Mapping[str, Sequence[float]], teachers: Mapping[str, float]) -> float:
    """Return what scores are of teachers', as a mean over games: 1 as good, 0 as random play is known to be.

    Args:
        scores: of whole games, by the game's name.
        teachers: the mean score of the best player among what was learnt from, by the game's name.
    """
    shares = []
    for game, teacher in teachers.items():
        known = {reference.agent: reference.score for reference in all_references(find_game(game))}
        floor = known.get("random", 0.0)
        shares.append((np.mean(scores[game]) - floor) / max(teacher - floor, 1.0))
    return float(np.mean(shares))


@dataclass(kw_only=True)
class DemonstrationsConfig:
    """Games that teachers play to be learnt from."""

    games: tuple[str, ...] = ()
    """Games to clone: what their teachers have not played yet is recorded first."""
    teachers: tuple[str, ...] = ()
    """Who teaches a game of --games where that is not the mspacman-expert (Ms. Pac-Man), the carnival-expert (Carnival), the
    paddle-expert (Pong, Breakout) or the planner (every other game), as in `--teachers Pong=sb3:runs/pong.zip`."""
    teach_episodes: int = 8
    """Games that each teacher plays."""
    teach_frames: int = 8000
    """Emulator frames after which such a game is cut off."""
    slips: float = 0.05
    """Share of a teacher's decisions at which its hand slips, so that its pupils see how to come back."""
    room: Path = Path("data")
    """Where such games are recorded: ROOM/TEACHER-GAME."""

    def check_demonstrations(self) -> None:
        """Refuse numbers of no use and teachers of games that nobody asked for."""
        for name in ("teach_episodes", "teach_frames"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if idle := sorted(set(self.named_teachers()) - {find_game(game).name for game in self.games}):
            raise UserError(f"--teachers names {', '.join(idle)}, which is not among --games")

    def named_teachers(self) -> dict[str, str]:
        """Return the teacher of each game that `teachers` names."""
        found = {}
        for given in self.teachers:
            game, _, spec = given.partition("=")
            if not spec:
                raise UserError(f"--teachers: expected GAME=AGENT, as in Pong=sb3:runs/pong.zip, got {given!r}")
            parse_agent_id(spec)
            found[find_game(game).name] = spec
        return found

    def record_demonstrations(self) -> list[Path]:
        """Return the dataset of each game, with what was lacking recorded now."""
        named = self.named_teachers()
        games = dict.fromkeys(find_game(game).name for game in self.games)
        return [self._record(game, named.get(game, default_expert(game))) for game in games]

    def _record(self, game: str, teacher: str) -> Path:
        kind, path = parse_agent_id(teacher)
        place = self.room / f"{f'{kind}-{Path(path).stem}' if path else kind}-{game}"
        arguments = record.Args(
            game=game,
            out=place,
            agent=teacher,
            episodes=self.teach_episodes,
            random_action_prob=self.slips,
            max_frames=self.teach_frames,
        )
        return record.record(arguments)
