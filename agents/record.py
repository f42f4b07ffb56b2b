"""Record whole games into a dataset: frames, actions, rewards and an expert's value of every action.

    python -m agents.record --game Carnival --agent planner --episodes 20 --out data/carnival
    python -m agents.record --game MsPacman --agent vlm:runs/clone --expert planner --label-every 3 --out data/dagger
    python -m agents.record --game Carnival --agent vlm:runs/clone --expert vlm:vlm/weights/policy --out data/distilled
    python -m agents.record --game Pong --agent human --out data/human

Each finished game is one Parquet file of lossless PNG frames, with the protocol in the metadata. A killed recording
keeps every finished game; the same command resumes it. With `--expert` one agent plays and another labels its states
(DAgger, Ross et al. 2011). With `--random-action-prob` the dataset shows how to recover (DART, Laskey et al. 2017).
"""

import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from tqdm import tqdm

from agents.agent import Agent
from agents.agent_wrappers import ActionRepeatAgent, ExpertLabelledAgent, RandomActionAgent
from agents.api_config import ApiConfig
from agents.model_limits import ModelLimits
from agents.registry import (
    agent_files,
    checkpoint_path,
    current_agent_name,
    make_agent,
    needs_emulator,
    parse_agent_id,
    require_labeller,
)
from agents.rollout import Transition, play_games
from common.command import command, require_at_least, run
from common.errors import UserError
from common.outputs import require_output_directory
from common.processes import world_size
from common.provenance import command_line, git_commit, package_versions
from envs.atari import GameEnvs, make_envs
from envs.episodes import INFO, DatasetInfo, Episode, EpisodeWriter, encode_png, read_info
from envs.games import find_game
from envs.protocol import episode_seeds, find_protocol

NO_FRAME = np.zeros((0, 0, 3), np.uint8)


@dataclass
class Args:
    """Record whole games into a dataset of lossless frames, actions, rewards and action values."""

    game: str
    """The game, case and punctuation are ignored: Carnival, "Ms. Pac-Man", ALE/Pong-v5."""
    out: Path
    """The dataset directory; an existing one of the same game, protocol and agent is continued."""
    agent: str = "planner"
    """planner or an expert of the game (docs/experts.md), vlm, vlm:DIR, sb3:PATH, api:MODEL, random or human."""
    expert: str | None = None
    """The agent that values every action, if not the player: an expert; vlm:DIR or sb3:PATH by their networks."""
    episodes: int = 10
    """Number of whole games of this seed in the dataset."""
    seed: int = 0
    """Seed of the games, at least 0; 1000 to 1999 are for published scores."""
    protocol: str = "machado2018"
    """The evaluation protocol: machado2018 or mnih2015."""
    random_action_prob: float = 0.0
    """Probability per step of a random legal action, repeated for one to four steps."""
    label_every: int = 1
    """The expert labels every n-th step only; the other steps have no values."""
    action_repeat: int = 1
    """The player acts at every n-th step only and repeats its action in between: more episodes per search time."""
    temperature: float | None = None
    """Sampling temperature of a VLM player; 0 is greedy; by default the one chosen for its checkpoint."""
    engine: Literal["auto", "torch", "openvino"] = "torch"
    """What computes a VLM's probabilities: torch, or openvino (faster on a CPU)."""
    num_envs: int = 1
    """Number of games played in parallel."""
    limits: Annotated[ModelLimits, tyro.conf.arg(name="")] = ModelLimits()
    """How much a model that plays reads and writes."""
    api: Annotated[ApiConfig, tyro.conf.arg(name="")] = ApiConfig()
    """The endpoint of --agent api:MODEL."""
    max_frames: int | None = None
    """Truncate every game after this many emulator frames: many openings instead of a few whole games."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "episodes", "label_every", "action_repeat", "num_envs", "max_frames")
        if not 0 <= self.random_action_prob < 1:
            raise UserError(f"--random-action-prob must be at least 0 and below 1, got {self.random_action_prob}")
        self.api.check_agents(parse_agent_id(self.agent)[:1], self.limits)
        if self.expert:
            require_labeller(self.expert)
        if self.label_every > 1 and self.expert is None:
            raise UserError("--label-every needs an --expert")
        if self.action_repeat > 1 and self.num_envs > 1:
            raise UserError(f"--action-repeat needs --num-envs 1, got {self.num_envs}")


def to_episode(transitions: Sequence[Transition], frames: Sequence[bytes]) -> Episode:
    """Return the episode of one finished game's transitions, whose frames are given as PNGs."""
    last, values = transitions[-1], [transition.scores for transition in transitions]
    return Episode(
        frames=frames,
        actions=np.array([transition.action for transition in transitions]),
        rewards=np.array([transition.reward for transition in transitions], dtype=np.float32),
        action_values=None if last.scores is None else np.array(values, dtype=np.float32),
        terminated=last.terminated,
        truncated=last.truncated,
        seed=last.seed,
    )


