"""What the documents promise: links that exist, commands that parse, a snippet that runs, a README of one screenful."""

import importlib
import importlib.util
import json
import re
import shlex
from pathlib import Path
from urllib.parse import unquote

import pytest
import tyro

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
MAX_README_BYTES = 6_144
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(
    r"(?:python|torchrun --nproc-per-node \S+|accelerate launch [^`\n]*?) -m ([a-z_0-9]+(?:\.[a-z_0-9]+)+)([^`\n]*)"
)
ROOMS = {"agents", "pretrain", "experiments", "envs"}


class Parsed(Exception):
    """A command's arguments were accepted; it is stopped before it does anything."""


def name(page):
    return str(page.relative_to(ROOT))


def anchors(page):
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands():
    """Return (page, module, arguments) of every command that the README and the pages show."""
    found = []
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue
        text = page.read_text().replace("\\\n", " ").replace("&amp;", "&")
        for module, rest in COMMAND.findall(text):
            if module.split(".")[0] in ROOMS:
                rest = re.split(r"\s(?:&&|\||#|&)\s?|;", rest.replace("\\|", "|"))[0]
                found.append((name(page), module, rest.strip().rstrip(",.:)")))
    return sorted(set(found))


def stored_commands():
    """Return (file, module, arguments) of every command that a committed result or checkpoint names."""
    found = []

    def walk(file, value):
        if isinstance(value, dict):
            for command in str(value.get("command", "")).split(";"):
                if match := COMMAND.search(command):
                    found.append((name(file), *match.groups()))
            value = list(value.values())
        for part in value if isinstance(value, list) else []:
            walk(file, part)

    results, weights = ROOT / "experiments" / "results", ROOT / "vlm" / "weights"
    for file in (*results.glob("*.json"), *weights.glob("*/training.json")):
        walk(file, json.loads(file.read_text()))
    return sorted(set(found))


def entry(module):
    """Return the module that holds a command's `main`."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"there is no module {module}"
    return importlib.import_module(f"{module}.__main__" if spec.submodule_search_locations else module)


def parse(module, arguments, monkeypatch):
    """Parse a command's arguments by its own `main`; nothing else of it runs."""
    original = tyro.cli

    def stop(*args, **kwargs):
        original(*args, **kwargs)
        raise Parsed

    monkeypatch.setattr(tyro, "cli", stop)
    with pytest.raises(Parsed):
        entry(module).main(arguments)


def test_the_readme_is_short():
    assert len(README.read_bytes()) <= MAX_README_BYTES


def test_every_interval_in_the_readme_is_in_the_results():
    table = README.read_text().replace("**", "").partition("## Results")[2].partition("##")[0]
    intervals = re.findall(r"[\d,.]+ \[[\d,.]+, [\d,.]+\]", table)
    assert len(intervals) == 5
    results = (ROOT / "docs" / "results.md").read_text()
    assert [interval for interval in intervals if interval not in results] == []


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "docs" / "log").glob("*.md"))], ids=name)
def test_every_relative_link_leads_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in LINK.findall(text):
        if "://" in link:
            continue
        target, _, anchor = unquote(link).partition("#")
        file = (page.parent / target) if target else page
        assert file.exists(), f"{name(page)} links to {link}"
        if anchor:
            assert anchor in anchors(file), f"{name(page)} links to {link}; headings: {sorted(anchors(file))}"


def test_the_documents_show_commands():
    modules = {module for _, module, _ in commands()}
    assert {
        "agents.play",
        "agents.record",
        "agents.clone",
        "agents.dagger",
        "pretrain.pvp",
        "experiments.run",
    } <= modules


@pytest.mark.parametrize(("page", "module", "arguments"), commands(), ids=lambda part: part.replace("/", "_"))
def test_every_command_in_the_documents_parses(page, module, arguments, monkeypatch):
    if not arguments or "..." in arguments or "NAME" in arguments:
        assert callable(entry(module).main)
    else:
        parse(module, shlex.split(arguments), monkeypatch)


def test_results_and_checkpoints_name_commands():
    assert len({file for file, _, _ in stored_commands()}) > 15


@pytest.mark.parametrize(("file", "module", "arguments"), stored_commands(), ids=lambda part: part[:60])
def test_every_command_that_made_a_result_or_a_checkpoint_still_parses(file, module, arguments, monkeypatch):
    parse(module, shlex.split(arguments), monkeypatch)


def test_every_command_of_the_readme_table_exists():
    rows = re.findall(r"^\| (`[a-z].*?) \|", README.read_text().partition("## Commands")[2], re.MULTILINE)
    assert len(rows) > 5
    for row in rows[1:]:
        room = ""
        for part in re.findall(r"`([\w.]+)", row):
            room = part.split(".")[0] or room
            assert callable(entry(part if part.startswith(room) else room + part).main), part


def test_every_folder_of_the_readme_tree_exists():
    tree = re.search(r"## Tree\n+```\n(.*?)```", README.read_text(), re.DOTALL)
    top = ""
    for line in tree[1].splitlines():
        folder = line.split()[0]
        top = top if line.startswith(" ") else folder
        assert (ROOT / (top + folder if line.startswith(" ") else folder)).is_dir(), line


def test_the_python_snippet_of_the_readme_runs(capsys):
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1]
    short = re.sub(r"( +)(for .*play_games.*:\n)", r"\1\2\1    if t.step == 3:\n\1        break\n", code)
    assert short != code
    exec(compile(short, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.slow
def test_a_game_is_played_as_the_readme_plays_it(tmp_path, capsys):
    arguments = ["--game", "Carnival", "--max-frames", "40", "--no-video", "--out", str(tmp_path)]
    assert entry("agents.play").main(arguments) == 0
    printed = capsys.readouterr().out
    shown = re.search(r"```\n(Carnival, machado2018\n.*?)```", README.read_text(), re.DOTALL)[1]
    for line in shown.splitlines():
        if "committed" in line or "200 M" in line:
            assert line in printed


def test_every_entry_of_the_log_is_in_its_index():
    index = (ROOT / "docs" / "log" / "README.md").read_text()
    rows = re.findall(r"^\| (\d{4}-\d\d-\d\d) \|", index, re.MULTILINE)
    assert rows == sorted(rows, reverse=True)
    for month in sorted((ROOT / "docs" / "log").glob("2*.md")):
        dates = set(re.findall(r"^## (\d{4}-\d\d-\d\d)", month.read_text(), re.MULTILINE))
        assert dates
        assert dates <= set(rows)
        assert all(date.startswith(month.stem) for date in dates)
        assert f"({month.name})" in index
