"""The page and docs/results.md come from result files alone; the page's first screen on a phone holds the verdicts."""

import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from common.command import run
from common.results import new_result, write_result
from envs.protocol import MACHADO2018
from experiments import report
from experiments.sections import agent_scores, commands, provenance
from experiments.tables import released_table

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
PHONE_WIDTH, SCREEN_HEIGHT = 420, 900


def command(*arguments):
    return run(lambda: report.main([str(argument) for argument in arguments]))


@pytest.fixture
def results(tmp_path):
    """Result files of one study and of scores, and an image."""
    folder, study, scores = tmp_path / "results", *(new_result(name, None, [0]) for name in ("pvp-nano", "shipped"))
    row = {"regime": "out-of-distribution", "set": "held-out games", "sample": False, "step": 9}
    study["rows"] = [
        {**row, "encoder": encoder, "seed": seed, "mae": mae + seed, "mae_small_objects": None}
        for encoder, mae in (("adapted", 10.0), ("frozen", 20.0))
        for seed in (0, 1)
    ]
    write_result(folder / "pvp-nano.json", study)
    game = {"agent": "vlm", "game": "Carnival", "checkpoint": "abc", "decode": "scores", "temperature": 0.0}
    game |= {"invalid": 0.0, "steps_per_second": 99.0}
    scores["protocol"] = MACHADO2018.to_dict()
    scores["rows"] = [{**game, "seed": seed, "scores": [100.0, 300.0]} for seed in (1000, 1001)]
    write_result(folder / "shipped.json", scores)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "pvp-nano-0.png")
    return folder


def test_a_result_is_given_with_protocol_seeds_commit_and_all_devices(results):
    study, scores = (json.loads((results / f"{name}.json").read_text()) for name in ("pvp-nano", "shipped"))
    assert "protocol machado2018; seeds 0; " in provenance(scores)
    study["rows"][0]["device"], study["rows"][1]["device"] = "NVIDIA H200", "cpu"
    assert provenance(study).endswith(f"; {study['machine']}, NVIDIA H200.")


def test_scores_under_conditions_are_a_section_with_paired_differences(results, capsys):
    result = json.loads((results / "shipped.json").read_text())
    (plain, _) = result["rows"]
    changed = {**plain, "condition": "shifted", "scores": [40.0, 240.0]}
    write_result(results / "robustness.json", {**result, "name": "robustness", "rows": [plain, changed]})
    assert command("--results", results, "--markdown") == 0
    section = capsys.readouterr().out.partition("## Robust scores")[2].partition("\n## ")[0]
    assert "**Carnival**" in section
    assert "shifted: the picture moved by 4 pixels to the right and down" in section
    assert "| vlm scores, temperature 0: unchanged | 200 [100, 300] | - | - | 2 |" in section
    assert "| vlm scores, temperature 0: shifted | 140 [40, 240] | -60 [-60, -60] | 70% | 2 |" in section
    assert "protocol machado2018" in section


def test_scores_are_grouped_by_agent_and_temperature():
    rows = [
        {"agent": "vlm:some/where", "game": "Carnival", "temperature": 0.3, "scores": [1.0]},
        {"agent": "random", "game": "Carnival", "seed": 1, "scores": [2.0]},
        {"agent": "random", "game": "Carnival", "seed": 2, "scores": [3.0]},
        {"agent": "random", "game": "MsPacman", "scores": [4.0]},
    ]
    assert agent_scores(rows, "Carnival") == {"vlm, temperature 0.3": [[1.0]], "random": [[2.0], [3.0]]}


def test_the_scores_of_two_engines_and_of_two_checkpoints_are_not_one_line():
    row = {"agent": "vlm", "game": "Pong", "seed": 0, "temperature": 0.5, "engine": "torch", "checkpoint": "abc"}
    rows = [{**row, "scores": [1.0]}, {**row, "engine": "openvino", "scores": [2.0]}]
    rows.append({**row, "agent": "vlm:runs/a/last", "checkpoint": "def", "scores": [3.0]})
    assert sorted(agent_scores(rows, "Pong").values()) == [[[1.0]], [[2.0]], [[3.0]]]


