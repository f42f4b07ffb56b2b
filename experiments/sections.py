"""The sections of the report: text, tables, charts and images of each result, and the command that reproduces it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from envs.games import find_game
from experiments.charts import Chart, curve_chart, profile_chart
from experiments.statistics import Row, SeedScores, filter_rows
from experiments.tables import (
    CONDITIONS,
    EVAL_SETS,
    Result,
    Table,
    benchmark_table,
    effect_table,
    game_score_table,
    probe_table,
    pvp_before_play_table,
    pvp_table,
    reference_table,
    released_table,
    score_table,
    segmentation_table,
)

POLICIES = {
    "shipped": "the released policy",
    "nano-policy": "an earlier policy",
    "eight": "one policy for eight games",
}
EXPERTS = ("experts", "micro-play")


@dataclass(frozen=True)
class Image:
    """An image file and its caption."""

    file: Path
    caption: str


@dataclass(frozen=True)
class Run:
    """A command and its provenance in words."""

    command: str
    provenance: str


@dataclass(frozen=True)
class Section:
    """A section. name: its anchor; charts: draws its charts, which takes longer than the tables."""

    name: str
    title: str
    text: str
    runs: list[Run]
    tables: list[Table]
    charts: Callable[[], list[Chart]] = field(default=list)
    images: list[Image] = field(default_factory=list)


def run_of(result: Result) -> Run:
    """Return a result's command with protocol, seeds, commits, date and machines."""
    commits = sorted({str(row.get("commit") or result["commit"])[:7] for row in result["rows"]})
    seeds = ", ".join(str(seed) for seed in result["seeds"])
    protocol = f"protocol {result['protocol']['name']}; " if result.get("protocol") else ""
    devices = sorted({row["device"] for row in result["rows"] if row.get("device", "cpu") != "cpu"})
    machines = ", ".join([result["machine"], *(device for device in devices if device not in result["machine"])])
    provenance = f"{protocol}seeds {seeds or '-'}; commit {', '.join(commits)}; {result['date'][:10]}; {machines}."
    return Run(result["command"], provenance)


def make_sections(results: Mapping[str, Result], folder: Path) -> list[Section]:
    """Return the sections of the results that there are, by name; images are in `folder`."""
    found = [released_section(results["shipped"])] if "shipped" in results else []
    experts = [results[name] for name in EXPERTS if name in results]
    if experts:
        found.append(score_section(experts, "experts", "Experts", EXPERT_TEXT))
    others = {name: title for name, title in POLICIES.items() if name in results and name != "shipped"}
    found += [score_section([results[name]], name, f"Other policies: {title}", "") for name, title in others.items()]
    if found:
        text = "Published scores, human scores and our own measurements of random play."
        found.append(Section("reference-scores", "Reference scores", text, [], [reference_table()]))
    studies = {"pvp-nano": pvp_section, "games-nano": games_section, "refer-nano": segmentation_section}
    for name, section in studies.items():
        if name in results:
            found.append(section(results[name], sorted(folder.glob(f"{name}*.png"))))
    speeds = [result for name, result in results.items() if "_speed" in name]
    return [*found, speed_section(speeds)] if speeds else found


EXPERT_TEXT = (
    "The policies that demonstrate. `micro-play` is a VLM that sees only frames, the expert of games-nano; the others "
    "read the simulator, which no player of the real game can."
)


def released_section(result: Result) -> Section:
    """Return the released policy's scores beside published ones."""
    return Section(
        "released-policy",
        "The released policy",
        "One policy plays all games. Mean scores of whole games with true rewards, on seeds kept for publishing, with "
        "95 % bootstrap intervals over games, stratified by seed (rliable). DQN, IQN and Rainbow are Dopamine's after "
        "200 M frames, with sticky actions too; human scores are of no-op starts without sticky actions. No human "
        "score of Carnival is published.",
        [run_of(result)],
        [released_table(result), score_table(result)],
        lambda: score_charts(result),
    )


def score_section(results: Sequence[Result], name: str, title: str, text: str) -> Section:
    """Return the scores of other agents, from results of `agents.score`."""
    merged = {"rows": [row for result in results for row in result["rows"]]}
    scores = f"{text} Means with 95 % bootstrap intervals over games, stratified by seed.".strip()
    return Section(
        name,
        title,
        scores,
        [run_of(result) for result in results],
        [score_table(merged)],
        lambda: score_charts(merged),
    )


