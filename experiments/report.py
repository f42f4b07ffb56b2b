"""One page from the committed results: what was claimed, what was measured, and the command that measures it again.

    python -m experiments.report --out report
    python -m experiments.report --out report --videos videos/frozen.mp4 videos/adapted.mp4
    python -m experiments.report --markdown                        the tables of the README

The page asks nothing of a network: styles, plots and pictures lie in it, videos beside it. What a result file does not
hold yet is left out and said to be missing. Figures come from `experiments/results/*.json` alone.
"""

import base64
import io
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import tyro
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from agents.score_table import human_normalized_scores, summarize
from common.command import run
from common.errors import UserError
from common.results import RESULTS, read_result
from envs.games import find_game
from envs.reference_scores import all_references
from experiments.statistics import (
    FLOORS,
    PVP_SETS,
    Line,
    Mean,
    agent_games,
    arm_games,
    arm_scores,
    curves,
    difference,
    filter_rows,
    gain_lines,
    game_lines,
    mean_over_seeds,
    meaning_lines,
    paired_differences,
    performance_profiles,
    probability_of_improvement,
    pvp_lines,
    reading_lines,
    refer_lines,
)

TEMPLATE = "report.html.j2"
READING = ("adapted", "frozen", "image mean", "patch mean")
COLOURS = {"adapted": "#c2620e", "frozen": "#4c72b0"}


@dataclass
class Args:
    """Make a page, or the README's tables, of the committed results."""

    out: Path = Path("report")
    """The folder of the page, `index.html`, and of its videos."""
    results: Path = RESULTS
    """The folder of result files."""
    videos: tuple[Path, ...] = ()
    """Videos to show side by side."""
    markdown: bool = False
    """Print the tables as Markdown instead."""


@dataclass(frozen=True)
class Table:
    """A caption, column names and lines."""

    caption: str
    columns: tuple[str, ...]
    lines: list[Line]


@dataclass(frozen=True)
class Plot:
    """A drawing as SVG, and what it shows."""

    svg: str
    caption: str


@dataclass(frozen=True)
class Medium:
    """A picture or a video, and what it shows."""

    source: str
    caption: str
    video: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page. command: what measures it again; origin: commit, date, seeds and machine, in words."""

    name: str
    title: str
    text: str
    command: str
    origin: str
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    media: list[Medium] = field(default_factory=list)


Result = dict[str, Any]


def read_results(folder: Path) -> dict[str, Result]:
    """Return the result files of a folder by name."""
    found = {file.stem: read_result(file) for file in sorted(folder.glob("*.json"))}
    if not found:
        raise UserError(f"expected result files in {folder}, found none; experiments.run and agents.score make them")
    return found


def answers(results: dict[str, Result]) -> list[str]:
    """Return the page's first sentences: what freezing costs and what PVP adds, in each job that was measured."""
    said = [answer_of_reading(results["pvp-nano"]["rows"])] if "pvp-nano" in results else []
    if "refer-nano" in results:
        said.append(answer_of_masks(results["refer-nano"]["rows"]))
    else:
        said.append(
            "Referring segmentation (paper: +10.19 cIoU): not measured yet, python -m experiments.run refer-nano."
        )
    if "games-nano" in results:
        said.append(answer_of_games(results["games-nano"]["rows"]))
    else:
        said.append("Playing games with and without it: not measured yet, python -m experiments.run games-nano.")
    return said


def answer_of_reading(rows: list[dict[str, Any]]) -> str:
    """Return what freezing the encoder costs in reading pixels of games never seen."""
    own = filter_rows(rows, regime="open", set="held-out games", sample=False)
    arms = {arm: filter_rows(own, encoder=arm) for arm in ("adapted", "frozen")}
    means = {arm: mean_over_seeds(found, "mae") for arm, found in arms.items()}
    less = difference(arms["frozen"], arms["adapted"], "mae")
    if less is None or not all(means.values()):
        return "Reading pixels: no arm of pvp-nano is finished."
    told = {arm: mean.text() for arm, mean in means.items() if mean}
    return (
        f"Reading pixels of games never seen: an encoder that is taught pixel values and not frozen is "
        f"{told['adapted']} of 255 off, a frozen one {told['frozen']}: {_more(less)} with unfreezing "
        f"({less.n} training seed{'s, 95 % intervals' if less.n > 1 else ''})."
    )


