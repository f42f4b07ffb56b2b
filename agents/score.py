"""Score agents against each other on whole games, with intervals.

    python -m agents.score --agents vlm random --games Carnival MsPacman --episodes 30 --seeds 1000 1001 1002 \
        --out experiments/results/shipped.json
    python -m agents.score --agents vlm:runs/clone/best planner --games Carnival --episodes 5 --seeds 7 --out s.json
    python -m agents.score --agents vlm --games Carnival --conditions all --seeds 7 --out robustness.json
    python -m agents.score --verify experiments/results/shipped.json      play some of its games again (own --help)

Every agent plays every game under the protocol. Each finished (agent, game, seed) is written to the JSON at once as a
row of raw scores; the same command resumes an interrupted run, also within the row of a model behind an endpoint, and
one with more episodes plays shorter rows anew. The table and the plot beside the JSON show the mean of all games with
its 95 % bootstrap interval, the table also IQM and median. Seeds below 1000 are for development; publish 1000 to 1999.
With --conditions, the same games are played with other colours, a shifted picture and so on, each in rows of its own; a
second table shows the differences to plain play.
"""

import itertools
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from pydantic import BaseModel
from tqdm import tqdm

from agents import verification
from agents.agent_wrappers import ChangedFramesAgent
from agents.api_config import FEW_SHOT, ApiConfig
from agents.eval_job import EvalJob
from agents.model_limits import ModelLimits
from agents.registry import EXPERTS, agent_files, current_agent_name, limits_of, parse_agent_id, result_protocol
from agents.robustness import format_robustness
from agents.rollout import rollout_pipelined
from agents.score_rows import distinct_rows, identity
from agents.score_table import format_table, plot
from common.command import command, require_at_least, run
from common.errors import UserError
from common.json_file import checked
from common.outputs import require_output_files
from common.results import RESULTS, Finite, new_result, read_result, write_result
from envs.games import find_game
from envs.play_conditions import UNCHANGED, game_conditions
from envs.protocol import PUBLISHED_SEEDS, Protocol, episode_seeds, find_protocol

OLD_KEYS = {"decisions": "steps", "decisions_per_second": "steps_per_second"}


@dataclass
class Args:
    """Score agents on whole games, with intervals."""

    agents: tuple[str, ...]
    """The agents: vlm, vlm:DIR, api:MODEL, random, sb3:PATH, planner or an expert (docs/experts.md)."""
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
    """Sampling temperatures, each in a row of its own. By default a VLM plays at the one chosen for its checkpoint, an
    SB3 actor greedily."""
    conditions: tuple[str, ...] = (UNCHANGED.name,)
    """unchanged, palette-bgr, palette-rotated, shifted, score-hidden, sticky-0, sticky-0.5, noop-30; or all of them."""
    engine: Literal["auto", "torch", "openvino"] = "torch"
    """What computes a VLM's probabilities: torch (float32) or openvino (the default of play on a CPU; faster)."""
    limits: Annotated[ModelLimits, tyro.conf.arg(name="")] = ModelLimits()
    """How much a model that plays reads and writes."""
    num_envs: int = 16
    """Number of games played in parallel; the scores do not depend on it."""
    api: Annotated[ApiConfig, tyro.conf.arg(name="")] = ApiConfig()
    """The endpoint of the agents api:MODEL."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "episodes", "num_envs")
        if any(parse_agent_id(agent_id)[0] == "human" for agent_id in self.agents):
            raise UserError("a human is scored by agents.play --agent human, not here")
        self.api.check_agents([parse_agent_id(agent_id)[0] for agent_id in self.agents], self.limits)


def list_jobs(args: Args) -> list[EvalJob]:
    """Return the jobs of all rows; a VLM, here or behind an endpoint, and SB3 have one for each temperature."""
    jobs, limits = [], taken_limits(args)
    for game, agent_id in itertools.product(map(find_game, args.games), args.agents):
        temperatures = args.temperatures if parse_agent_id(agent_id)[0] in ("vlm", "api", "sb3") else ()
        conditions = game_conditions(args.conditions, game)
        for condition, temperature, seed in itertools.product(conditions, temperatures or (None,), args.seeds):
            settings = (temperature, condition, args.decode, args.engine, limits[agent_id], args.api)
            jobs.append(EvalJob(agent_id, game, seed, *settings))
    return jobs


def taken_limits(args: Args) -> dict[str, ModelLimits]:
    """Return the limits of each agent; `UserError` for one that none of them takes."""
    limits = {agent_id: limits_of(agent_id, args.limits) for agent_id in args.agents}
    for name in ("image_tokens", "history"):
        if getattr(args.limits, name) and not any(getattr(taken, name) for taken in limits.values()):
            flag, models = f"--{name.replace('_', '-')}", "a model of transformers"
            expected = models if name == "image_tokens" else f"{models} or behind an endpoint"
            raise UserError(f"{flag}: expected {expected} among --agents, got {', '.join(args.agents)}")
    return limits


def row_key(job: EvalJob, args: Args) -> dict[str, Any]:
    """Return the entries that identify a job's row in the result file."""
    return job.row_key(max(job.group_sizes(args.num_envs, args.episodes)))


