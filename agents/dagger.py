"""DAgger (Ross et al. 2011): the policy plays, a teacher labels what *it* saw, and it learns from all data so far.

Each round records whole games of the policy of the round before, asks the teacher for the value of every action at
every so many decisions (soft labels, `agents.bc_dataset`), and trains on demonstrations and all recordings. A
round lies in `round-K`: its recordings, its training and `last`. What is finished is not done again, and what was
interrupted goes on, so that a run that was killed comes to the same weights and figures when it is repeated.

A teacher that searches at random disagrees with itself: how often two of its labels of the same state name the same
best action is the ceiling of what agreement can reach, and is told beside it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from agents import clone, record
from agents.demonstrations import default_expert
from agents.registry import EXPERTS, make_agent, parse_agent_id
from common.errors import UserError
from common.files import write_text_atomically
from common.results import new_result, read_result, write_result
from envs.atari import make_envs
from envs.episodes import EpisodeDataset
from envs.games import find_game
from envs.protocol import MACHADO2018, episode_seeds
from vlm import checkpoint

STATES, APART = 40, 15  # labelled twice for the ceiling, and decisions of random play between them
RESULT = "improve.json"


@dataclass(kw_only=True)
class DaggerConfig:
    """The rounds of DAgger."""

    game: tuple[str, ...] = ()
    """The games to improve in; by default all that the checkpoint was taught."""
    rounds: int = 3
    """How many rounds."""
    episodes: int = 20
    """Whole games of each that the policy plays in a round."""
    teacher: str = ""
    """Who labels: planner, mspacman-expert, carnival-expert or paddle-expert; by default the one made for the game, and the
    planner elsewhere."""
    teach_every: int = 4
    """The teacher is asked at every n-th decision."""
    play_temperature: float = 0.3
    """How freely the policy samples while it is recorded: its mistakes are what is to be learnt from."""
    repeat: int = 1
    """How often a recording counts among the data."""
    fall: float = 0.7
    """What the learning rates are multiplied by from round to round."""
    record_seed: int = 600
    """The seed of the first round's games; each round has the next."""

    def check_rounds(self) -> None:
        """Refuse numbers of no use."""
        for name in ("episodes", "teach_every", "repeat"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.rounds < 0 or not 0 < self.fall <= 1:
            raise UserError(f"expected --rounds of at least 0 and --fall in (0, 1], got {self.rounds} and {self.fall}")
        if self.teacher and parse_agent_id(self.teacher)[0] not in EXPERTS:
            raise UserError(
                f"expected --teacher {', '.join(EXPERTS)}, got {self.teacher!r}; agents.record takes others, and "
                "agents.clone what it recorded"
            )
        if self.record_seed + self.rounds > clone.SELECTION_SEED:
            raise UserError(
                f"--record-seed and its rounds must stay below {clone.SELECTION_SEED}, where choosing begins"
            )

    def teacher_of(self, game: str) -> str:
        """Return who labels a game."""
        return self.teacher or default_expert(game)


Teach = Callable[[clone.Args], Path]  # trains as the arguments say and returns the checkpoint to go on with


def games_of(games: Sequence[str], start: Path) -> list[str]:
    """Return the names of the games to improve in: those asked for, or all that a checkpoint was taught."""
    taught = checkpoint.read_training(start).get("games") or []
    if not games and not taught:
        raise UserError(f"{start} was taught no game; name one with --game")
    return [find_game(game).name for game in games or taught]


def run_dagger(args: clone.Args, rounds: DaggerConfig, start: Path, teach: Teach = clone.clone) -> Path:
    """Go through all rounds from a checkpoint; return the last round's.

    `args` is how each round trains: its `data` are the demonstrations, its `out` is where the rounds go.
    """
    rounds.check_rounds()
    games, data, current = games_of(rounds.game, start), list(args.data), start
    ceilings = {game: label_ceiling(args.out, game, rounds.teacher_of(game)) for game in games}
    rows: list[dict[str, Any]] = []
    with SummaryWriter(str(args.out)) as writer:
        for number in range(rounds.rounds):
            place = args.out / f"round-{number}"
            played = {game: record_round(rounds, game, current, place, number) for game in games}
            for game, recording in played.items():
                row = describe(EpisodeDataset(recording), checkpoint.content_hash(current))
                rows.append({"round": number, "game": game, **row, "ceiling": ceilings[game]["agree"]})
                _tell(rows[-1], writer)
            _write(args.out / RESULT, rows, ceilings)
            data += [recording for recording in played.values() for _ in range(rounds.repeat)]
            current = train_round(args, rounds, data, current, place, number, teach)
    return current


def record_round(rounds: DaggerConfig, game: str, player: Path, place: Path, number: int) -> Path:
    """Let the policy play a round's games under its teacher, or what is left of them; return the dataset."""
    arguments = record.Args(
        game=game,
        out=place / f"recorded-{game}",
        agent=f"vlm:{player}",
        expert=rounds.teacher_of(game),
        label_every=rounds.teach_every,
        episodes=rounds.episodes,
        seed=rounds.record_seed + number,
        temperature=rounds.play_temperature,
    )
    return record.record(arguments)


def train_round(
    args: clone.Args, rounds: DaggerConfig, data: list[Path], start: Path, place: Path, number: int, teach: Teach
) -> Path:
    """Train a round on all data so far, or go on with it; return its checkpoint."""
    out, done = place / "trained", place / "last.json"
    if done.exists():
        return Path(json.loads(done.read_text())["checkpoint"])
    less = rounds.fall**number
    own = replace(
        args,
        data=tuple(data),
        out=out,
        init=start,
        learning_rate=args.learning_rate * less,
        encoder_learning_rate=args.encoder_learning_rate * less,
    )
    found = teach(own)
    place.mkdir(parents=True, exist_ok=True)
    write_text_atomically(done, json.dumps({"checkpoint": str(found)}) + "\n")
    return found


def describe(data: EpisodeDataset, player: str) -> dict[str, Any]:
    """Return the figures of a recording: scores, labels, and how often the policy did what its teacher would have."""
    values = data.action_values
    taught = ~np.isnan(values).all(axis=1)
    best = np.where(np.isfinite(values[taught]), values[taught], -np.inf).argmax(axis=1)
    return {
        "checkpoint": player,
        "teacher": data.info.labels,
        "scores": data.scores,
        "labels": int(taught.sum()),
        "agreed": float((data.actions[taught] == best).mean()),
    }


def label_ceiling(out: Path, game_name: str, teacher: str) -> dict[str, Any]:
    """Return how far a teacher agrees with itself, measured once: `agree`, the share of states of random play that it
    gives the same best action twice; `correlation`, the median over states of that of its values; `n` states.
    """
    file = out / f"ceiling-{game_name}.json"
    if file.exists():
        return json.loads(file.read_text())
    rng, agreed, correlations = np.random.default_rng(0), [], []
    with make_envs(find_game(game_name), 1, MACHADO2018, searchable=True) as envs:
        agent: Any = make_agent(teacher, envs)
        seeds = iter(episode_seeds(clone.SELECTION_SEED, STATES))
        _begin(envs, agent, next(seeds))
        for number in range(STATES * APART):
            step = envs.step(rng.integers(len(envs.action_names), size=1))
            if step.terminated[0] or step.truncated[0]:
                _begin(envs, agent, next(seeds))
            if number % APART == APART - 1:
                one, other = agent.values(0), agent.values(0)
                agreed.append(int(one.argmax()) == int(other.argmax()))
                correlations.append(_correlation(one, other))
    found = {"agree": float(np.mean(agreed)), "correlation": float(np.nanmedian(correlations)), "n": len(agreed)}
    out.mkdir(parents=True, exist_ok=True)
    write_text_atomically(file, json.dumps({"game": game_name, "teacher": teacher, **found}, indent=1) + "\n")
    return json.loads(file.read_text())


def _begin(envs: Any, agent: Any, seed: int) -> None:
    envs.reset([seed])
    agent.reset([seed])


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    both = np.isfinite(one) & np.isfinite(other)
    if both.sum() < 2 or one[both].std() == 0 or other[both].std() == 0:
        return float("nan")
    return float(np.corrcoef(one[both], other[both])[0, 1])


def _tell(row: dict[str, Any], writer: SummaryWriter) -> None:
    mean = float(np.mean(row["scores"]))
    writer.add_scalar(f"{row['game']}/score", mean, row["round"])
    writer.add_scalar(f"{row['game']}/agreed", row["agreed"], row["round"])
    print(
        f"round {row['round']}, {row['game']}: {mean:,.0f} in {len(row['scores'])} games, {row['labels']} labels, "
        f"{row['agreed']:.0%} as its {row['teacher']} would have (which agrees with itself in {row['ceiling']:.0%})"
    )


def _write(file: Path, rows: list[dict[str, Any]], ceilings: dict[str, dict[str, Any]]) -> None:
    """Write the figures so far; a run that goes on keeps what the file tells of its beginning."""
    result = read_result(file) if file.exists() else new_result("improve", MACHADO2018.to_dict(), [])
    result["rows"] = [*({"ceiling_of": game, **found} for game, found in ceilings.items()), *rows]
    write_result(file, result)