def answer_of_masks(rows: list[dict[str, Any]]) -> str:
    """Return what PVP and unfreezing add in referring segmentation by the mask head."""
    pairs = {  # what is added, with it and without
        "PVP": ("pvp", ("adapted", "none")),
        "PVP under a new decoder": ("sight", ("adapted", "none")),
        "its colours": ("pvp", ("adapted", "shuffled")),
        "unfreezing": ("pvp", ("frozen", "pvp")),
    }
    own, parts = filter_rows(rows, mask="head", set="test"), []
    for name, (with_it, (encoder, without)) in pairs.items():
        base, other = filter_rows(own, encoder="adapted", pvp=with_it), filter_rows(own, encoder=encoder, pvp=without)
        if gain := difference(base, other, "ciou"):
            parts.append(f"{name} {gain.text(1, 100)}")
    return (
        f"Referring segmentation (paper: +10.19 cIoU), points of cIoU added by: {', '.join(parts) or 'not measured'}."
    )


def answer_of_games(rows: list[dict[str, Any]]) -> str:
    """Return what PVP and unfreezing add to scores, and how likely a policy taught pixel values beats one that was not,
    with each share of the demonstrations.
    """
    parts = []
    for share in sorted({row["share"] for row in rows if "share" in row}, reverse=True):
        others = {"PVP": ("adapted", "none"), "unfreezing": ("frozen", "pvp")}
        said = [_game_gain(rows, share, name, other) for name, other in others.items()]
        (_, taught), (_, plain) = (arm_scores(rows, "adapted", pvp, share) for pvp in ("pvp", "none"))
        if len(taught) > 1 and len(plain) > 1:
            chance, low, high = probability_of_improvement(taught, plain)
            said.append(f"a policy with PVP beats one without at {chance:.2f} [{low:.2f}, {high:.2f}]")
        if told := "; ".join(part for part in said if part):
            parts.append(f"{'With' if parts else 'with'} {share:.0%} of the demonstrations {told}")
    if not parts:
        return "Playing games: too few arms yet."
    return f"Playing games, points of the mean score: {'. '.join(parts)}. {_how_read(rows)}".strip()


def _how_read(rows: list[dict[str, Any]]) -> str:
    """Return how well the arms with PVP had learnt to read the games' frames, without which PVP adds nothing."""
    told = [
        f"{line.about} {line.cells['adapted']} (the image's mean {line.cells['image mean']})"
        for line in reading_lines(rows)
        if line.cells["adapted"] != "-"
    ]
    return f"How far off an adapted encoder's answers are after PVP, of 255: {'; '.join(told)}." if told else ""


def _game_gain(rows: list[dict[str, Any]], share: float, name: str, other: tuple[str, str]) -> str:
    """Return what the adapted arm with PVP has more than another, in words; nothing where it is not measured."""
    games = sorted({row["game"] for row in rows})
    found = {game: paired_differences(rows, share, game, ("adapted", "pvp"), other)[0] for game in games}
    told = ", ".join(f"{gain.text(0)} in {find_game(game).title}" for game, gain in found.items() if gain)
    return f"{name} adds {told}" if told else ""


def _more(less: Mean) -> str:
    side = "less error" if less.value > 0 else "more error"
    return f"{Mean(abs(less.value), less.half, less.n).text()} {side}"


def origin(result: Result) -> str:
    """Return where figures come from, in words."""
    commits = sorted({str(row.get("commit") or result["commit"])[:7] for row in result["rows"]})
    seeds = ", ".join(str(seed) for seed in result["seeds"])
    protocol = f"protocol {result['protocol']['name']}; " if result.get("protocol") else ""
    devices = sorted({row["device"] for row in result["rows"] if row.get("device", "cpu") != "cpu"})
    machines = ", ".join([result["machine"], *devices])
    return f"{protocol}seeds {seeds}; commit {', '.join(commits)}; {result['date'][:10]}; {machines}."


def pvp_section(result: Result, pictures: Sequence[Path]) -> Section:
    """Return the part on reading pixels."""
    rows = result["rows"]
    columns = ("adapted", "frozen", "adapted / frozen", *FLOORS)
    tables = [
        Table("Mean absolute error of 255, all places of a 32 x 32 grid", columns, pvp_lines(rows)),
        Table("The same on small objects", columns, pvp_lines(rows, "mae_small_objects")),
        Table(
            "What the encoder knows of meaning and of detail",
            ("semantic encoder", "adapted, open", "adapted, familiar"),
            meaning_lines(rows),
        ),
    ]
    return Section(
        "reading",
        "Reading pixels: what freezing costs",
        "Familiar: held-out episodes of games seen in training, which can be half answered from memory. Open: images "
        "made strange in training, measured on games never seen, photographs and synthetic images; only reading helps.",
        "python -m experiments.run pvp-nano",
        origin(result),
        tables,
        [plot_curve(rows, regime, name) for regime, name in PVP_SETS],
        [Medium(embed(file), "original, its grid, what the frozen and the adapted model answer") for file in pictures],
    )