def test_several_policies_of_a_game_have_rows_of_their_own():
    row = {"game": "Pong", "seed": 0, "invalid": 0.0, "steps_per_second": 1.0}
    rows = [{**row, "agent": agent, "scores": [score]} for agent, score in (("planner", 9.0), ("vlm", 5.0))]
    rows.append({**row, "agent": "random", "scores": [-21.0]})
    table = released_table(rows)
    assert [(label, cells["policy"], cells["random"]) for label, cells in table.rows] == [
        ("Pong: planner", "9 [9, 9]", "-21 [-21, -21]"),
        ("Pong: vlm", "5 [5, 5]", "-21 [-21, -21]"),
    ]


def test_another_page_and_a_video_are_not_written_over(results, tmp_path, capsys):
    (tmp_path / "0-a.mp4").write_bytes(b"film")
    (tmp_path / "a.mp4").write_bytes(b"other film")
    videos = ("--videos", tmp_path / "a.mp4", tmp_path / "0-a.mp4")
    assert command("--results", results, "--out", tmp_path, *videos) == 2
    assert "0-a.mp4 would be written over what is read" in capsys.readouterr().err
    assert (tmp_path / "0-a.mp4").read_bytes() == b"film"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("<title>mine</title>")
    assert command("--results", results, "--out", tmp_path / "site") == 2
    assert "exists and is another page" in capsys.readouterr().err
    assert command("--results", results, "--out", tmp_path / "page") == 0
    assert command("--results", results, "--out", tmp_path / "page") == 0


@pytest.mark.parametrize("flag", ["--markdown", "--out"])
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("shipped", lambda result: result.pop("date"), "KeyError: 'date'"),
        ("shipped", lambda result: result.update(rows=3), "shipped.json is damaged: rows: input should be"),
        ("shipped", lambda result: result.update(rows=[3]), "shipped.json is damaged: rows.0: input should be"),
        ("shipped", lambda result: result["rows"][0].update(scores=[float("nan")]), "rows.0.scores.0: input should be"),
        ("shipped", lambda result: result["rows"][1].update(scores=["9"]), "rows.1.scores.0: input should be"),
        ("shipped", lambda result: result["rows"][0].pop("game"), "shipped: its rows are not those of such a result"),
        ("shipped", lambda result: result["rows"][0].update(game="Chess"), "shipped: expected a game of the Arcade"),
        ("pvp-nano", lambda result: result["rows"][0].pop("set"), "pvp-nano: its rows are not those of such a result"),
        ("pvp-nano", lambda result: result["rows"][0].update(mae="low"), "pvp-nano: its rows are not those of"),
        ("pvp-nano", lambda result: result["rows"].append(result["rows"][0] | {"mae": 1.0}), "pvp-nano: expected one"),
    ],
)  # fmt: skip
def test_a_result_of_other_content_is_one_line_with_its_name(results, tmp_path, capsys, flag, name, change, message):
    file = results / f"{name}.json"
    result = json.loads(file.read_text())
    change(result)
    file.write_text(json.dumps(result))
    out = () if flag == "--markdown" else (tmp_path / "page",)
    assert command("--results", results, flag, *out) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_result_that_is_nested_without_end_is_refused(results, capsys):
    (results / "deep.json").write_text("[" * 200_000)
    assert command("--results", results, "--markdown") == 2
    assert "deep.json is damaged" in capsys.readouterr().err


def test_the_page_embeds_its_images_and_loads_nothing_from_a_network(results, tmp_path):
    (tmp_path / "game.mp4").write_bytes(b"film")
    assert command("--results", results, "--out", tmp_path / "page", "--videos", tmp_path / "game.mp4") == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", page)
    (image,) = re.findall(r"<img src=\"data:image/png;base64,([^\"]+)\"", page)
    assert base64.b64decode(image).startswith(b"\x89PNG")
    assert (tmp_path / "page" / "0-game.mp4").read_bytes() == b"film"
    assert page.index('class="verdict') < page.index("<nav") < page.index("200 [")


@pytest.mark.slow
def test_the_committed_document_holds_what_the_committed_results_give():
    assert report.DOCS.read_text() == report.results_markdown(), "run python -m experiments.report --write-docs"


