"""Score agents against each other on whole games, with intervals.

    python -m agents.score --agents vlm random --games Carnival MsPacman --episodes 30 --seeds 1000 1001 1002 \
        --out experiments/results/shipped.json
    python -m agents.score --agents vlm:runs/clone/best planner --games Carnival --episodes 5 --seeds 7 --out s.json

Every agent plays every game under the protocol, many games in step, and each finished (agent, game, seed) becomes a
row of raw scores in the JSON at once: an interrupted run goes on where it stopped when the command is repeated.
The table and the plot beside the JSON show the mean with its 95 % bootstrap interval (rliable, stratified over seeds).
Seeds below 1000 are for choosing; publish 1000 to 1999.
"""

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import tyro
from tqdm import tqdm

from agents.registry import (
    EXPERTS,
    checkpoint_path,
    current_agent_name,
    make_agent,
    needs_emulator,
    parse_agent_id,
)
from agents.rollout import rollout_pipelined
from common.command import run
from common.errors import UserError
from common.intervals import bootstrap_interval
from common.results import new_result, read_result, write_result
from envs.atari import make_envs
from envs.games import Game, find_game
from envs.protocol import Protocol, episode_seeds, find_protocol
from envs.reference_scores import all_references

BOOTSTRAP_REPETITIONS = 2000
MIN_PIPELINED_ENVS = 16  # lanes from which a model plays at two tables, so that games step while it thinks


@dataclass
class Args:
    """Score agents on games, in step over many lanes, with intervals."""

    agents: tuple[str, ...]
    """Who plays: vlm, vlm:DIR, random, planner, mspacman-expert (Ms. Pac-Man only), carnival-expert
    (Carnival only), paddle-expert (Pong and Breakout), sb3:PATH."""
    games: tuple[str, ...]
    """On what, in any reasonable spelling."""
    out: Path
    """The result JSON; finished rows in it are kept."""
    episodes: int = 30
    """Whole games for each agent, game and seed."""
    seeds: tuple[int, ...] = (0,)
    """Seeds: below 1000 to choose by, 1000 to 1999 to publish."""
    protocol: str = "machado2018"
    """The evaluation protocol."""
    decode: Literal["scores", "generate"] = "scores"
    """How a VLM answers: scores or generate."""
    temperatures: tuple[float, ...] = ()
    """Temperatures a VLM plays at, each a row of its own; by default the one chosen for the checkpoint."""
    engine: Literal["auto", "torch", "openvino"] = "torch"
    """What computes a VLM's scores: torch (float32) or openvino (what play uses on a CPU; several times faster)."""
    lanes: int = 16
    """How many games to play in step; the scores do not depend on it."""

    def __post_init__(self) -> None:
        for name in ("episodes", "lanes"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}")
        for spec in self.agents:
            if parse_agent_id(spec)[0] == "human":
                raise UserError("a person is scored by agents.play --agent human, not here")


@dataclass(frozen=True)
class Job:
    """One row to be played."""

    spec: str
    game: Game
    seed: int
    temperature: float | None

    def row(self, args: Args) -> dict[str, Any]:
        """Return what tells this row from others, as it stands in the file."""
        row: dict[str, Any] = {"agent": self.spec, "game": self.game.name, "seed": self.seed}
        kind = parse_agent_id(self.spec)[0]
        if kind == "vlm":
            from vlm.checkpoint import content_hash

            row["checkpoint"] = content_hash(checkpoint_path(self.spec))
            row["decode"] = args.decode
            row["temperature"] = self.temperature
            row["engine"] = args.engine
        if kind in EXPERTS:
            row["note"] = "expert with access to the simulator"
        return row


def list_jobs(args: Args) -> list[Job]:
    """Return every row that the arguments ask for; a VLM has one for each temperature."""
    jobs = []
    for name in args.games:
        for spec in args.agents:
            temperatures = args.temperatures if parse_agent_id(spec)[0] == "vlm" else ()
            jobs += [
                Job(spec, find_game(name), seed, temperature)
                for temperature in temperatures or (None,)
                for seed in args.seeds
            ]
    return jobs