def plot_curve(rows: list[dict[str, Any]], regime: str, name: str) -> Plot:
    """Draw the errors on a set along training, beside the image's mean."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(4.4, 2.8), layout="constrained")
    for arm, points in curves(rows, regime, name).items():
        if points:
            axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=arm, color=COLOURS[arm])
    for row in filter_rows(rows, regime=regime, set=name, floor="image mean"):
        axis.axhline(row["mae"], color="#888888", linewidth=0.9, linestyle=":", label="image mean")
    axis.set_xlabel("step")
    axis.set_ylabel("error of 255")
    axis.set_ylim(bottom=0)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)
    caption = f"{name} ({regime}): error on a sample of places, along training"
    return Plot(_svg(figure), caption)


def plot_profiles(games: dict[str, list[list[float]]], title: str) -> Plot:
    """Draw each agent's share of games above a score; see `summaries.performance_profiles`."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(4.4, 2.8), layout="constrained")
    for name, profile in performance_profiles(games).items():
        (line,) = axis.plot(profile.scores, profile.share, label=name)
        axis.fill_between(profile.scores, profile.low, profile.high, color=line.get_color(), alpha=0.2, linewidth=0)
    axis.set_xlabel("score")
    axis.set_ylabel("share of games above it")
    axis.set_ylim(0, 1)
    axis.legend(fontsize=7)
    caption = f"{title}: performance profiles (Agarwal et al. 2021), 95 % intervals shaded"
    return Plot(_svg(figure), caption)


def _svg(figure: Any) -> str:
    from matplotlib import pyplot

    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return svg.getvalue()[svg.getvalue().index("<svg") :]


def refer_section(result: Result, pictures: Sequence[Path]) -> Section:
    """Return the part on masks."""
    tables = [
        Table(f"{way} on {name}, of 100", ("ciou", "giou", "p50"), refer_lines(result["rows"], mask, name))
        for mask, way in (("head", "Mask head"), ("points", "Points in text"))
        for name in ("test", "held-out games")
    ]
    return Section(
        "masks",
        "Referring segmentation: a mask for the words",
        "Frozen and adapted encoders, with and without pixel value prediction, and with its colours shuffled among "
        "images, a control that teaches coordinates and no detail.",
        "python -m experiments.run refer-nano",
        origin(result),
        tables,
        media=[Medium(embed(file), "truth and answer") for file in pictures],
    )


def game_section(result: Result) -> Section:
    """Return the part on the claim about games."""
    rows = result["rows"]
    games = sorted({row["game"] for row in rows})
    shares = sorted({row["share"] for row in rows if "share" in row}, reverse=True)
    columns = (*games, *(f"{game}, IQM" for game in games), "better than adapted, no PVP")
    added = tuple(f"{game}, {unit}" for unit in ("points", "nats") for game in games)
    return Section(
        "games",
        "Playing: what an unfrozen encoder and pixel value prediction add",
        "Mean scores of policies cloned from the same games in the same number of steps, with intervals over training "
        "seeds; interquartile means over all games, with intervals over games; and rliable's probability of "
        "improvement. What is added: points of the mean score, and nats by which the teacher is foretold better in "
        "games that no policy learnt from, of policies of the same seed. PVP can add something only where it is "
        "learnt, so how far off its answers are stands first: backgrounds of these games can be remembered, small "
        "objects that move have to be read.",
        "python -m experiments.run games-nano",
        origin(result),
        [
            Table("What PVP has taught: error of pixels before play, of 255", READING, reading_lines(rows)),
            *(
                table
                for share in shares
                for table in (
                    Table(f"With {share:.0%} of the demonstrations", columns, game_lines(rows, share)),
                    Table(f"What is added, with {share:.0%} of the demonstrations", added, gain_lines(rows, share)),
                )
            ),
        ],
        [
            plot_profiles(scores, f"{find_game(game).title}, {share:.0%} of the demonstrations")
            for share in shares
            for game in games
            if (scores := arm_games(rows, game, share))
        ],
    )


def shares_table(agent: str, shares: dict[str, float]) -> Table:
    """Return what an agent plays of a person's game, 0 being random play."""
    lines = [Line(find_game(name).title, {"share": f"{share:.2f}"}) for name, share in shares.items()]
    lines.append(Line("median", {"share": f"{np.median(list(shares.values())):.2f}"}))
    return Table(f"{agent}: 0 random play, 1 a person", ("share",), lines)


