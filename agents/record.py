"""Record whole games into a dataset: frames, actions, rewards and, from a teacher, the value of every action.

    python -m agents.record --game Carnival --agent planner --episodes 20 --out data/carnival
    python -m agents.record --game MsPacman --agent vlm:runs/clone --teacher planner --teach-every 3 --out data/dagger
    python -m agents.record --game Carnival --agent vlm:runs/clone --teacher vlm:vlm/weights/policy --out data/distilled
    python -m agents.record --game Pong --agent human --out data/me

Each finished game is one Parquet file of lossless PNG frames with the protocol in the metadata; a killed recording
keeps every finished game, and the same command goes on where it stopped. With `--teacher` one agent plays and another
says what it would have done (DAgger, Ross et al. 2011): the states are the player's, the values the teacher's.
With `--noise` the player's hand slips now and then, so that the dataset shows how to come back (DART, Laskey 2017).
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, cast

import numpy as np
import tyro
from tqdm import tqdm

from agents.agent import Actions, Agent
from agents.registry import (
    EXPERTS,
    checkpoint_path,
    current_agent_id,
    make_agent,
    needs_emulator,
    parse_agent_id,
)
from agents.rollout import Transition, play_games
from common.command import run
from common.errors import UserError
from common.provenance import git_commit, package_versions
from envs.atari import GameEnvs, make_envs
from envs.episodes import INFO, DatasetInfo, Episode, EpisodeWriter, read_info
from envs.games import find_game
from envs.protocol import episode_seeds, find_protocol
from vlm.device import world_size

LABELLERS = (*EXPERTS, "vlm")


@dataclass
class Args:
    """Record whole games into a dataset of lossless frames, actions, rewards and action values."""

    game: str
    """The game, in any reasonable spelling: Carnival, "Ms. Pac-Man", ALE/Pong-v5."""
    out: Path
    """The dataset directory; an existing one of the same game, protocol and agent is continued."""
    agent: str = "planner"
    """Who plays: planner, mspacman-expert (Ms. Pac-Man only), carnival-expert (Carnival only),
    paddle-expert (Pong and Breakout), vlm, vlm:DIR, sb3:PATH, random or human."""
    teacher: str | None = None
    """Who gives the action values, where it is not the player: planner, mspacman-expert, carnival-expert,
    paddle-expert, or vlm:DIR with the probabilities of its answers."""
    episodes: int = 10
    """How many whole games the dataset shall hold of this seed."""
    seed: int = 0
    """The seed the games' own seeds derive from; below 1000, which later seeds are kept for published scores."""
    protocol: str = "machado2018"
    """The evaluation protocol the games follow: machado2018 or mnih2015."""
    noise: float = 0.0
    """Share of decisions at which the player's hand slips to a random legal action, held for one to four decisions."""
    teach_every: int = 1
    """Ask the teacher at every n-th decision only; the others carry no values. More games for the same search."""
    think_every: int = 1
    """The player thinks at every n-th decision only and holds its answer in between: more games for the same search."""
    temperature: float | None = None
    """How freely a VLM that plays samples its answer: 0 is greedy, by default the one chosen for its checkpoint."""
    engine: Literal["auto", "torch", "openvino"] = "torch"
    """What computes a VLM's answers: torch, or openvino, whose graph takes a third of the time on a CPU."""
    lanes: int = 1
    """How many games to play in step."""
    max_frames: int | None = None
    """Cut every game off after this many emulator frames: many beginnings in place of a few whole games."""

    def __post_init__(self) -> None:
        for name in ("episodes", "teach_every", "think_every", "lanes"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.max_frames is not None and self.max_frames < 1:
            raise UserError(f"--max-frames must be at least 1, got {self.max_frames}")
        if not 0 <= self.noise < 1:
            raise UserError(f"--noise must be at least 0 and below 1, got {self.noise}")
        if self.teach_every > 1 and self.teacher is None:
            raise UserError("--teach-every asks for a --teacher")
        if self.think_every > 1 and self.lanes > 1:
            raise UserError(f"--think-every holds answers in one lane only, got --lanes {self.lanes}")


class ActionValueExpert(Agent, Protocol):
    """An agent that values every action of a lane's present state, whoever brought the game there."""

    def values(self, lane: int) -> np.ndarray:
        """Return float32[A]."""
        ...


class ExpertLabelledAgent:
    """A player whose `scores` come from a teacher, at every `every`-th decision of a game; NaN at the others.

    A searcher is asked at those alone; a teacher that sees what the player sees follows the whole game.
    """

    def __init__(self, player: Agent, teacher: Agent, every: int, actions: int):
        self.name = f"{player.name} taught by {teacher.name}"
        self.player, self.teacher, self.every, self.actions = player, teacher, every, actions
        self._steps = np.zeros(0, dtype=int)

    def reset(self, seeds: Sequence[int | None]) -> None:
        """Begin new games with both; see `agents.agent.Agent`."""
        self.player.reset(seeds)
        self.teacher.reset(seeds)
        if len(self._steps) != len(seeds):
            self._steps = np.zeros(len(seeds), dtype=int)
        for lane, seed in enumerate(seeds):
            if seed is not None:
                self._steps[lane] = seed % self.every  # games are not all asked at the same steps

    def act(self, frames: np.ndarray) -> Actions:
        """The player's actions under the teacher's values."""
        played = self.player.act(frames)
        asked = self._steps % self.every == 0
        self._steps += 1
        return Actions(played.indices, played.texts, self._values(frames, asked), played.invalid)

    def _values(self, frames: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """Return float32[n, A], the teacher's values of the lanes `asked`, bool[n], and NaN for the others."""
        values = np.full((len(frames), self.actions), np.nan, dtype=np.float32)
        if hasattr(self.teacher, "values"):
            searcher = cast(ActionValueExpert, self.teacher)
            for lane in np.flatnonzero(asked):
                values[lane] = searcher.values(int(lane))
        else:
            told = self.teacher.act(frames).scores
            assert told is not None
            values[asked] = told[asked]
        return values


class RandomActionAgent:
    """A player whose hand slips: with probability `noise` a random legal action is played and held for a while."""

    def __init__(self, player: Agent, noise: float, action_names: Sequence[str]):
        self.name = f"{player.name}, noise {noise:g}"
        self.player, self.noise, self.action_names = player, noise, tuple(action_names)
        self._rngs: list[np.random.Generator] = []
        self._held: list[tuple[int, int]] = []  # (action, decisions left)

    def reset(self, seeds: Sequence[int | None]) -> None:
        """Begin new games; see `agents.agent.Agent`."""
        self.player.reset(seeds)
        if len(self._rngs) != len(seeds):
            self._rngs = [np.random.default_rng(0)] * len(seeds)
            self._held = [(0, 0)] * len(seeds)
        for lane, seed in enumerate(seeds):
            if seed is not None:
                self._rngs[lane], self._held[lane] = np.random.default_rng([seed, 0x511]), (0, 0)

    def act(self, frames: np.ndarray) -> Actions:
        """The player's actions, some of them replaced."""
        meant = self.player.act(frames)
        indices = meant.indices.copy()
        for lane, rng in enumerate(self._rngs):
            action, left = self._held[lane]
            if left == 0 and rng.random() < self.noise:
                action, left = int(rng.integers(len(self.action_names))), int(rng.integers(1, 5))
            if left > 0:
                indices[lane] = action
            self._held[lane] = (action, max(left - 1, 0))
        return Actions(indices, tuple(self.action_names[i] for i in indices), meant.scores, meant.invalid)


class ActionRepeatAgent:
    """A player who thinks at every `every`-th decision and holds the answer in between, with NaN for its scores."""

    def __init__(self, player: Agent, every: int):
        self.name = f"{player.name}, thinking every {every}"
        self.player, self.every = player, every
        self._steps = 0
        self._held: Actions | None = None

    def reset(self, seeds: Sequence[int | None]) -> None:
        """Begin new games; see `agents.agent.Agent`."""
        self.player.reset(seeds)
        self._steps = 0  # a new game is answered at once

    def act(self, frames: np.ndarray) -> Actions:
        """The player's actions, or the last ones again."""
        if self._held is None or self._steps % self.every == 0:
            self._held = self.player.act(frames)
        else:
            scores = None if self._held.scores is None else np.full_like(self._held.scores, np.nan)
            self._held = replace(self._held, scores=scores)
        self._steps += 1
        return self._held


def to_episode(turns: list[Transition]) -> Episode:
    """Put the turns of one finished game together."""
    values = None
    if turns[0].scores is not None:
        values = np.array([turn.scores for turn in turns], dtype=np.float32)
    last = turns[-1]
    return Episode(
        frames=np.stack([turn.frame for turn in turns]),
        actions=np.array([turn.action for turn in turns]),
        rewards=np.array([turn.reward for turn in turns], dtype=np.float32),
        action_values=values,
        terminated=last.terminated,
        truncated=last.truncated,
        seed=last.seed,
    )


def finished_games(turns: Iterator[Transition]) -> Iterator[Episode]:
    """Yield each game of a rollout as it ends."""
    open_games: dict[int, list[Transition]] = {}
    for turn in turns:
        game = open_games.setdefault(turn.game_index, [])
        game.append(turn)
        if turn.ended:
            yield to_episode(open_games.pop(turn.game_index))


def make_player(args: Args, envs: GameEnvs) -> Agent:
    """Build the player with what `args` puts around it: noise at the hand, a teacher behind."""
    player = make_agent(args.agent, envs, temperature=args.temperature, engine=args.engine)
    if args.think_every > 1:
        player = ActionRepeatAgent(player, args.think_every)
    if args.noise:
        player = RandomActionAgent(player, args.noise, envs.action_names)
    if args.teacher:
        if parse_agent_id(args.teacher)[0] not in LABELLERS:
            kinds = ", ".join(LABELLERS)
            raise UserError(f"--teacher must be an agent that values every action ({kinds}), got {args.teacher!r}")
        teacher = make_agent(args.teacher, envs, engine=args.engine)
        player = ExpertLabelledAgent(player, teacher, args.teach_every, len(envs.action_names))
    return player


def who_values(args: Args) -> str | None:
    """Return whose action values a dataset holds, a VLM by its weights, so that no other one goes on with it."""
    if args.teacher is None:
        return args.agent if needs_emulator(args.agent) else None
    kind = parse_agent_id(args.teacher)[0]
    if kind != "vlm":
        return kind
    from vlm.checkpoint import content_hash  # torch, which searchers have no need of

    return f"vlm {content_hash(checkpoint_path(args.teacher))}"


def with_recorded_ids(info: DatasetInfo, out: Path) -> DatasetInfo:
    """Return `info`, or the same data's info in an existing dataset `out` that names its agents by old ids."""
    if not (out / INFO).exists():
        return info
    there = read_info(out)
    labels = there.labels and current_agent_id(there.labels)
    return there if replace(there, agent=current_agent_id(there.agent), labels=labels).same_data(info) else info


def record(args: Args) -> Path:
    """Play and store the games that the dataset still lacks; return its directory."""
    if world_size() > 1:
        raise UserError(f"games are recorded by one process, got {world_size()}: record first, then train by several")
    game, protocol = find_game(args.game), find_protocol(args.protocol)
    if args.max_frames:
        protocol = replace(protocol, max_episode_frames=min(args.max_frames, protocol.max_episode_frames))
    searched = needs_emulator(args.agent) or bool(args.teacher and needs_emulator(args.teacher))
    with make_envs(game, args.lanes, protocol, searchable=searched) as envs:
        player = make_player(args, envs)
        info = DatasetInfo(
            game=game.name,
            action_names=envs.action_names,
            protocol=protocol,
            agent=player.name,
            labels=who_values(args),
            commit=git_commit(),
            versions=package_versions(),
        )
        writer = EpisodeWriter(args.out, with_recorded_ids(info, args.out))
        wanted = [seed for seed in episode_seeds(args.seed, args.episodes) if seed not in writer.seeds()]
        bar = tqdm(total=args.episodes, initial=args.episodes - len(wanted), desc=f"record {game.title}", unit="game")
        scores = []
        for episode in finished_games(play_games(player, envs, wanted)):
            writer.append(episode)
            scores.append(episode.score)
            bar.update()
            bar.set_postfix(score=f"{episode.score:g}", mean=f"{np.mean(scores):.0f}", steps=len(episode.actions))
        bar.close()
    return args.out


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    print(f"recorded in {record(args)}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