def test_missing_files_are_refused_in_one_line(results, tmp_path, capsys):
    assert command("--results", tmp_path / "none", "--out", tmp_path / "page") == 2
    assert "found none" in capsys.readouterr().err
    assert command("--results", results, "--out", tmp_path / "page", "--videos", tmp_path / "none.mp4") == 2
    assert "none.mp4, which does not exist" in capsys.readouterr().err


def browse(page, folder, width, *arguments):
    """Open a page in a browser; return its output and its errors."""
    offline = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *offline]
    words += [f"--window-size={width},{SCREEN_HEIGHT}", f"--user-data-dir={folder / 'profile'}", *arguments]
    done = subprocess.run([str(BROWSER), *words, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    assert "net::ERR" not in done.stderr
    return done.stdout


LAYOUT = """<script>
document.documentElement.style.width = "%dpx"; // a window may be no narrower than 500
const box = one => one.getBoundingClientRect();
const boxes = [...document.querySelectorAll(".card .verdict, .card svg")].map(one => [box(one).top, box(one).bottom]);
document.body.dataset.layout = JSON.stringify([document.body.scrollWidth, boxes]);
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_the_first_screen_of_a_phone_holds_three_verdicts_and_three_charts(tmp_path):
    assert command("--out", tmp_path) == 0
    page = tmp_path / "index.html"
    page.write_text(page.read_text().replace("</body>", LAYOUT % PHONE_WIDTH))
    dom = browse(page, tmp_path, PHONE_WIDTH, "--dump-dom")
    width, boxes = json.loads(re.search(r'data-layout="([^"]+)"', dom)[1])
    assert width <= PHONE_WIDTH
    assert len(boxes) == 6
    assert all(0 <= top < bottom <= SCREEN_HEIGHT for top, bottom in boxes)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [PHONE_WIDTH, 1280])
def test_a_browser_opens_the_page_from_the_file_system_without_a_complaint(results, tmp_path, width):
    assert command("--results", results, "--out", tmp_path / "page") == 0
    browse(tmp_path / "page" / "index.html", tmp_path, width, f"--screenshot={tmp_path / 'seen.png'}")
    seen = np.asarray(Image.open(tmp_path / "seen.png").convert("RGB"))
    assert seen.shape[1] >= width
    assert seen.std() > 5


def test_what_a_result_says_cannot_write_to_the_terminal_or_into_the_page(results, tmp_path, capsys):
    content = json.loads((results / "shipped.json").read_text())
    content["command"] = "python \x1b]0;title\x07 <script>"
    content["rows"][0]["agent"] = "vlm:a/\x1b[2J"
    (results / "shipped.json").write_text(json.dumps(content))
    assert command("--results", results, "--markdown") == 0
    assert command("--results", results, "--out", tmp_path / "page") == 0
    written = (tmp_path / "page" / "index.html").read_text() + capsys.readouterr().out
    assert r"\x1b]0;title\x07" in written
    assert not set("\x1b\x07") & set(written)
    assert "python \\x1b]0;title\\x07 &lt;script&gt;" in written


@pytest.mark.parametrize(
    "row", [{}, {"agent": "vlm"}, {"agent": "vlm", "game": "Carnival", "scores": [1.0]}, {"game": "No such game"}]
)
def test_rows_that_lack_what_the_report_reads_end_in_one_line(results, tmp_path, row, capsys):
    content = json.loads((results / "shipped.json").read_text())
    (results / "shipped.json").write_text(json.dumps({**content, "rows": [row]}))
    assert command("--results", results, "--out", tmp_path / "page") == 2
    assert re.fullmatch(r"error: .*\n", capsys.readouterr().err)


def test_a_result_of_several_commands_names_them_all():
    rows = [{"scores": [1.0], "command": "a"}, {"scores": [2.0], "command": "b"}, {"scores": [3.0], "command": "b"}]
    assert commands({"rows": rows, "command": "b"}) == ["a", "b"]
    assert commands({"rows": [{"command": "record", "kills": 3}], "command": "c"}) == ["c"]
