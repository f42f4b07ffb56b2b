"""Agents by the word a user types: `vlm`, `vlm:DIR`, `random`, `sb3:PATH`, `human`, and the teachers that search."""

import difflib
import re
from pathlib import Path

from agents.agent import Agent
from agents.random_agent import RandomAgent
from common.errors import UserError
from envs.atari import EmulatorEnvs, GameEnvs
from vlm.pretrained import RELEASED_POLICY

AGENT_TYPES = ("vlm", "random", "planner", "mspacman-expert", "carnival-expert", "paddle-expert", "sb3", "human")
EXPERTS = ("planner", "mspacman-expert", "carnival-expert", "paddle-expert")
OLD_AGENT_IDS = {"pathfinder": "mspacman-expert", "marksman": "carnival-expert", "tracker": "paddle-expert"}


def current_agent_id(recorded: str) -> str:
    """Return the agent of a dataset or result row with current ids: 'marksman, noise 0.1' contains an old one."""
    old_id = rf"(?<![\w:/.-])({'|'.join(OLD_AGENT_IDS)})(?![\w:/.-])"
    return re.sub(old_id, lambda found: OLD_AGENT_IDS[found[1]], recorded)


def parse_agent_id(spec: str) -> tuple[str, str | None]:
    """Return (kind, path or None) of an agent's word; an unknown kind is refused with the nearest."""
    kind, _, path = spec.partition(":")
    if kind not in AGENT_TYPES:
        close = difflib.get_close_matches(kind, AGENT_TYPES, n=1, cutoff=0.3) or ["vlm"]
        nearest = OLD_AGENT_IDS.get(kind, close[0])
        raise UserError(f"expected an agent ({', '.join(AGENT_TYPES)}), got {spec!r}; nearest: {nearest}")
    if kind == "sb3" and not path:
        raise UserError("expected sb3:PATH with the path of a stable-baselines3 archive, got 'sb3'")
    return kind, path or None


def checkpoint_path(spec: str) -> Path:
    """Return where the weights of a VLM's word lie: those that ship where it names none."""
    path = parse_agent_id(spec)[1]
    return Path(path) if path else RELEASED_POLICY


def needs_emulator(spec: str) -> bool:
    """Whether an agent searches the emulator that it plays on."""
    return parse_agent_id(spec)[0] in EXPERTS


def make_agent(
    spec: str, envs: GameEnvs, decode: str = "scores", temperature: float | None = None, engine: str = "torch"
) -> Agent:
    """Build the agent that a user's word means, for these lanes.

    `decode`, `temperature` and `engine` are a VLM's; a temperature of None is the one chosen for the checkpoint.
    Torch is imported only for agents that need it.
    """
    kind, path = parse_agent_id(spec)
    if kind == "random":
        return RandomAgent(envs.action_names)
    if kind in EXPERTS:
        from agents.experts.search_agent import SearchAgent, find_search

        assert isinstance(envs, EmulatorEnvs)
        return SearchAgent(envs, find_search(kind, envs), kind)
    if kind == "sb3":
        from agents.sb3_agent import Sb3Agent

        return Sb3Agent(Path(str(path)), envs.action_names)
    if kind == "human":
        from agents.human_agent import HumanAgent

        return HumanAgent(envs.game, envs.action_names)
    from agents.vlm_agent import VlmAgent

    return VlmAgent.load(checkpoint_path(spec), envs.game, envs.action_names, decode, temperature, engine)
