"""Agents by id: `vlm`, `vlm:DIR`, `random`, `sb3:PATH`, `api:MODEL`, `human`, and experts that search the emulator."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from agents.agent import Agent
from agents.api_config import NO_ENDPOINT, ApiConfig
from agents.model_limits import NO_LIMITS, ModelLimits
from agents.random_agent import RandomAgent
from common.errors import UserError
from envs.atari import EmulatorEnvs, GameEnvs
from envs.games import find_game
from envs.protocol import Protocol
from vlm.released_checkpoints import RELEASED_POLICY

EXPERT_GAMES: dict[str, tuple[str, ...]] = {  # the games of each expert; the planner plays all
    "planner": (),
    "mspacman-expert": ("MsPacman",),
    "carnival-expert": ("Carnival",),
    "paddle-expert": ("Pong", "Breakout"),
    "freeway-expert": ("Freeway",),
}
EXPERTS = tuple(EXPERT_GAMES)
LABELLERS = (*EXPERTS, "vlm", "sb3")  # agents that value every action
AGENT_TYPES = ("vlm", "random", *EXPERTS, "sb3", "api", "human")
OLD_AGENT_IDS = {"pathfinder": "mspacman-expert", "marksman": "carnival-expert", "tracker": "paddle-expert"}
OLD_WRAPPER_NAMES = {
    ", noise ": ", random actions ",
    ", thinking every ": ", action repeat ",
    " taught by ": " labelled by ",
}


def current_agent_name(recorded: str) -> str:
    """Return the agent name of a dataset or result in current terms."""
    for old, new in OLD_WRAPPER_NAMES.items():
        recorded = recorded.replace(old, new)
    old_id = rf"(?<![\w:/.-])({'|'.join(OLD_AGENT_IDS)})(?![\w:/.-])"
    return re.sub(old_id, lambda found: OLD_AGENT_IDS[found[1]], recorded)


def parse_agent_id(agent_id: str) -> tuple[str, str | None]:
    """Return (type, path or None) of an agent id; `UserError` names the nearest type."""
    agent_type, _, path = agent_id.partition(":")
    if agent_type not in AGENT_TYPES:
        close = difflib.get_close_matches(agent_type, AGENT_TYPES, n=1, cutoff=0.3) or ["vlm"]
        nearest = OLD_AGENT_IDS.get(agent_type, close[0])
        raise UserError(f"expected an agent ({', '.join(AGENT_TYPES)}), got {agent_id!r}; nearest: {nearest}")
    if agent_type == "sb3" and not path:
        raise UserError("expected sb3:PATH with the path of a stable-baselines3 archive, got 'sb3'")
    if agent_type == "api" and not path:
        raise UserError("expected api:MODEL with the model's name at the endpoint of --base-url, got 'api'")
    return agent_type, path or None


def default_expert(game: str) -> str:
    """Return the expert of a game where no other one is named."""
    return next((expert for expert, games in EXPERT_GAMES.items() if game in games), "planner")


def parse_experts(given: Iterable[str], games: Iterable[str]) -> dict[str, str]:
    """Return the agent of each game that `--experts` names as GAME=AGENT; all must be among `games`."""
    found = {}
    for one in given:
        game, _, agent_id = one.partition("=")
        if not agent_id:
            raise UserError(f"--experts: expected GAME=AGENT, as in Pong=sb3:runs/pong.zip, got {one!r}")
        parse_agent_id(agent_id)
        found[find_game(game).name] = agent_id
    if unused := sorted(set(found) - {find_game(game).name for game in games}):
        raise UserError(f"--experts names {', '.join(unused)}, which is not among --games")
    return found


def require_labeller(agent_id: str) -> None:
    """Raise `UserError` for the id of an agent that does not value every action."""
    if parse_agent_id(agent_id)[0] not in LABELLERS:
        choices = ", ".join(LABELLERS)
        raise UserError(f"--expert must be an agent that values every action ({choices}), got {agent_id!r}")


def checkpoint_path(agent_id: str) -> Path:
    """Return the checkpoint of a VLM's id; the released policy if it names none."""
    return Path(parse_agent_id(agent_id)[1] or RELEASED_POLICY)


def agent_files(agent_ids: Iterable[str]) -> list[Path]:
    """Return the files and directories that agents are loaded from."""
    parsed = [parse_agent_id(agent_id) for agent_id in agent_ids if parse_agent_id(agent_id)[0] != "api"]
    return [Path(path or RELEASED_POLICY) for agent_type, path in parsed if path or agent_type == "vlm"]