def score_charts(result: Result) -> list[Chart]:
    """Return the performance profile of every agent, a chart for each game."""
    games = dict.fromkeys(row["game"] for row in result["rows"])
    return [profile_chart(agent_scores(result["rows"], game), find_game(game).title) for game in games]


def agent_scores(rows: list[Row], game: str) -> dict[str, SeedScores]:
    """Return the scores of each agent at each temperature in a game, by seed."""
    found: dict[str, list[list[float]]] = {}
    for row in filter_rows(rows, game=game):
        temperature = "" if row.get("temperature") is None else f", temperature {row['temperature']:g}"
        found.setdefault(f"{row['agent'].partition(':')[0]}{temperature}", []).append(row["scores"])
    return dict(found)


def condition_scores(rows: list[Row], game: str, fraction: float) -> dict[str, SeedScores]:
    """Return the scores of each condition of `games-nano` in a game, by training seed."""
    found = {
        label: filter_rows(rows, game=game, data_fraction=fraction, encoder=encoder, pvp=pvp)
        for (encoder, pvp), label in CONDITIONS.items()
    }
    return {label: [row["scores"] for row in own] for label, own in found.items() if own}


def pvp_section(result: Result, images: Sequence[Path]) -> Section:
    """Return the study of pixel precision."""
    rows = result["rows"]
    return Section(
        "pvp-nano",
        "pvp-nano: does a frozen encoder cost pixel precision?",
        "In distribution: held-out episodes of the training games, half of which can be answered from memory. Out of "
        "distribution: trained on augmented frames; evaluated on unseen games, photographs and synthetic images, where "
        "only reading helps. Means with 95 % t-intervals over training seeds.",
        [run_of(result)],
        [
            pvp_table(rows, "Mean absolute error of 255, all cells of a 32 x 32 grid"),
            pvp_table(rows, "The same on small objects", "mae_small_objects"),
            probe_table(rows),
        ],
        lambda: [curve_chart(rows, regime, name) for regime, name in EVAL_SETS],
        [Image(file, "the original, its grid, the frozen and the adapted model's predictions") for file in images],
    )


def games_section(result: Result, images: Sequence[Path] = ()) -> Section:
    """Return the study of play."""
    rows = result["rows"]
    games = sorted({row["game"] for row in rows})
    fractions = sorted({row["data_fraction"] for row in rows if "data_fraction" in row}, reverse=True)
    return Section(
        "games-nano",
        "games-nano: do PVP and unfreezing help play?",
        "Policies cloned from the same games in the same number of steps. Mean scores have 95 % t-intervals over "
        "training seeds, interquartile means bootstrap intervals over games; P is the probability of improvement "
        "(rliable). Effects pair policies of the same training seed, in points of the mean score and in nats of the "
        "expert's log-likelihood in held-out games. Backgrounds can be memorized; small objects must be read.",
        [run_of(result)],
        [
            pvp_before_play_table(rows),
            *(table(rows, fraction) for fraction in fractions for table in (game_score_table, effect_table)),
        ],
        lambda: [
            profile_chart(scores, f"{find_game(game).title}, {fraction:.0%} of the demonstrations")
            for fraction in fractions
            for game in games
            if (scores := condition_scores(rows, game, fraction))
        ],
        [Image(file, "games-nano") for file in images],
    )


def segmentation_section(result: Result, images: Sequence[Path]) -> Section:
    """Return the study of referring segmentation."""
    return Section(
        "refer-nano",
        "refer-nano: do PVP and unfreezing help referring segmentation?",
        "Masks after PVP, without it, and after its control, whose colours are shuffled among images. Percent, with "
        "95 % t-intervals over training seeds.",
        [run_of(result)],
        [
            segmentation_table(result["rows"], f"{title}, {name}", method, name)
            for method, title in (("head", "Mask head"), ("points", "Points as text"))
            for name in ("test", "held-out games")
        ],
        images=[Image(file, "expressions: the truth, then the masks of each condition") for file in images],
    )


def speed_section(results: Sequence[Result]) -> Section:
    """Return the benchmarks."""
    return Section(
        "benchmarks",
        "Benchmarks: speed beside a baseline",
        "Candidate and baseline are interleaved in one run. The ratio is the candidate's figure over the baseline's: "
        "above 1 is faster in a rate, slower in milliseconds.",
        [run_of(result) for result in results],
        [benchmark_table(results)],
    )
