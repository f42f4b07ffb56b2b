"""Score agents against each other on whole games, with intervals.

    python -m agents.score --agents vlm random --games Carnival MsPacman --episodes 30 --seeds 1000 1001 1002 \
        --out experiments/results/shipped.json
    python -m agents.score --agents vlm:runs/clone/best planner --games Carnival --episodes 5 --seeds 7 --out s.json

Every agent plays every game under the protocol. Each finished (agent, game, seed) is written to the JSON at once as a
row of raw scores; the same command resumes an interrupted run, and one with more episodes plays shorter rows anew. The
table and the plot beside the JSON show the mean of all games with its 95 % bootstrap interval, the table also IQM and
median. Seeds below 1000 are for development; publish 1000 to 1999.
"""

import itertools
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from agents.registry import (
    EXPERTS,
    ModelLimits,
    agent_files,
    current_agent_name,
    make_agent,
    needs_emulator,
    parse_agent_id,
    vlm_settings,
)
from agents.rollout import rollout_pipelined
from agents.score_rows import distinct_rows
from agents.score_table import format_table, plot
from common.command import command, require_at_least, run
from common.errors import UserError
from common.outputs import require_output_files
from common.results import RESULTS, new_result, read_result, write_result
from envs.atari import make_envs
from envs.games import Game, find_game
from envs.protocol import PUBLISHED_SEEDS, Protocol, episode_seeds, find_protocol

MIN_PIPELINED_ENVS = 16  # from here on, a VLM computes for one half of the environments while the other half steps
OLD_KEYS = {"decisions": "steps", "decisions_per_second": "steps_per_second"}


@dataclass
class Args:
    """Score agents on whole games, with intervals."""

    agents: tuple[str, ...]
    """The agents: vlm, vlm:DIR, random, sb3:PATH, planner, mspacman-expert, carnival-expert or paddle-expert."""
    games: tuple[str, ...]
    """The games, in any reasonable spelling."""
    out: Path
    """The result JSON; finished rows in it are kept."""
    episodes: int = 30
    """Whole games for each agent, game and seed."""
    seeds: tuple[int, ...] = (0,)
    """Seeds, at least 0: below 1000 for development; 1000 to 1999 alone for scores in experiments/results."""
    protocol: str = "machado2018"
    """The evaluation protocol."""
    decode: Literal["scores", "generate"] = "scores"
    """scores: the exact probabilities of the legal actions; generate: free text, parsed."""
    temperatures: tuple[float, ...] = ()
    """Sampling temperatures of a VLM, each in a row of its own; by default the one chosen for the checkpoint."""
    engine: Literal["auto", "torch", "openvino"] = "torch"
    """What computes a VLM's probabilities: torch (float32) or openvino (the default of play on a CPU; faster)."""
    image_tokens: int | None = None
    """The most tokens that a model of transformers may take for an image; by default one tile."""
    history: int | None = None
    """Frames that a model of transformers sees, each as an image; by default as its checkpoint, else 1."""
    max_new_tokens: int | None = None
    """The most tokens of an answer with --decode generate; a chain of thought needs hundreds."""
    num_envs: int = 16
    """Number of games played in parallel; the scores do not depend on it."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "episodes", "num_envs", "image_tokens", "history", "max_new_tokens")
        if any(parse_agent_id(agent_id)[0] == "human" for agent_id in self.agents):
            raise UserError("a human is scored by agents.play --agent human, not here")

    @property
    def limits(self) -> ModelLimits:
        """How much a model of transformers reads and writes."""
        return ModelLimits(self.image_tokens, self.history, self.max_new_tokens)


@dataclass(frozen=True)
class EvalJob:
    """The evaluation that fills one row."""

    agent_id: str
    game: Game
    seed: int
    temperature: float | None

    def row_key(self, args: Args) -> dict[str, Any]:
        """Return the entries that identify the row in the result file."""
        key: dict[str, Any] = {"agent": self.agent_id, "game": self.game.name, "seed": self.seed}
        num_envs = max(group_sizes(self.agent_id, args))
        return key | vlm_settings(self.agent_id, args.decode, self.temperature, args.engine, num_envs, args.limits)


def group_sizes(agent_id: str, args: Args) -> list[int]:
    """Return the number of environments of each pipelined group in which an agent plays."""
    num_envs = min(args.num_envs, args.episodes)
    pipelined = num_envs >= MIN_PIPELINED_ENVS and parse_agent_id(agent_id)[0] == "vlm"
    return [num_envs - num_envs // 2, num_envs // 2] if pipelined else [num_envs]


def list_jobs(args: Args) -> list[EvalJob]:
    """Return the jobs of all rows; a VLM has one for each temperature."""
    jobs = []
    for name, agent_id in itertools.product(args.games, args.agents):
        temperatures = args.temperatures if parse_agent_id(agent_id)[0] == "vlm" else ()
        for temperature, seed in itertools.product(temperatures or (None,), args.seeds):
            jobs.append(EvalJob(agent_id, find_game(name), seed, temperature))
    return jobs


def play_job(job: EvalJob, args: Args, protocol: Protocol) -> dict[str, Any]:
    """Play a job's episodes and return its row."""
    row = job.row_key(args)  # hashes the weights before anything is played
    scores, steps, invalid = [0.0] * args.episodes, 0, 0
    start = time.monotonic()
    with ExitStack() as stack:
        groups = []
        for size in group_sizes(job.agent_id, args):
            envs = stack.enter_context(make_envs(job.game, size, protocol, searchable=needs_emulator(job.agent_id)))
            agent = make_agent(job.agent_id, envs, args.decode, job.temperature, args.engine, args.limits)
            groups.append((agent, envs))
        bar = tqdm(total=args.episodes, desc=f"{job.agent_id} {job.game.name} seed {job.seed}", unit="game")
        for transition in rollout_pipelined(groups, episode_seeds(job.seed, args.episodes)):
            steps, invalid = steps + 1, invalid + transition.invalid
            if transition.ended:
                scores[transition.game_index] = transition.score
                bar.update()
        bar.close()
    seconds = time.monotonic() - start
    if parse_agent_id(job.agent_id)[0] in EXPERTS:
        row["note"] = "expert with access to the simulator"
    row |= {"episodes": args.episodes, "scores": scores, "invalid": invalid / steps}
    return row | {"steps": steps, "steps_per_second": round(steps / seconds, 1)}


