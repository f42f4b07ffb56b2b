"""The sections of the report: text, tables, charts and images of results, and the commands that reproduce them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.score_rows import group_rows
from common.errors import UserError
from common.intervals import SeedScores
from envs.games import find_game
from envs.play_conditions import CONDITIONS, UNCHANGED
from experiments import tables
from experiments.charts import Chart, curve_chart, profile_chart
from experiments.fault_tables import fault_tables
from experiments.learning_curves import learning_tables
from experiments.robustness_tables import robustness_tables
from experiments.statistics import Row, filter_rows, games_of
from experiments.tables import Table

Result = dict[str, Any]
POLICIES = {"eight": "one policy for eight games", "eight-games": "one policy for eight games, with DAgger"}


@dataclass(frozen=True)
class Section:
    """A section. name: its anchor; charts: draws its charts, which takes longer than the tables."""

    name: str
    title: str
    text: str
    results: Sequence[Result]
    tables: list[Table]
    charts: Callable[[], list[Chart]] = field(default=list)
    images: Sequence[Path] = ()
    image_caption: str = ""


def commands(result: Result) -> list[str]:
    """Return the commands of a result: those of its rows of scores, which several may have made, or its own."""
    found = [row["command"] for row in result["rows"] if "scores" in row and "command" in row]
    return list(dict.fromkeys(found or [result["command"]]))


def provenance(result: Result) -> str:
    """Return a result's protocol, seeds, commits, date and machines in words."""
    commits = sorted({str(row.get("commit") or result["commit"])[:7] for row in result["rows"]})
    seeds = ", ".join(str(seed) for seed in result["seeds"])
    protocol = f"protocol {result['protocol']['name']}; " if result.get("protocol") else ""
    devices = sorted({row["device"] for row in result["rows"] if row.get("device", "cpu") != "cpu"})
    machines = ", ".join([result["machine"], *(device for device in devices if device not in result["machine"])])
    return f"{protocol}seeds {seeds or '-'}; commit {', '.join(commits)}; {result['date'][:10]}; {machines}."


@contextmanager
def rows_of(name: str) -> Iterator[None]:
    """Name the result in the errors of rows that are not as its readers expect them."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"{name}: its rows are not those of such a result: {reason}") from error


def make_sections(results: Mapping[str, Result], folder: Path) -> list[Section]:
    """Return the sections of the results that there are, by name; images are in `folder`."""
    found: list[Section] = []
    if "shipped" in results:
        with rows_of("shipped"):
            found.append(released_section(results["shipped"], engine_differences(results.get("faults"))))
    robustness = [result for name, result in results.items() if name.partition("-")[0] == "robustness"]  # one a game
    if robustness:
        with rows_of("robustness"):
            found.append(robustness_section(robustness))
    if "experts" in results:
        with rows_of("experts"):
            found.append(score_section([results["experts"]], "experts", "Experts", EXPERT_TEXT))
    for name, title in POLICIES.items():
        if name in results:
            with rows_of(name):
                found.append(score_section([results[name]], name, f"Other policies: {title}", ""))
    if found:
        text = "Published scores, human scores and our own measurements of random play."
        found.append(Section("reference-scores", "Reference scores", text, [], [tables.reference_table()]))
    studies = {
        "reader": reader_section,
        "optimizers": optimizers_section,
        "pvp-levers": levers_section,
        "pvp-nano": pvp_section,
        "games-nano": games_section,
        "refer-nano": segmentation_section,
        "from-rewards": rewards_section,
    }
    for name, section in studies.items():
        if name in results:
            with rows_of(name):
                found.append(section(results[name], sorted(folder.glob(f"{name}*.png"))))
    if "one-model" in results:
        with rows_of("one-model"):
            images = sorted(folder.glob("one-model*.png"))
            found.append(one_model_section(results["one-model"], results.get("shipped"), images))
    if "faults" in results:
        with rows_of("faults"):
            found.append(faults_section(results["faults"]))
    speeds = {name: result for name, result in results.items() if "_speed" in name}
    if speeds:
        with rows_of(" or ".join(speeds)):
            found.append(speed_section(list(speeds.values())))
    return found


EXPERT_TEXT = "The agents that demonstrate. They read the simulator, which no player of the real game can. "


def all_rows(results: Sequence[Result]) -> list[Row]:
    """Return the rows of results together."""
    return [row for result in results for row in result["rows"]]


def engine_differences(faults: Result | None) -> str:
    """Return how many decisions of the released policy two engines make otherwise, as a sentence."""
    rows = filter_rows(faults["rows"], fault="engines", name="openvino against torch") if faults else []
    counts = [f"{row['different']} of {row['decisions']} in {find_game(row['game']).title}" for row in rows]
    return f" OpenVINO chooses another action than torch in {' and '.join(counts)}, greedily." if counts else ""


def released_section(result: Result, engines: str = "") -> Section:
    """Return the released policy's scores beside published ones; `engines`: how much these differ."""
    return Section(
        "released-policy",
        "The released policy",
        "One policy plays all games. Mean scores of whole games with true rewards, on seeds kept for publishing, with "
        "95 % bootstrap intervals over games, stratified by seed (rliable). DQN, IQN and Rainbow are Dopamine's after "
        "200 M frames, with sticky actions too; human scores are of no-op starts without sticky actions. No human "
        f"score of Carnival is published.{engines}",
        [result],
        [tables.released_table(result["rows"]), tables.all_scores_table(result["rows"])],
        lambda: score_charts(result["rows"]),
    )