def score_section(result: Result, anchor: str, title: str, videos: Sequence[Medium] = ()) -> Section:
    """Return a part on play; where several games were played, with what they sum up to."""
    tables, plots = [], []
    table = summarize(result["rows"])
    for name in dict.fromkeys(line["game"] for line in table):
        lines = [
            Line(
                line["agent"],
                {
                    "mean": f"{line['mean']:,.0f} [{line['low']:,.0f}, {line['high']:,.0f}]",
                    "IQM": f"{line['iqm']:,.0f}",
                    "games": str(line["games"]),
                },
            )
            for line in table
            if line["game"] == name
        ]
        known = all_references(find_game(name))
        lines += [Line(f"{r.agent} ({r.protocol}; {r.source})", {"mean": f"{r.score:,.0f}"}) for r in known]
        tables.append(Table(find_game(name).title, ("mean", "IQM", "games"), lines))
        plots.append(plot_profiles(agent_games(result["rows"], name), find_game(name).title))
    normalized = human_normalized_scores(table)
    tables += [shares_table(agent, shares) for agent, shares in normalized.items() if len(shares) > 2]
    return Section(
        anchor,
        title,
        "Scores of whole games with true rewards, on seeds kept for publishing; 95 % bootstrap intervals by rliable.",
        result["command"],
        origin(result),
        tables,
        plots,
        media=list(videos),
    )


def speed_section(results: Sequence[Result]) -> Section:
    """Return the part on speed."""
    lines = [
        Line(row["benchmark"], {"ours": f"{row['ours']:g}", "rival": f"{row['rival']:g}", "ratio": f"{row['ratio']:g}",
                                "unit": str(row.get("unit", "")), "rival is": str(row.get("rival_is", ""))})
        for result in results
        for row in result["rows"]
        if {"benchmark", "ours", "rival", "ratio"} <= row.keys()
    ]  # fmt: skip
    return Section(
        "speed",
        "Speed, each beside its rival in the same run",
        "A ratio is ours over the rival's in the unit given.",
        "; ".join(result["command"] for result in results),
        " ".join(origin(result) for result in results),
        [Table("Benchmarks", ("ours", "rival", "ratio", "unit", "rival is"), lines)],
    )


def embed(file: Path) -> str:
    """Return a PNG as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def sections(results: dict[str, Result], folder: Path, videos: Sequence[Medium] = ()) -> list[Section]:
    """Return the parts of the page for which there are results."""
    found = []
    if "pvp-nano" in results:
        found.append(pvp_section(results["pvp-nano"], sorted(folder.glob("pvp-nano*.png"))))
    if "refer-nano" in results:
        found.append(refer_section(results["refer-nano"], sorted(folder.glob("refer-nano*.png"))))
    if "games-nano" in results:
        found.append(game_section(results["games-nano"]))
    if "shipped" in results:
        found.append(score_section(results["shipped"], "play", "Playing: whole games, text actions", videos))
    if "experts" in results:
        found.append(score_section(results["experts"], "experts", "Experts with access to the simulator"))
    if "eight" in results:
        found.append(score_section(results["eight"], "eight", "Eight games by one policy"))
    speeds = [result for name, result in results.items() if name.startswith("bench")]
    return [*found, speed_section(speeds)] if speeds else found


def copy_videos(videos: Sequence[Path], out: Path) -> list[Medium]:
    """Put videos beside the page."""
    media = []
    for number, video in enumerate(videos):
        if not video.is_file():
            raise UserError(f"expected a video, got {video}, which does not exist")
        name = f"{number}-{video.name}"
        shutil.copyfile(video, out / name)
        media.append(Medium(name, video.stem, video=True))
    return media


def write_page(args: Args) -> Path:
    """Write the page; return its file."""
    results = read_results(args.results)
    args.out.mkdir(parents=True, exist_ok=True)
    parts = sections(results, args.results, copy_videos(args.videos, args.out))
    folder = FileSystemLoader(Path(__file__).parent)
    page = Environment(loader=folder, autoescape=True, undefined=StrictUndefined).get_template(TEMPLATE)
    file = args.out / "index.html"
    file.write_text(page.render(answers=answers(results), sections=parts))
    return file


def as_markdown(parts: Sequence[Section]) -> str:
    """Return the tables of all parts as Markdown."""
    out = []
    for table in (table for part in parts for table in part.tables):
        out += [
            f"**{table.caption}**",
            "",
            f"| | {' | '.join(table.columns)} |",
            "|---" * (len(table.columns) + 1) + "|",
        ]
        out += [
            f"| {line.about} | {' | '.join(line.cells.get(c, '-') for c in table.columns)} |" for line in table.lines
        ]
        out.append("")
    return "\n".join(out)


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    if args.markdown:
        print(as_markdown(sections(read_results(args.results), args.results)))
    else:
        print(f"the page is {write_page(args)}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