class JobProgress(BaseModel):
    """The finished games of a job by their number, each as (score, steps, invalid answers), and what they took."""

    key: dict[str, Any]  # of the row
    games: dict[int, tuple[Finite, int, int]] = {}
    seconds: Finite = 0.0
    usage: dict[str, Any] = {}

    def first_games(self, episodes: int) -> list[tuple[float, int, int]]:
        """Return the first games: `episodes` of them, and those without a gap behind, if an earlier run asked more."""
        numbers = itertools.takewhile(lambda number: number < episodes or number in self.games, itertools.count())
        return [self.games[number] for number in numbers]


def play_job(
    job: EvalJob, args: Args, protocol: Protocol, progress: JobProgress, keep: Callable[[JobProgress], None]
) -> dict[str, Any]:
    """Play the episodes that a job lacks and return its row; `keep` is called after every game of an endpoint's."""
    row = row_key(job, args)  # hashes the weights before anything is played
    missing = [number for number in range(args.episodes) if number not in progress.games]
    seeds, invalid = episode_seeds(job.seed, args.episodes), dict.fromkeys(missing, 0)
    start, seconds = time.monotonic(), progress.seconds
    with ExitStack() as stack:
        groups = job.open_groups(protocol, args.num_envs, len(missing), stack)
        if job.agent_type == "api":
            stack.callback(keep_usage, groups[0][0], progress.usage, progress, keep)
        condition = "" if job.condition is UNCHANGED else f" {job.condition.name}"
        done, name = args.episodes - len(missing), f"{job.agent_id} {job.game.name}{condition} seed {job.seed}"
        bar = stack.enter_context(tqdm(total=args.episodes, initial=done, desc=name, unit="game"))
        for transition in rollout_pipelined(groups, [seeds[number] for number in missing]):
            number = missing[transition.game_index]
            invalid[number] += transition.invalid
            if transition.ended:
                progress.games[number] = (transition.score, transition.step + 1, invalid[number])
                progress.seconds = seconds + time.monotonic() - start
                bar.update()
                if job.agent_type == "api":
                    keep(progress)
    if job.agent_type in EXPERTS:
        row["note"] = "expert with access to the simulator"
    scores, steps, invalids = zip(*progress.first_games(args.episodes), strict=True)
    row |= {"episodes": len(scores), "scores": list(scores), "invalid": sum(invalids) / sum(steps)}
    row |= progress.usage
    return row | {"steps": sum(steps), "steps_per_second": round(sum(steps) / max(progress.seconds, 1e-9), 1)}


def keep_usage(agent: Any, before: dict[str, Any], progress: JobProgress, keep: Callable[[JobProgress], None]) -> None:
    """Add what an endpoint's agent asked to a job's progress, and keep it; a cost may be unknown."""
    asked: Any = agent.agent if isinstance(agent, ChangedFramesAgent) else agent
    now = asked.usage()
    unknown = {name for name in now if now[name] is None or before.get(name, 0) is None}
    progress.usage = {name: None if name in unknown else before.get(name, 0) + now[name] for name in now}
    keep(progress)