def agent_settings(
    agent_id: str,
    decode: str,
    temperature: float | None,
    engine: str,
    num_envs: int = 1,
    limits: ModelLimits = NO_LIMITS,
    api: ApiConfig = NO_ENDPOINT,
) -> dict[str, Any]:
    """Return what a result row tells of how a VLM, here or behind an endpoint, or an SB3 archive plays; else nothing.

    A temperature of None is told as the one chosen for the checkpoint, the engine auto as the one that computes; SB3
    archives are greedy without one, and their rows then tell none.
    """
    agent_type, path = parse_agent_id(agent_id)
    if agent_type == "api":
        return api.row_key(temperature, limits)
    if agent_type == "sb3":
        from agents.sb3_archive import archive_hash

        told = {} if temperature is None else {"temperature": temperature}
        return {"checkpoint": archive_hash(Path(str(path))), **told}
    if agent_type != "vlm":
        return {}
    from agents.vlm_agent import chosen_engine, chosen_temperature
    from vlm.checkpoint import content_hash, read_training
    from vlm.device import best_device

    directory = checkpoint_path(agent_id)
    if temperature is None:
        temperature = chosen_temperature(read_training(directory))
    engine = chosen_engine(engine, num_envs, best_device())
    checkpoint = content_hash(directory)
    settings = {"checkpoint": checkpoint, "decode": decode, "temperature": temperature, "engine": engine}
    return settings | {name: value for name, value in asdict(limits).items() if value is not None}


def limits_of(agent_id: str, limits: ModelLimits) -> ModelLimits:
    """Return those of the limits that an agent takes.

    A preset reads images as its checkpoint says, a model behind an endpoint takes what tokens it needs.
    """
    agent_type, _ = parse_agent_id(agent_id)
    if agent_type == "api":
        return replace(limits, image_tokens=None)
    if agent_type != "vlm":
        return NO_LIMITS
    from vlm.checkpoint import is_preset

    if limits in (NO_LIMITS, ModelLimits(max_new_tokens=limits.max_new_tokens)):
        return limits
    return replace(limits, image_tokens=None, history=None) if is_preset(checkpoint_path(agent_id)) else limits


def result_protocol(protocol: Protocol, agent_ids: Iterable[str], api: ApiConfig) -> dict[str, Any]:
    """Return a result's protocol: the emulator's rules, and those of an endpoint's agents if there are any."""
    behind_endpoint = any(parse_agent_id(agent_id)[0] == "api" for agent_id in agent_ids)
    return protocol.to_dict() | (api.rules() if behind_endpoint else {})


def needs_emulator(agent_id: str) -> bool:
    """Return whether an agent searches the emulator that it plays on."""
    return parse_agent_id(agent_id)[0] in EXPERTS


def make_agent(
    agent_id: str,
    envs: GameEnvs,
    decode: str = "scores",
    temperature: float | None = None,
    engine: str = "torch",
    limits: ModelLimits = NO_LIMITS,
    api: ApiConfig = NO_ENDPOINT,
) -> Agent:
    """Return the agent of an id for these environments.

    `decode`, `temperature` (None: the one chosen for the checkpoint), `engine` and `limits` are for a VLM, `api` is for
    one behind an endpoint; an SB3 archive takes a temperature too. Torch is imported only for agents that need it.
    """
    agent_type, path = parse_agent_id(agent_id)
    if agent_type == "random":
        return RandomAgent(envs.action_names)
    if agent_type in EXPERTS:
        from agents.experts.search_agent import SearchAgent, make_search

        assert isinstance(envs, EmulatorEnvs)
        return SearchAgent(envs, make_search(agent_type, envs), agent_type)
    if agent_type == "sb3":
        from agents.sb3_agent import Sb3Agent

        return Sb3Agent(Path(str(path)), envs.action_names, temperature or 0.0)
    if agent_type == "api":
        from agents.api_agent import ApiAgent

        api.check_agents([agent_type], limits)
        return ApiAgent(str(path), envs, api, temperature, limits)
    if agent_type == "human":
        from agents.human_agent import HumanAgent

        return HumanAgent(envs.game, envs.action_names)
    from agents.vlm_agent import VlmAgent

    return VlmAgent.load(checkpoint_path(agent_id), envs, decode, temperature, engine, limits)
