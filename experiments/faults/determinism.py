"""Determinism: what is equal when a command runs twice, or in other numbers of environments, and where engines differ.

The same seed on the same machine gives the same recording, weights (of a training in one thread), scores and films,
bit for bit; 1 and 12 environments give the same games. Torch and OpenVINO round differently, which the last rows count.
"""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pyarrow.parquet as parquet
import torch
from jaxtyping import Float32

from agents import record
from agents.vlm_agent import VlmAgent
from envs.atari import make_envs
from envs.episodes import EpisodeDataset
from envs.games import find_game
from envs.protocol import MACHADO2018
from experiments.faults.kills import MAX_EXAMPLES, last_line
from experiments.faults.outputs import contents, differences
from experiments.faults.processes import run_in_child
from experiments.faults.tiny_commands import TinyCommand, prepare, tiny_commands
from vlm.released_checkpoints import RELEASED_POLICY

TWICE = ("record", "clone", "pvp", "score", "play")
ENVS = (1, 12)
NUM_DECISIONS = 500
BATCH = 25  # frames at once of the engine "torch, batch"; one at a time is how a game is played
LOG_FLOOR = 1e-30
GAMES = ("Carnival", "MsPacman")
Row = dict[str, Any]
Frame = np.ndarray
Games = dict[str, tuple[Any, np.ndarray | None]]  # what is equal, and what is rounded, by game


def run_twice(command: TinyCommand, work: Path) -> tuple[Path, Path]:
    """Run a command in two directories; return them."""
    places = work / f"{command.name}-1", work / f"{command.name}-2"
    for place in places:
        shutil.rmtree(place, ignore_errors=True)
        if (ended := run_in_child(command.run, place)).code:
            raise RuntimeError(f"{command.name}: {last_line(ended)}")
    return places


def compare_runs(command: TinyCommand, work: Path) -> Row:
    """Return the row of a command that ran twice: how many files differ in a bit, and frames of films."""
    one, other = run_twice(command, work)
    whole = contents(one)
    found = [f"{kind}: {name}" for kind, names in differences(whole, contents(other)).items() for name in names]
    row: Row = {"fault": "same seed twice", "command": command.name, "files": len(whole), "different": len(found)}
    films = sorted(one.rglob("*.mp4"))
    if films:
        pairs = [compare_films(film, other / film.relative_to(one)) for film in films]
        row |= {"frames": sum(count for count, _ in pairs), "different_frames": sum(wrong for _, wrong in pairs)}
    return row | {"examples": found[:MAX_EXAMPLES]}


def compare_films(one: Path, other: Path) -> tuple[int, int]:
    """Return the number of frames of two films and how many of them differ in a bit."""
    with ExitStack() as stack:
        readers: list[Any] = [stack.enter_context(imageio.get_reader(film)) for film in (one, other)]
        pairs = itertools.zip_longest(*readers, fillvalue=np.zeros(0))
        same = [np.array_equal(first, second) for first, second in pairs]
    return len(same), same.count(False)


def compare_envs(command: TinyCommand, work: Path, read: Callable[[Path], Games]) -> Row:
    """Return the row of a command that ran in one and in many environments: how many games differ.

    Probabilities of a batch are rounded otherwise than those of one frame: their largest difference is told beside.
    """
    few, many = (read(run_in_envs(command, work, num_envs)) for num_envs in ENVS)
    found = [name for name in sorted({*few, *many}) if name not in few or few[name][0] != many.get(name, [None])[0]]
    row: Row = {"fault": f"{ENVS[0]} and {ENVS[1]} environments", "command": command.name, "games": len(few)}
    row |= {"different": len(found), "examples": found[:MAX_EXAMPLES]}
    same = [name for name in few if name not in found]
    values = [
        (one, other)
        for one, other in ((few[name][1], many[name][1]) for name in same)
        if one is not None and other is not None
    ]
    if values:
        row["max_probability_difference"] = max(float(np.abs(one - other).max()) for one, other in values)
    return row


def run_in_envs(command: TinyCommand, work: Path, num_envs: int) -> Path:
    """Run a command with a number of environments; return its directory."""
    place = work / f"{command.name.replace(' ', '-')}-{num_envs}"
    shutil.rmtree(place, ignore_errors=True)
    words = (*command.words, "--num-envs", str(num_envs))
    if (ended := run_in_child(replace(command, words=words).run, place)).code:
        raise RuntimeError(f"{command.name}: {last_line(ended)}")
    return place