def finished_episodes(transitions: Iterator[Transition]) -> Iterator[Episode]:
    """Yield each episode of a rollout when it ends; the frames of running games are held as PNGs."""
    running: dict[int, list[tuple[Transition, bytes]]] = defaultdict(list)
    for transition in transitions:
        running[transition.game_index].append((replace(transition, frame=NO_FRAME), encode_png(transition.frame)))
        if transition.ended:
            yield to_episode(*zip(*running.pop(transition.game_index), strict=True))


def make_player(args: Args, envs: GameEnvs) -> Agent:
    """Return the agent of `args` in the wrappers of `args`."""
    agent = make_agent(
        args.agent, envs, temperature=args.temperature, engine=args.engine, limits=args.limits, api=args.api
    )
    if args.action_repeat > 1:
        agent = ActionRepeatAgent(agent, args.action_repeat)
    if args.random_action_prob:
        agent = RandomActionAgent(agent, args.random_action_prob, envs.action_names)
    if args.expert:
        expert = make_agent(args.expert, envs, engine=args.engine)
        agent = ExpertLabelledAgent(agent, expert, args.label_every, len(envs.action_names))
    return agent


def label_source(args: Args) -> str | None:
    """Return the agent whose action values the dataset holds; a network is named by its weights' hash."""
    if args.expert is None:
        return args.agent if needs_emulator(args.agent) else None
    agent_type, path = parse_agent_id(args.expert)
    if needs_emulator(args.expert):
        return agent_type
    if agent_type == "sb3":
        from agents.sb3_archive import archive_hash

        return f"sb3 {archive_hash(Path(str(path)))}"
    from vlm.checkpoint import content_hash  # imports transformers, which a search does not need

    return f"vlm {content_hash(checkpoint_path(args.expert))}"


def with_recorded_names(info: DatasetInfo, out: Path) -> DatasetInfo:
    """Return `info`, or the same data's info in an existing dataset `out` that uses old agent names."""
    if not (out / INFO).exists():
        return info
    there = read_info(out)
    labels = there.labels and current_agent_name(there.labels)
    return there if replace(there, agent=current_agent_name(there.agent), labels=labels).same_data(info) else info


def record(args: Args) -> Path:
    """Play and store the games that the dataset still lacks; return its directory."""
    if world_size() > 1:
        raise UserError(f"games are recorded by one process, got {world_size()}: record first, then train by several")
    require_output_directory(args.out, INFO, agent_files(filter(None, (args.agent, args.expert))))
    game, protocol = find_game(args.game), find_protocol(args.protocol)
    if args.max_frames:
        protocol = replace(protocol, max_episode_frames=min(args.max_frames, protocol.max_episode_frames))
    searchable = needs_emulator(args.agent) or bool(args.expert and needs_emulator(args.expert))
    with make_envs(game, args.num_envs, protocol, searchable=searchable) as envs:
        player = make_player(args, envs)
        info = DatasetInfo(
            game=game.name,
            action_names=envs.action_names,
            protocol=protocol,
            agent=player.name,
            labels=label_source(args),
            commit=git_commit(),
            versions=package_versions(),
            command=command_line(),
        )
        writer = EpisodeWriter(args.out, with_recorded_names(info, args.out))
        missing = [seed for seed in episode_seeds(args.seed, args.episodes) if seed not in writer.seeds()]
        bar = tqdm(total=args.episodes, initial=args.episodes - len(missing), desc=f"record {game.title}", unit="game")
        scores = []
        for episode in finished_episodes(play_games(player, envs, missing)):
            writer.append(episode)
            scores.append(episode.score)
            bar.update()
            bar.set_postfix(score=f"{episode.score:g}", mean=f"{np.mean(scores):.0f}", steps=len(episode.actions))
        bar.close()
    return args.out


main = command(Args, record, __doc__, "recorded in {}")

if __name__ == "__main__":
    sys.exit(run(main))
