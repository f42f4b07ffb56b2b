"""Demonstrations: the games that experts play to be cloned, recorded where missing."""

from dataclasses import dataclass
from pathlib import Path

from agents import record
from agents.registry import default_expert, parse_agent_id, parse_experts
from common.command import require_at_least
from envs.games import find_game


@dataclass(frozen=True)
class DemonstrationsConfig:
    """Expert demonstrations, recorded before training."""

    games: tuple[str, ...] = ()
    """Games to clone; demonstrations that are missing are recorded first."""
    experts: tuple[str, ...] = ()
    """Experts other than the default ones (docs/experts.md), as in `--experts Pong=sb3:runs/pong.zip`."""
    demo_episodes: int = 8
    """Games that each expert plays."""
    demo_max_frames: int = 8000
    """Emulator frames after which a demonstration is cut off."""
    random_action_prob: float = 0.05
    """Probability of a random action in place of the expert's, so that demonstrations show how to recover."""
    demo_dir: Path = Path("data")
    """Where demonstrations are recorded: DEMO_DIR/EXPERT-GAME."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "demo_episodes", "demo_max_frames")
        parse_experts(self.experts, self.games)

    def record(self) -> tuple[Path, ...]:
        """Record what is missing; return the dataset of each game."""
        found, named = [], parse_experts(self.experts, self.games)
        for game in dict.fromkeys(find_game(game).name for game in self.games):
            expert = named.get(game, default_expert(game))
            agent_type, path = parse_agent_id(expert)
            name = f"{agent_type}-{Path(path).stem}" if path else agent_type
            args = record.Args(
                game=game,
                out=self.demo_dir / f"{name}-{game}",
                agent=expert,
                episodes=self.demo_episodes,
                random_action_prob=self.random_action_prob,
                max_frames=self.demo_max_frames,
            )
            found.append(record.record(args))
        return tuple(found)