def robustness_section(results: Sequence[Result]) -> Section:
    """Return the scores under changed conditions of play beside those of plain play."""
    changes = "; ".join(f"{one.name}: {one.meaning}" for one in CONDITIONS.values() if one is not UNCHANGED)
    return Section(
        "robustness",
        "Robust scores",
        "The same agents on the same seeds under changes that a human would hardly mind. Differences are of games of "
        "the same seed and number, with paired 95 % bootstrap intervals. Where neither agent nor emulator draws, all "
        f"games are one game. {changes}.",
        results,
        robustness_tables(all_rows(results)),
    )


def score_section(results: Sequence[Result], name: str, title: str, text: str) -> Section:
    """Return the scores of other agents, from results of `agents.score`."""
    text, rows = f"{text}Means with 95 % bootstrap intervals over games, stratified by seed.", all_rows(results)
    return Section(name, title, text, results, [tables.all_scores_table(rows)], lambda: score_charts(rows))


def score_charts(rows: list[Row]) -> list[Chart]:
    """Return the performance profile of every agent, a chart for each game."""
    games = dict.fromkeys(row["game"] for row in rows)
    return [profile_chart(agent_scores(rows, game), find_game(game).title) for game in games]


def agent_scores(rows: list[Row], game: str) -> dict[str, SeedScores]:
    """Return the scores of each agent at each temperature in a game, by seed."""

    def label(row: Row) -> str:
        temperature = "" if row.get("temperature") is None else f", temperature {row['temperature']:g}"
        return f"{row['agent'].partition(':')[0]}{temperature}"

    groups = group_rows(filter_rows(rows, game=game), label)
    return {agent: [row["scores"] for row in own] for (_, agent), own in groups.items()}


def pvp_section(result: Result, images: Sequence[Path]) -> Section:
    """Return the study of pixel precision."""
    rows = result["rows"]
    return Section(
        "pvp-nano",
        "pvp-nano: does a frozen encoder cost pixel precision?",
        "Trained on augmented frames of 22 games and synthetic images; evaluated on unseen games, photographs and "
        "other synthetic images, where only reading helps, and on held-out episodes of the training games. Means with "
        "95 % t-intervals over training seeds.",
        [result],
        [
            tables.pvp_table(rows, "Mean absolute error of 255, all cells of 8 x 8 pixels"),
            tables.pvp_table(rows, "The same on small objects", "mae_small_objects"),
            tables.gates_table(rows),
            tables.probe_table(rows),
        ],
        lambda: [curve_chart(rows, regime, name) for regime, name in tables.EVAL_SETS],
        images,
        "the original, its grid, the frozen and the adapted model's predictions",
    )


def reader_section(result: Result, images: Sequence[Path]) -> Section:
    """Return what the released reader sees."""
    return Section(
        "reader",
        "reader: what the released reader sees",
        "Greedy answers at every cell of 9 x 9 pixels of a native frame. No training saw the held-out games, the "
        "photographs or these synthetic images. Intervals are a 95 % bootstrap over images.",
        [result],
        [tables.reader_table(result["rows"])],
        images=images,
        image_caption="each three: the original, its cells, the answers",
    )


def one_model_section(result: Result, scores: Result | None, images: Sequence[Path]) -> Section:
    """Return what the one model does, with its scores if they are of the same weights."""
    hashes = {row["checkpoint"] for row in result["rows"]}
    played = [row for row in scores["rows"] if row.get("checkpoint") in hashes] if scores else []
    return Section(
        "one-model",
        "one-model: plays, reads and segments",
        "One directory of weights does all three. Scores are those of the released policy above. Errors are of greedy "
        "answers at every cell of the grid; no training saw the held-out games, the photographs or these synthetic "
        "images. Masks are of expressions about the last two recordings of each of ten games, about objects and "
        "photographs that no training saw, and about games whose masks were never trained on.",
        [result],
        [tables.one_model_table(result["rows"], played)],
        images=images,
        image_caption="photographs and games never seen: the original, its cells, the answers; below, masks of "
        "expressions: the frame, the true mask, what is found; and the policy at play while it answers for every cell "
        "(`agents.play --see`)",
    )


