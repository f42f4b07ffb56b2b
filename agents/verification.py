"""Play a random part of the games of a result again, and say whether their scores come out the same.

    python -m agents.score --verify experiments/results/shipped.json
    python -m agents.score --verify experiments/results/shipped.json --fraction 0.2 --seed 5

Whole games, chosen at random over all rows, at least one of each agent in each game, are played with the settings of
their row: weights of the same hash, decoding, temperature, engine, protocol and condition. The exit code is 0 if all
scores are the same, else 1. The same machine and versions give the same games; others may round otherwise, so a game
that differs is shown with the versions that do. Endpoints, and rows whose weights are not at hand, are skipped by name.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field
from tqdm import tqdm

from agents.eval_job import EvalJob
from agents.model_limits import ModelLimits
from agents.registry import checkpoint_path, current_agent_name, parse_agent_id
from agents.rollout import rollout_pipelined
from agents.score_rows import settings_of
from common.command import parse, require_at_least
from common.errors import UserError
from common.json_file import checked
from common.provenance import package_versions
from common.results import Finite, read_result
from common.text import printable
from envs.games import find_game
from envs.play_conditions import UNCHANGED, find_condition
from envs.protocol import EPISODES_PER_SEED, Protocol, episode_seeds
from vlm.released_checkpoints import WEIGHTS

NOT_RECORDED = "not recorded"


@dataclass
class VerifyArgs:
    """Play a random part of a result's games again and compare the scores."""

    verify: Path
    """A result JSON of agents.score."""
    fraction: float = 0.05
    """The part of the games to play, rounded up; at least one game of each agent in each game."""
    games_to_replay: int | None = None
    """The number of games to play, in place of --fraction."""
    seed: int | None = None
    """Chooses the games; by default drawn anew, and printed."""
    num_envs: int = 16
    """Number of games played in parallel; the scores do not depend on it."""

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UserError(f"--fraction must be above 0 and at most 1, got {self.fraction:g}")
        require_at_least(self, 1, "games_to_replay", "num_envs")
        require_at_least(self, 0, "seed")


class PublishedRow(BaseModel):
    """What a row of `agents.score` says of its games."""

    agent: str
    game: str
    seed: Annotated[int, Field(ge=0)]
    scores: Annotated[list[Finite], Field(max_length=EPISODES_PER_SEED)]
    steps: Annotated[int, Field(ge=0)] = 0
    commit: str = "unknown"
    checkpoint: str | None = None
    decode: Literal["scores", "generate"] = "scores"
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    engine: Literal["auto", "torch", "openvino"] = "torch"
    condition: str = UNCHANGED.name
    image_tokens: int | None = None
    history: int | None = None
    max_new_tokens: int | None = None

    @property
    def name(self) -> str:
        """The row in words, as messages name it."""
        condition = "" if self.condition == UNCHANGED.name else f", {self.condition}"
        return f"{self.agent}, {self.game}{condition}, seed {self.seed}"

    @property
    def steps_per_game(self) -> int:
        """The steps of a game, on average."""
        return max(1, round(self.steps / len(self.scores)))

    def job(self) -> EvalJob:
        """Return the row's evaluation; `UserError` says why its games cannot be played again."""
        limits = ModelLimits(self.image_tokens, self.history, self.max_new_tokens)
        agent_id, condition = self._agent_id(), find_condition(self.condition)
        game = find_game(self.game)
        condition.change_of(game)
        settings = (self.temperature, condition, self.decode, self.engine, limits)
        return EvalJob(agent_id, game, self.seed, *settings)

    def _agent_id(self) -> str:
        """Return the agent's id with a path to weights of the row's hash."""
        agent_id = current_agent_name(self.agent)
        agent_type, path = parse_agent_id(agent_id)
        if agent_type in ("api", "human"):
            raise UserError("it answers from outside, and may answer otherwise")
        if agent_type not in ("vlm", "sb3"):
            return agent_id
        if self.checkpoint is None:
            raise UserError("the row does not say which weights played")
        if agent_type == "sb3":
            from agents.sb3_archive import archive_hash

            found = archive_hash(Path(str(path)))
            if found != self.checkpoint:
                raise UserError(_other_weights(self.checkpoint, found, str(path)))
            return agent_id
        return f"vlm:{find_weights(checkpoint_path(agent_id), self.checkpoint)}"


def _other_weights(expected: str, found: str, path: str) -> str:
    return f"it was played by weights {expected}, and those at hand, {path}, are {found}"


def find_weights(directory: Path, expected: str) -> Path:
    """Return the directory of weights of a hash, `directory` or a released one; `UserError` if none has it."""
    from vlm.checkpoint import content_hash

    for released in sorted(WEIGHTS.iterdir()):
        if released.is_dir() and released.resolve() != directory.resolve() and content_hash(released) == expected:
            return released
    if (found := content_hash(directory)) != expected:
        raise UserError(_other_weights(expected, found, str(directory)))
    return directory


@dataclass(frozen=True)
class Replay:
    """A published game, by its number within its row, and its score when played again."""

    row: PublishedRow
    number: int
    score: float

    @property
    def published(self) -> float:
        """The score in the file."""
        return self.row.scores[self.number]

    @property
    def same(self) -> bool:
        """Whether the score came out the same."""
        return self.score == self.published


