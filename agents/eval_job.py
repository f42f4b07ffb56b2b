"""One evaluation: an agent with all that decides its games, and the environments in which it plays them.

`agents.score` plays jobs to fill rows, `agents.verification` plays the jobs of published rows again.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from agents.agent import Agent
from agents.agent_wrappers import ChangedFramesAgent
from agents.api_config import NO_ENDPOINT, ApiConfig
from agents.model_limits import NO_LIMITS, ModelLimits
from agents.registry import agent_settings, make_agent, needs_emulator, parse_agent_id
from envs.atari import GameEnvs, make_envs
from envs.games import Game
from envs.play_conditions import UNCHANGED, PlayCondition
from envs.protocol import Protocol

MIN_PIPELINED_ENVS = 16  # from here on, a VLM computes for one half of the environments while the other half steps


@dataclass(frozen=True)
class EvalJob:
    """What fills one row: an agent with its settings in one game, the games of one seed."""

    agent_id: str
    game: Game
    seed: int
    temperature: float | None = None
    condition: PlayCondition = UNCHANGED
    decode: str = "scores"
    engine: str = "torch"
    limits: ModelLimits = NO_LIMITS
    api: ApiConfig = NO_ENDPOINT

    @property
    def agent_type(self) -> str:
        """The agent's type, the first part of its id."""
        return parse_agent_id(self.agent_id)[0]

    def row_key(self, num_envs: int) -> dict[str, Any]:
        """Return the entries that identify the row in a result, played in so many environments at most.

        A row of plain play names no condition.
        """
        key: dict[str, Any] = {"agent": self.agent_id, "game": self.game.name, "seed": self.seed}
        key |= {} if self.condition is UNCHANGED else {"condition": self.condition.name}
        return key | agent_settings(
            self.agent_id, self.decode, self.temperature, self.engine, num_envs, self.limits, self.api
        )

    def group_sizes(self, num_envs: int, games: int) -> list[int]:
        """Return the number of environments of each pipelined group for so many games, `num_envs` at most in all."""
        num_envs = max(1, min(num_envs, games))
        pipelined = num_envs >= MIN_PIPELINED_ENVS and self.agent_type == "vlm"
        return [num_envs - num_envs // 2, num_envs // 2] if pipelined else [num_envs]

    def open_groups(
        self, protocol: Protocol, num_envs: int, games: int, stack: ExitStack
    ) -> list[tuple[Agent, GameEnvs]]:
        """Return an agent and its environments for each group of `group_sizes`; the stack closes them."""
        rules, change = self.condition.protocol(protocol), self.condition.change_of(self.game)
        groups: list[tuple[Agent, GameEnvs]] = []
        for size in self.group_sizes(num_envs, games):
            searchable = needs_emulator(self.agent_id)
            envs = stack.enter_context(make_envs(self.game, size, rules, searchable=searchable))
            agent = make_agent(self.agent_id, envs, self.decode, self.temperature, self.engine, self.limits, self.api)
            groups.append((ChangedFramesAgent(agent, change) if change else agent, envs))
        return groups