def recorded_games(place: Path) -> Games:
    """Return the steps of each recorded game, and the probabilities of its actions if there are any."""
    games: Games = {}
    for file in sorted((place / "out" / "data").glob("*.parquet")):
        table = parquet.read_table(file)
        values = table["action_values"].to_pylist()
        steps = table.drop_columns("action_values").to_pylist()
        games[file.name] = (steps, None if None in values else np.array(values))
    return games


def scored_games(place: Path) -> Games:
    """Return the score of each game, by its place in the scores of a seed."""
    rows = json.loads((place / "scores.json").read_text())["rows"]
    return {f"seed {row['seed']} game {i}": (score, None) for row in rows for i, score in enumerate(row["scores"])}


def env_commands() -> Iterator[tuple[TinyCommand, Callable[[Path], Games]]]:
    """Yield recordings and scorings of twelve games, by a random agent and by the released policy."""
    recording, policy = (
        "agents.record --game Carnival --episodes 12 --max-frames 240 --out out",
        "vlm:" + str(RELEASED_POLICY),
    )
    lines = {
        "record random": f"{recording} --agent random",
        "record policy, greedy": f"{recording} --agent {policy} --temperature 0",
        "record policy, sampled": f"{recording} --agent {policy} --temperature 1",
        "score random": "agents.score --agents random --games Freeway --episodes 12 --seeds 0 --out scores.json",
    }
    for name, line in lines.items():
        module, *words = line.split()
        yield TinyCommand(name, module, tuple(words)), scored_games if name.startswith("score") else recorded_games


def recorded_frames(game: str, work: Path, seed: int, count: int) -> list[Frame]:
    """Return the frames of a game of the released policy."""
    frames = count * MACHADO2018.frame_skip
    data = work / f"frames-{game}-{count}"
    record.record(record.Args(game, data, f"vlm:{RELEASED_POLICY}", episodes=1, seed=seed, max_frames=frames))
    dataset = EpisodeDataset(data)
    return [dataset.frame(row) for row in range(min(count, len(dataset)))]


def log_probs(game: str, engine: str, frames: list[Frame], batch: int) -> Float32[np.ndarray, "decisions actions"]:
    """Return the log-probabilities of all actions in each frame, seen as the first one of a game."""
    with make_envs(find_game(game), batch) as envs:
        agent = VlmAgent.load(RELEASED_POLICY, envs, "scores", 0.0, engine)
    found = []
    for start in range(0, len(frames), batch):
        group = frames[start : start + batch]
        agent.reset([0] * len(group))
        found.append(agent.act(np.stack(group)).scores)
    return np.log(np.concatenate([scores for scores in found if scores is not None]) + LOG_FLOOR)


def compare_engines(game: str, work: Path, seed: int, count: int = NUM_DECISIONS) -> Iterator[Row]:
    """Yield rows of the decisions of other engines against torch's, one at a time: greedy actions that differ."""
    frames = recorded_frames(game, work, seed, count)
    torch_alone = log_probs(game, "torch", frames, 1)
    for name, engine, batch in (("openvino", "openvino", 1), (f"torch, {BATCH} at once", "torch", BATCH)):
        other = log_probs(game, engine, frames, batch)
        differ = np.flatnonzero(torch_alone.argmax(axis=1) != other.argmax(axis=1))
        row: Row = {"fault": "engines", "name": f"{name} against torch", "game": game, "decisions": len(frames)}
        row |= {"different": len(differ), "max_log_prob_difference": float(np.abs(torch_alone - other).max())}
        yield row | {"examples": [f"decision {number}" for number in differ[:MAX_EXAMPLES]]}


def measure_determinism(work: Path, seed: int) -> Iterator[Row]:
    """Yield a row for each command that ran twice or in other numbers of environments, and for each pair of engines."""
    torch.set_num_threads(1)
    commands = tiny_commands(prepare(work / "inputs"))
    for name in TWICE:
        yield compare_runs(commands[name], work)
    for command, read in env_commands():
        yield compare_envs(command, work, read)
    for game in GAMES:
        yield from compare_engines(game, work, seed)