def open_result(args: Args, protocol: Protocol) -> dict[str, Any]:
    """Return the result to resume, in current terms, or a new one; a file of another protocol is refused."""
    rules = result_protocol(protocol, args.agents, args.api)
    if not args.out.exists():
        return new_result(args.out.stem, rules, sorted(args.seeds))
    result = read_result(args.out)
    there, own = result["protocol"] or {}, {**(result["protocol"] or {}), **rules}
    if {name: value for name, value in there.items() if name not in args.api.rules()} != protocol.to_dict():
        raise UserError(f"{args.out} holds scores under {there.get('name')}; choose another --out for {protocol.name}")
    if FEW_SHOT in there and there[FEW_SHOT] != own[FEW_SHOT]:
        raise UserError(f"{args.out} holds scores with --few-shot {there[FEW_SHOT]}; choose another --out")
    rows = [{OLD_KEYS.get(key, key): value for key, value in row.items()} for row in result["rows"]]
    rows = distinct_rows(row | {"agent": current_agent_name(row["agent"])} for row in rows)
    return result | {"protocol": own, "rows": rows}


def require_publishable(args: Args) -> None:
    """Refuse seeds that are not for publishing where the result is to be published."""
    others = [seed for seed in args.seeds if seed not in PUBLISHED_SEEDS]
    if others and args.out.resolve().is_relative_to(RESULTS.resolve()):
        first, last = PUBLISHED_SEEDS[0], PUBLISHED_SEEDS[-1]
        raise UserError(f"{RESULTS} holds scores of seeds {first} to {last}, got {others[0]}; choose another --out")


def read_progress(job: EvalJob, args: Args, result: dict[str, Any]) -> tuple[JobProgress, list[dict[str, Any]]]:
    """Return the progress of a job in a result, or a new one, and that of the other unfinished jobs."""
    found = checked(result.get("unfinished", []), list[JobProgress], args.out)
    key = row_key(job, args)
    own = [progress for progress in found if progress.key == key]
    others = [progress.model_dump(mode="json") for progress in found if progress.key != key]
    return (own or [JobProgress(key=key)])[0], others


def keep_progress(args: Args, result: dict[str, Any], others: list[dict[str, Any]], progress: JobProgress) -> None:
    """Write the finished games of an unfinished job beside those of others."""
    write_result(args.out, result | {"unfinished": [*others, progress.model_dump(mode="json")]})


def score(args: Args) -> dict[str, Any]:
    """Play the jobs that the file lacks; return the result."""
    protocol, jobs = find_protocol(args.protocol), list_jobs(args)
    for seed in args.seeds:
        episode_seeds(seed, args.episodes)  # refuses seeds out of range before anything is played
    require_publishable(args)
    require_output_files([args.out, plot_file(args)], agent_files(args.agents), own=args.out)
    result = open_result(args, protocol)
    for number, job in enumerate(jobs, start=1):
        rows, key = result["rows"], row_key(job, args)
        finished = [row for row in rows if identity(row) == identity(key)]
        if any(len(row["scores"]) >= args.episodes for row in finished):
            continue
        print(f"row {number} of {len(jobs)}", file=sys.stderr)
        start = time.monotonic()
        progress, others = read_progress(job, args, result)
        row = play_job(job, args, protocol, progress, partial(keep_progress, args, result, others))
        current = new_result(args.out.stem, result["protocol"], sorted({*result["seeds"], *args.seeds}))
        row |= {"commit": current["commit"], "command": current["command"]}
        seconds = round(result["seconds"] + time.monotonic() - start, 1)
        rows = [*(other for other in rows if other not in finished), row]
        result = current | {"rows": rows, "seconds": seconds} | ({"unfinished": others} if others else {})
        write_result(args.out, result)
    return result


def plot_file(args: Args) -> Path:
    """Return the file of the plot, beside the result's."""
    return args.out.with_suffix(".png")


def report(args: Args) -> str:
    """Score, draw the plot and return the tables, with the files' names."""
    result = score(args)
    plot(result, plot_file(args))
    tables = "\n".join([format_table(result), *format_robustness(result["rows"])])
    return f"{tables}\n\nresult: {args.out}\nplot: {plot_file(args)}"


score_main = command(Args, report, __doc__, "{}")


def main(argv: list[str] | None = None) -> int:
    """Score, or verify a result, as the command line says."""
    words = sys.argv[1:] if argv is None else argv
    verifies = any(word.partition("=")[0] == "--verify" for word in words)
    return verification.main(argv) if verifies else score_main(argv)


if __name__ == "__main__":
    sys.exit(run(main))