def play_job(job: Job, args: Args, protocol: Protocol) -> dict[str, Any]:
    """Play one row's games and return it."""
    lanes = min(args.lanes, args.episodes)
    scores, decisions, invalid = [0.0] * args.episodes, 0, 0
    started = time.monotonic()
    sizes = (
        [lanes]
        if lanes < MIN_PIPELINED_ENVS or parse_agent_id(job.spec)[0] != "vlm"
        else [lanes - lanes // 2, lanes // 2]
    )
    with ExitStack() as stack:
        tables = []
        for size in sizes:
            envs = stack.enter_context(make_envs(job.game, size, protocol, searchable=needs_emulator(job.spec)))
            tables.append((make_agent(job.spec, envs, args.decode, job.temperature, args.engine), envs))
        bar = tqdm(total=args.episodes, desc=f"{job.spec} {job.game.name} seed {job.seed}", unit="game")
        for turn in rollout_pipelined(tables, episode_seeds(job.seed, args.episodes)):
            decisions, invalid = decisions + 1, invalid + turn.invalid
            if turn.ended:
                scores[turn.game_index] = turn.score
                bar.update()
        bar.close()
    seconds = time.monotonic() - started
    row = job.row(args)
    if "temperature" in row:
        row["temperature"] = getattr(tables[0][0], "temperature", None)
    row |= {"episodes": args.episodes, "scores": scores, "invalid": invalid / decisions}
    return row | {"decisions": decisions, "decisions_per_second": round(decisions / seconds, 1)}


def open_result(args: Args, protocol: Protocol) -> dict[str, Any]:
    """Return the result to go on with, or a new one; a file of another protocol is refused."""
    if not args.out.exists():
        return new_result(args.out.stem, protocol.to_dict(), sorted(args.seeds))
    result = read_result(args.out)
    if result["protocol"] != protocol.to_dict():
        there = (result["protocol"] or {}).get("name")
        raise UserError(f"{args.out} holds scores under {there}; choose another --out for {protocol.name}")
    result["rows"] = [row | {"agent": current_agent_name(row["agent"])} for row in result["rows"]]
    return result


def is_done(row: dict[str, Any], job: Job, args: Args) -> bool:
    """Whether a row of the file is the job's."""
    asked = job.row(args)
    if asked.get("temperature", 0) is None:
        asked.pop("temperature")  # the checkpoint's own: whatever it was
    asked.pop("note", None)  # a comment for readers
    return row.get("episodes") == args.episodes and all(row.get(key) == value for key, value in asked.items())


def score(args: Args) -> dict[str, Any]:
    """Play what the file lacks; return the result."""
    protocol = find_protocol(args.protocol)
    jobs = list_jobs(args)
    for job in jobs:
        episode_seeds(job.seed, args.episodes)
    result = open_result(args, protocol)
    for number, job in enumerate(jobs, start=1):
        if any(is_done(row, job, args) for row in result["rows"]):
            continue
        print(f"row {number} of {len(jobs)}", file=sys.stderr)
        started = time.monotonic()
        row = play_job(job, args, protocol)
        fresh = new_result(args.out.stem, protocol.to_dict(), sorted({*result["seeds"], *args.seeds}))
        row["commit"], row["command"] = fresh["commit"], fresh["command"]
        seconds = round(result["seconds"] + time.monotonic() - started, 1)
        result = fresh | {"rows": [*result["rows"], row], "seconds": seconds}
        write_result(args.out, result)
    return result


def interval(scores: list[list[float]]) -> tuple[float, float, float]:
    """Return (mean, low, high): the mean and its 95 % bootstrap interval over games, stratified over seeds.

    rliable's interval takes runs x tasks; here a run is a game and a task is a seed (Agarwal et al. 2021).
    """
    matrix = np.array(list(zip(*scores, strict=False)))  # [games, seeds]
    return bootstrap_interval(matrix, np.mean, BOOTSTRAP_REPETITIONS)


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join the seeds of each agent on each game; return what a table shows."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        key = (row["game"], row["agent"], row.get("checkpoint"), row.get("decode"), row.get("temperature"))
        groups.setdefault(key, []).append(row)
    table = []
    for (game, agent, _, decode, temperature), found in groups.items():
        mean, low, high = interval([row["scores"] for row in found])
        every = np.sort(np.concatenate([row["scores"] for row in found]))
        quarter = len(every) // 4
        how = "" if temperature is None else f" {decode}, temperature {temperature:g}"
        kind, path = parse_agent_id(agent)
        shown = f"{kind}:{Path(path).name}" if path else agent
        table.append(
            {
                "game": game, "agent": shown + how, "mean": mean, "low": low, "high": high,
                "median": float(np.median(every)), "iqm": float(every[quarter : len(every) - quarter].mean()),
                "least": float(every[0]), "most": float(every[-1]), "games": len(every), "seeds": len(found),
                "invalid": float(np.mean([row["invalid"] for row in found])),
                "decisions_per_second": float(np.mean([row["decisions_per_second"] for row in found])),
                "note": found[0].get("note", ""),
            }
        )  # fmt: skip
    return sorted(table, key=lambda line: (line["game"], -line["mean"]))


def table_text(result: dict[str, Any]) -> str:
    """Return the scores with their intervals beside the published ones, as text."""
    lines = [f"protocol {result['protocol']['name']}, mean with 95 % bootstrap interval"]
    table = summarise(result["rows"])
    for name in dict.fromkeys(line["game"] for line in table):
        game = find_game(name)
        head = f"{'mean':>8}{'interval':>18}{'IQM':>8}{'median':>8}{'games':>7}{'dec/s':>7}"
        lines.append(f"\n{game.title:<34}{head}")
        lines += [_line_text(line) for line in table if line["game"] == name]
        lines += [f"  {r.agent:<32}{r.score:>8,.0f}  {r.protocol}; {r.source}" for r in all_references(game)]
    return "\n".join([*lines, *normalised_text(table)])


def normalised(table: list[dict[str, Any]], agent: str) -> dict[str, float]:
    """Return an agent's scores by game, 0 for random play and 1 for a person, where both are published."""
    found = {}
    for line in table:
        known = {row.agent: row.score for row in all_references(find_game(line["game"]))}
        if line["agent"] == agent and {"random", "human"} <= set(known):
            found[line["game"]] = (line["mean"] - known["random"]) / (known["human"] - known["random"])
    return found


def all_normalised(table: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return `normalised` of every agent in a table."""
    return {agent: normalised(table, agent) for agent in dict.fromkeys(line["agent"] for line in table)}


def normalised_text(table: list[dict[str, Any]]) -> list[str]:
    """Return lines that sum several games up, or none where agents played fewer than two that have a human score."""
    lines = []
    for agent, shares in all_normalised(table).items():
        if len(shares) > 1:
            each = ", ".join(f"{game} {share:.2f}" for game, share in shares.items())
            lines.append(f"  {agent:<32}{np.median(list(shares.values())):>8.2f}  {each}")
    return ["\nhuman-normalised, median over games (0 random play, 1 a person)", *lines] if lines else []


def _line_text(line: dict[str, Any]) -> str:
    bounds = f"[{line['low']:,.0f}, {line['high']:,.0f}]"
    figures = f"{line['mean']:>8,.0f}{bounds:>18}{line['iqm']:>8,.0f}{line['median']:>8,.0f}"
    lost = f"  {line['invalid']:.1%} unparsable" if line["invalid"] else ""
    return f"  {line['agent']:<32}{figures}{line['games']:>7}{line['decisions_per_second']:>7.0f}  {line['note']}{lost}"


def plot(result: dict[str, Any], file: Path) -> None:
    """Draw each game's scores with their intervals, the published ones as lines."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    table = summarise(result["rows"])
    games = list(dict.fromkeys(line["game"] for line in table))
    figure, axes = pyplot.subplots(1, len(games), figsize=(5.5 * len(games), 3.8), squeeze=False, layout="constrained")
    for axis, game in zip(axes[0], games, strict=True):
        lines = [line for line in table if line["game"] == game][::-1]
        means = [line["mean"] for line in lines]
        errors = [
            [line["mean"] - line["low"] for line in lines],
            [line["high"] - line["mean"] for line in lines],
        ]
        axis.barh([line["agent"] for line in lines], means, xerr=errors, color="#4c72b0", capsize=3)
        for known in all_references(find_game(game)):
            axis.axvline(known.score, color="#999999", linewidth=0.8, linestyle=":")
            axis.text(known.score, len(lines) - 0.45, known.agent.split(",")[0], rotation=60, fontsize=7)
        axis.set_title(find_game(game).title, pad=36)
        axis.set_xlabel("score of a whole game")
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    result = score(args)
    print(table_text(result))
    picture = args.out.with_suffix(".png")
    plot(result, picture)
    print(f"\nresult: {args.out}\nplot: {picture}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