def faults_section(result: Result) -> Section:
    """Return what kills, damaged files and failures of the machine led to."""
    return Section(
        "faults",
        "Faults: what is lost, and what gets in?",
        "The smallest runs of every command, broken in all the ways that come in days of running and from files of "
        "others. Columns count cases in which something went wrong, but for those that say how many there were. What "
        "the columns mean is in the help of `python -m experiments.faults`.",
        [result],
        fault_tables(result["rows"]),
    )


def optimizers_section(result: Result, images: Sequence[Path]) -> Section:
    """Return the time that AdamW and Muon take to an equal loss."""
    return Section(
        "optimizers",
        "optimizers: how much sooner does Muon get there?",
        "Training by AdamW for every parameter, and by Muon for weight matrices with AdamW for the rest, on the same "
        "batches. Muon is the default.",
        [result],
        [tables.optimizers_table(result["rows"])],
        images=images,
    )


def levers_section(result: Result, images: Sequence[Path]) -> Section:
    """Return the study of what makes pixel value prediction learn."""
    rows = result["rows"]
    return Section(
        "pvp-levers",
        "pvp-levers: what makes pixel value prediction learn?",
        "One setting that reads, and each of its levers taken away: equal steps and seeds, synthetic training images "
        "alone. Images of the three sets are of kinds that no training saw. The gates tell the link that fails: what a "
        "linear probe reads off the image tokens, the answers averaged over each patch, and the correlation of what is "
        "answered within a patch with the truth.",
        [result],
        [tables.levers_table(rows, name) for name in ("held-out games", "photographs", "synthetic")],
        images=images,
    )


def games_section(result: Result, images: Sequence[Path]) -> Section:
    """Return the study of play."""
    rows = result["rows"]
    fractions = sorted({row["data_fraction"] for row in rows if "data_fraction" in row}, reverse=True)
    profiles = {
        f"{find_game(game).title}, {fraction:.0%} of the demonstrations": {
            label: [row["scores"] for row in own]
            for label, own in tables.by_condition(rows, game=game, data_fraction=fraction).items()
        }
        for fraction in fractions
        for game in games_of(rows)
    }
    return Section(
        "games-nano",
        "games-nano: do PVP and unfreezing help play?",
        "Policies cloned from the same games in the same number of steps. Mean scores have 95 % t-intervals over "
        "training seeds, interquartile means bootstrap intervals over games; P is the probability of improvement "
        "(rliable). Effects pair policies of the same training seed, in points of the mean score and in nats of the "
        "expert's log-likelihood in held-out games. Backgrounds can be memorized; small objects must be read.",
        [result],
        [
            tables.pvp_before_play_table(rows),
            *(
                table(rows, fraction)
                for fraction in fractions
                for table in (tables.game_score_table, tables.effect_table)
            ),
        ],
        lambda: [profile_chart(scores, title) for title, scores in profiles.items() if scores],
        images,
        "games-nano",
    )


def segmentation_section(result: Result, images: Sequence[Path]) -> Section:
    """Return the study of referring segmentation."""
    return Section(
        "refer-nano",
        "refer-nano: do PVP and unfreezing help referring segmentation?",
        "Masks after PVP, without it, and after its control, whose colours are shuffled among images. Percent, with "
        "95 % t-intervals over training seeds.",
        [result],
        [
            tables.segmentation_table(result["rows"], f"{title}, {name}", method, name)
            for method, title in (("head", "Mask head"), ("points", "Points as text"))
            for name in ("test", "held-out games")
            if filter_rows(result["rows"], mask=method, set=name)
        ],
        images=images,
        image_caption="expressions: the truth, then the masks of each condition",
    )


def rewards_section(result: Result, images: Sequence[Path]) -> Section:
    """Return the study of learning from rewards alone."""
    played = [row for row in result["rows"] if "scores" in row]
    seeds, trainings = ({str(row[name]) for row in played} for name in ("seed", "training_seed"))
    return Section(
        "from-rewards",
        "from-rewards: PPO on text answers beside SB3's PPO",
        "A game without an expert of its own, learned from rewards clipped to their sign. The text policy starts from "
        "the released policy, which never saw the game, and SB3's convolutional policy from random weights; they "
        "trained side by side, on a core each. Minutes are of play and optimizer steps, evaluations apart. Scores are "
        f"of whole games of seed {', '.join(sorted(seeds))}, actions drawn, by what each training (seed "
        f"{', '.join(sorted(trainings))}) ended with. One training of each tells nothing of another's luck.",
        [result],
        learning_tables(result["rows"]),
        images=images,
        image_caption="what was earned in training over time and over frames",
    )


def speed_section(results: Sequence[Result]) -> Section:
    """Return the benchmarks."""
    return Section(
        "benchmarks",
        "Benchmarks: speed beside a baseline",
        "Candidate and baseline are interleaved in one run. The ratio is the candidate's figure over the baseline's: "
        "above 1 is faster in a rate, slower in milliseconds.",
        results,
        [tables.benchmark_table(all_rows(results))],
    )
