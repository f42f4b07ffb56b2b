"""One page, or pages of docs/, from the committed results: the paper's claims, our verdicts, all tables and commands.

    python -m experiments.report --out report
    python -m experiments.report --out report --videos videos/frozen.mp4 videos/adapted.mp4
    python -m experiments.report --markdown                        print docs/results.md
    python -m experiments.report --write-docs                      write it, and docs/model-classes.md

All numbers come from `experiments/results/*.json`. The page loads nothing from a network: styles, charts and images are
inside it, videos beside it. A study without a result file is marked as not measured.
"""

import base64
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from common.command import command, run
from common.errors import UserError
from common.files import atomic_file, write_text_atomically
from common.outputs import require_output_files
from common.provenance import ROOT
from common.results import RESULTS, read_result
from experiments.charts import effect_chart
from experiments.findings import Finding, headline_findings
from experiments.model_class_tables import TEXT, model_class_tables
from experiments.sections import Result, Section, commands, make_sections, provenance, rows_of
from experiments.tables import table_markdown

TITLE = "<title>pvplay: does pixel value prediction help?</title>"  # by which the page is known
DOCS = ROOT / "docs" / "results.md"
CLASSES, CLASSES_DOCS = "model-classes", ROOT / "docs" / "model-classes.md"
GENERATED = "Generated from `experiments/results/{}.json` by `python -m experiments.report --write-docs`."


@dataclass
class Args:
    """Make a page, or Markdown tables, of the committed results."""

    out: Path = Path("report")
    """The directory of the page, `index.html`, and of its videos."""
    results: Path = RESULTS
    """The directory of result files."""
    videos: tuple[Path, ...] = ()
    """Videos to show side by side."""
    markdown: bool = False
    """Print docs/results.md instead."""
    write_docs: bool = False
    """Write docs/results.md, and docs/model-classes.md, instead."""


def read_results(folder: Path) -> dict[str, Result]:
    """Return the result files of a directory by name."""
    found = {file.stem: read_result(file) for file in sorted(folder.glob("*.json"))}
    if not found:
        raise UserError(f"expected result files in {folder}, found none; experiments.run and agents.score make them")
    return found


def copy_name(number: int, video: Path) -> str:
    """Return the name of a video beside the page."""
    return f"{number}-{video.name}"


def copy_videos(videos: Sequence[Path], out: Path) -> list[dict[str, str]]:
    """Copy videos beside the page; return the source and caption of each."""
    copied = []
    for number, video in enumerate(videos):
        if not video.is_file():
            raise UserError(f"expected a video, got {video}, which does not exist")
        name = copy_name(number, video)
        with atomic_file(out / name) as temporary:
            shutil.copyfile(video, temporary)
        copied.append({"source": name, "caption": video.stem})
    return copied


def embed_png(file: Path) -> str:
    """Return a PNG as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def write_page(args: Args) -> Path:
    """Write the page; return its file."""
    results = read_results(args.results)
    page_file = args.out / "index.html"
    copies = [args.out / copy_name(number, video) for number, video in enumerate(args.videos)]
    require_output_files([page_file, *copies], [*args.videos, args.results])
    if page_file.exists() and TITLE not in page_file.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"{page_file} exists and is another page; choose another --out")
    args.out.mkdir(parents=True, exist_ok=True)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    environment.filters.update(embed_png=embed_png, provenance=provenance, commands=commands)
    sections, videos = make_sections(results, args.results), copy_videos(args.videos, args.out)
    with rows_of(str(args.results)):
        cards = [(finding, effect_chart(finding.effects, finding.axis)) for finding in headline_findings(results)]
        page = environment.get_template("report.html.j2").render(cards=cards, sections=sections, videos=videos)
    write_text_atomically(page_file, page)
    return page_file


def results_markdown(folder: Path = RESULTS) -> str:
    """Return docs/results.md: every section with its verdict, tables, commands and provenance."""
    results = read_results(folder)
    sections = make_sections(results, folder)
    with rows_of(str(folder)):
        findings = {finding.section: finding for finding in headline_findings(results)}
    parts = [f"# Results\n\n{GENERATED.format('*')}"]
    parts += [section_markdown(section, findings.get(section.name)) for section in sections]
    return "\n\n".join(parts) + "\n"


def classes_markdown(folder: Path = RESULTS) -> str:
    """Return docs/model-classes.md: which classes of transformers do which tasks."""
    result = read_result(folder / f"{CLASSES}.json")
    with rows_of(CLASSES):
        section = Section(CLASSES, "Tasks", TEXT, [result], model_class_tables(result["rows"]))
    return f"# Model classes of transformers\n\n{GENERATED.format(CLASSES)}\n\n{section_markdown(section, None)}\n"


def section_markdown(section: Section, finding: Finding | None) -> str:
    """Return a section as Markdown."""
    parts = [f"## {section.title}", section.text]
    if finding:
        parts.insert(1, f"**{finding.verdict}.** {finding.sentence}")
    parts += [table_markdown(table) for table in section.tables]
    parts += [f"![{section.image_caption}]({os.path.relpath(image, DOCS.parent)})" for image in section.images]
    for result in section.results:
        lines = "\n".join(commands(result)).replace("; ", "\n")
        parts += [f"```bash\n{lines}\n```", provenance(result)]
    return "\n\n".join(parts)


@contextmanager
def _complete_rows(folder: Path) -> Iterator[None]:
    """Turn what a table or a chart misses in rows into a `UserError`."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"a result file in {folder} lacks what the report reads in its rows: {reason}") from error


def write(args: Args) -> str:
    """Write the page or the document; return what to print."""
    with _complete_rows(args.results):
        if args.markdown:
            return results_markdown(args.results).removesuffix("\n")
        if args.write_docs:
            write_text_atomically(DOCS, results_markdown(args.results))
            write_text_atomically(CLASSES_DOCS, classes_markdown(args.results))
            return f"wrote {DOCS} and {CLASSES_DOCS}"
        return f"the page is {write_page(args)}"


main = command(Args, write, __doc__, "{}", output=lambda args: None if args.markdown or args.write_docs else args.out)

if __name__ == "__main__":
    sys.exit(run(main))