def read_rows(file: Path) -> tuple[list[PublishedRow], Protocol, dict[str, str]]:
    """Return a result's rows with scores, its protocol and the versions that it was made with."""
    result = read_result(file)
    if result["protocol"] is None or not all(
        {"agent", "game", "seed", "scores"} <= row.keys() for row in result["rows"]
    ):
        raise UserError(f"expected a result of agents.score, got {file}, whose rows are no scores of an agent")
    names = [one.name for one in fields(Protocol)]  # an endpoint's rules are beside them
    protocol = checked({name: result["protocol"].get(name) for name in names}, Protocol, file)
    return checked(result["rows"], list[PublishedRow], file), protocol, result["versions"]


def playable_jobs(rows: Sequence[PublishedRow], file: Path) -> tuple[dict[int, EvalJob], list[str]]:
    """Return the jobs of the rows that can be played again, by the row's number, and why the others cannot.

    `UserError` if there is none.
    """
    jobs: dict[int, EvalJob] = {}
    skipped: dict[str, int] = {}
    for index, row in enumerate(rows):
        if not row.scores:
            continue
        try:
            jobs[index] = row.job()
        except UserError as error:
            reason = f"{row.agent}, {row.game}: {error}"
            skipped[reason] = skipped.get(reason, 0) + 1
    reasons = [f"{reason} ({count} row{'s' if count > 1 else ''})" for reason, count in skipped.items()]
    if not jobs:
        raise UserError(f"no game of {file} can be played again: {'; '.join(reasons) or 'it has none'}")
    return jobs, reasons


def choose_games(
    rows: Sequence[PublishedRow], indices: Sequence[int], args: VerifyArgs, rng: np.random.Generator
) -> dict[int, list[int]]:
    """Return the numbers of the games to play of some rows, by the row's number.

    One game of each agent, with its settings, in each game comes first, then any; all are drawn with equal chances.
    """
    games = [(index, number) for index in indices for number in range(len(rows[index].scores))]
    rng.shuffle(games)
    first: dict[tuple[Any, ...], tuple[int, int]] = {}
    for index, number in games:
        first.setdefault((rows[index].game, *settings_of(rows[index].model_dump())), (index, number))
    count = args.games_to_replay or max(math.ceil(args.fraction * len(games)), len(first))
    firsts = set(first.values())
    chosen = [*first.values(), *(game for game in games if game not in firsts)][:count]
    found: dict[int, list[int]] = {}
    for index, number in sorted(chosen):
        found.setdefault(index, []).append(number)
    return found


def replay(
    row: PublishedRow, job: EvalJob, numbers: Sequence[int], protocol: Protocol, num_envs: int, bar: tqdm
) -> Iterator[Replay]:
    """Play games of a row again, and yield each as it ends; the bar counts steps, and learns how long games are."""
    seeds = episode_seeds(row.seed, max(numbers) + 1)
    with ExitStack() as stack:
        groups = job.open_groups(protocol, num_envs, len(numbers), stack)
        for transition in rollout_pipelined(groups, [seeds[number] for number in numbers]):
            bar.update()
            if transition.ended:
                bar.total += transition.step + 1 - row.steps_per_game
                yield Replay(row, numbers[transition.game_index], transition.score)


def verify(args: VerifyArgs) -> tuple[list[Replay], list[str]]:
    """Return the games that were played again, and lines about them for the user."""
    rows, protocol, versions = read_rows(args.verify)
    jobs, skipped = playable_jobs(rows, args.verify)
    seed = int(np.random.SeedSequence().generate_state(1)[0]) if args.seed is None else args.seed
    chosen = choose_games(rows, list(jobs), args, np.random.default_rng(seed))
    replays: list[Replay] = []
    with tqdm(total=sum(rows[i].steps_per_game * len(chosen[i]) for i in chosen), unit="step") as bar:
        for index, numbers in chosen.items():
            bar.set_description(rows[index].name)
            replays += replay(rows[index], jobs[index], numbers, protocol, args.num_envs, bar)
    changes = version_changes(versions)
    lines = [f"skipped: {reason}" for reason in skipped]
    lines += [describe(one, changes) for one in sorted(replays, key=lambda one: (one.row.name, one.number))]
    same = sum(one.same for one in replays)
    games = sum(len(rows[index].scores) for index in jobs)
    choice = f"chosen from {games:,} by --seed {seed}"
    return replays, [*lines, f"{same} of {len(replays)} games came out the same, {choice}"]


def version_changes(published: dict[str, str]) -> str:
    """Return the packages whose version is another one than the published, in words."""
    changes = [
        f"{name} {published.get(name, NOT_RECORDED)} -> {version}"
        for name, version in package_versions().items()
        if published.get(name) != version
    ]
    return ", ".join(changes) or "none"


def describe(one: Replay, changes: str) -> str:
    """Return a line about a game that was played again."""
    game = f"{one.row.name}, game {one.number}: published {one.published:,.6g}"
    if one.same:
        return f"same     {game}"
    return f"differs  {game}, replayed {one.score:,.6g}; commit {one.row.commit[:7]}; versions that differ: {changes}"


def main(argv: list[str] | None = None) -> int:
    """Verify a result; return 1 if a score came out otherwise."""
    replays, lines = verify(parse(VerifyArgs, argv, __doc__))
    print(printable("\n".join(lines), keep="\n"))
    return int(not all(one.same for one in replays))