def open_result(args: Args, protocol: Protocol) -> dict[str, Any]:
    """Return the result to resume, in current terms, or a new one; a file of another protocol is refused."""
    if not args.out.exists():
        return new_result(args.out.stem, protocol.to_dict(), sorted(args.seeds))
    result = read_result(args.out)
    if result["protocol"] != protocol.to_dict():
        there = (result["protocol"] or {}).get("name")
        raise UserError(f"{args.out} holds scores under {there}; choose another --out for {protocol.name}")
    rows = [{OLD_KEYS.get(key, key): value for key, value in row.items()} for row in result["rows"]]
    return result | {"rows": distinct_rows(row | {"agent": current_agent_name(row["agent"])} for row in rows)}


def require_publishable(args: Args) -> None:
    """Refuse seeds that are not for publishing where the result is to be published."""
    others = [seed for seed in args.seeds if seed not in PUBLISHED_SEEDS]
    if others and args.out.resolve().is_relative_to(RESULTS.resolve()):
        first, last = PUBLISHED_SEEDS[0], PUBLISHED_SEEDS[-1]
        raise UserError(f"{RESULTS} holds scores of seeds {first} to {last}, got {others[0]}; choose another --out")


def score(args: Args) -> dict[str, Any]:
    """Play the jobs that the file lacks; return the result."""
    protocol, jobs = find_protocol(args.protocol), list_jobs(args)
    for seed in args.seeds:
        episode_seeds(seed, args.episodes)  # refuses seeds out of range before anything is played
    require_publishable(args)
    require_output_files([args.out, plot_file(args)], agent_files(args.agents), own=args.out)
    result = open_result(args, protocol)
    for number, job in enumerate(jobs, start=1):
        rows, key = result["rows"], job.row_key(args)
        finished = [row for row in rows if all(row.get(name) == value for name, value in key.items())]
        if any(len(row["scores"]) >= args.episodes for row in finished):
            continue
        print(f"row {number} of {len(jobs)}", file=sys.stderr)
        start = time.monotonic()
        row = play_job(job, args, protocol)
        current = new_result(args.out.stem, protocol.to_dict(), sorted({*result["seeds"], *args.seeds}))
        row |= {"commit": current["commit"], "command": current["command"]}
        seconds = round(result["seconds"] + time.monotonic() - start, 1)
        result = current | {"rows": [*(other for other in rows if other not in finished), row], "seconds": seconds}
        write_result(args.out, result)
    return result


def plot_file(args: Args) -> Path:
    """Return the file of the plot, beside the result's."""
    return args.out.with_suffix(".png")


def report(args: Args) -> str:
    """Score, draw the plot and return the table, with the files' names."""
    result = score(args)
    plot(result, plot_file(args))
    return f"{format_table(result)}\n\nresult: {args.out}\nplot: {plot_file(args)}"


main = command(Args, report, __doc__, "{}")

if __name__ == "__main__":
    sys.exit(run(main))
