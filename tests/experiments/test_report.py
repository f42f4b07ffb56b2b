"""The page and the README's tables come from result files alone, say what is missing, and open in a browser."""

import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from common.command import run
from common.results import new_result, write_result
from envs.protocol import MACHADO2018
from experiments import report
from experiments.report import RESULTS, answers
from experiments.statistics import (
    Mean,
    agent_games,
    arm_games,
    curves,
    difference,
    gain_lines,
    game_lines,
    interquartile_mean,
    performance_profiles,
    probability_of_improvement,
    pvp_lines,
    reading_lines,
    refer_lines,
)

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


def command(*arguments):
    return run(lambda: report.main([str(argument) for argument in arguments]))


def reading(encoder, seed, mae, **more):
    row = {"regime": "open", "set": "held-out games", "encoder": encoder, "seed": seed, "step": 9, "sample": False}
    return {**row, "mae": mae, "mae_small_objects": None, **more}


PVP = [
    reading("adapted", 0, 10.0), reading("adapted", 1, 12.0), reading("frozen", 0, 20.0), reading("frozen", 1, 26.0),
    reading("adapted", 0, 30.0, sample=True, step=3), reading("adapted", 1, 32.0, sample=True, step=3),
    {"regime": "open", "set": "held-out games", "floor": "image mean", "mae": 33.3},
]  # fmt: skip


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "results"
    for name, rows in (("pvp-nano", PVP), ("refer-nano", MASKS)):
        result = new_result(name, None, [0, 1])
        result["rows"] = rows
        write_result(folder / f"{name}.json", result)
    scores = new_result("shipped", MACHADO2018.to_dict(), [1000])
    game = {"agent": "vlm", "game": "Carnival", "checkpoint": "abc", "decode": "scores", "temperature": 0.0}
    game |= {"invalid": 0.0, "decisions_per_second": 99.0}
    scores["rows"] = [{**game, "seed": seed, "scores": [100.0, 300.0]} for seed in (1000, 1001)]
    write_result(folder / "shipped.json", scores)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "pvp-nano-0.png")
    return folder


def mask(encoder, pvp, seed, ciou):
    return {"encoder": encoder, "pvp": pvp, "mask": "head", "seed": seed, "set": "test",
            "ciou": ciou, "giou": ciou, "p50": ciou}  # fmt: skip


MASKS = [
    mask("adapted", "pvp", 0, 0.7), mask("adapted", "pvp", 1, 0.8), mask("adapted", "none", 0, 0.6),
    mask("adapted", "none", 1, 0.6), {"floor": "all", "set": "test", "ciou": 0.03, "giou": 0.02, "p50": 0.0},
]  # fmt: skip


def test_an_interval_is_students_over_seeds_and_one_seed_has_none():
    mean = Mean.of([10.0, 12.0, 17.0])
    low, high = stats.t.interval(0.95, 2, 13.0, stats.sem([10.0, 12.0, 17.0]))
    assert (mean.value - mean.half, mean.value + mean.half) == pytest.approx((low, high))
    assert mean.text() == f"13.0 [{low:.1f}, {high:.1f}]"
    assert Mean.of([0.5]).text(1, 100) == "50.0 (one seed)"


def test_differences_pair_arms_by_seed_and_leave_unpaired_seeds_out():
    one, other = PVP[:2], [*PVP[2:4], reading("frozen", 2, 99.0)]
    assert difference(one, other, "mae").value == pytest.approx(((10 - 20) + (12 - 26)) / 2)
    assert difference(one, other, "mae", share=True).value == pytest.approx((10 / 20 + 12 / 26) / 2)
    assert difference(one, [], "mae") is None


def test_lines_and_curves_hold_what_the_rows_do():
    line = pvp_lines(PVP)[0]
    assert line.about == "held-out games (open)"
    assert line.cells["adapted"].startswith("11.0 [")
    assert line.cells["image mean"] == "33.3"
    assert pvp_lines(PVP)[1].cells["adapted"] == "-"
    assert curves(PVP, "open", "held-out games")["adapted"] == [(3, 31.0)]
    told = {one.about: one.cells["ciou"] for one in refer_lines(MASKS, "head", "test")}
    assert told["adapted, pvp"].startswith("75.0 [")
    assert told["floor: all"] == "3.0"


def test_the_first_sentences_tell_gains_with_intervals_or_that_nothing_was_measured():
    told = answers({"pvp-nano": {"rows": PVP}, "refer-nano": {"rows": MASKS}})
    assert "11.0 [" in told[0]
    assert "12.0 [" in told[0]
    assert "less error with unfreezing (2 training seeds" in told[0]
    assert "PVP 15.0 [" in told[1]
    assert answers({"pvp-nano": {"rows": PVP[-1:]}})[0] == "Reading pixels: no arm of pvp-nano is finished."
    assert "not measured yet" in answers({})[0]


def played(pvp, seed, score):
    return {"encoder": "adapted", "pvp": pvp, "share": 1.0, "seed": seed, "game": "Carnival", "scores": [score, score]}


def test_figures_name_the_devices_that_made_them(results):
    result = json.loads((results / "pvp-nano.json").read_text())
    assert report.origin(result).endswith(f"; {result['machine']}.")
    result["rows"][0]["device"], result["rows"][1]["device"] = "NVIDIA H200", "cpu"
    assert report.origin(result).endswith(f"; {result['machine']}, NVIDIA H200.")


def test_games_are_told_by_arm_and_by_the_chance_of_being_better():
    rows = [played("pvp", seed, 100.0 + seed) for seed in range(4)] + [played("none", s, 50.0 + s) for s in range(4)]
    rows.append({"arm": "random", "game": "Carnival", "scores": [10.0, 30.0]})
    assert probability_of_improvement(np.array([[3.0], [4.0]]), np.array([[1.0], [2.0]]))[0] == 1
    assert probability_of_improvement(np.array([[1.0], [2.0]]), np.array([[1.0], [2.0]]))[0] == 0.5
    told = {line.about: line.cells for line in game_lines(rows, 1.0)}
    assert told["adapted, pvp"]["Carnival"].startswith("102 [")
    assert told["adapted, no PVP"]["Carnival, IQM"].startswith("52 [")
    assert told["adapted, pvp"]["better than adapted, no PVP"] == "1.00 [1.00, 1.00]"
    assert "better than adapted, no PVP" not in told["adapted, no PVP"]
    assert told["random play"]["Carnival"] == "20"
    told = answers({"games-nano": {"rows": rows}})[-1]
    assert "with 100% of the demonstrations PVP adds 50 [50, 50] in Carnival; a policy with PVP beats" in told
    assert "1.00 [1.00, 1.00]." in told
    assert "too few arms yet" in answers({"games-nano": {"rows": rows[:4]}})[-1]


def test_the_interquartile_mean_leaves_the_best_and_the_worst_quarter_of_games_out():
    games = [[0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 9000.0], [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 9000.0]]
    middle, low, high = interquartile_mean(games)
    assert middle == 35.0
    assert low < middle < high
    assert interquartile_mean(games) == (middle, low, high)
    assert interquartile_mean([[7.0] * 4]) == (7.0, 7.0, 7.0)


def test_how_well_pixels_were_read_before_play_is_told_beside_what_does_not_read():
    rows = [{**played("pvp", seed, 9.0), "read": 20.0 + seed} for seed in (0, 2)] + [played("none", 0, 9.0)]
    floors = {"arm": "random", "game": "Carnival", "scores": [1.0], "image_mean": 41.83, "patch_mean": 30.0}
    rows[0]["read_objects"] = 44.0
    floors["image_mean_objects"] = 30.5
    line, objects = reading_lines([*rows, floors])
    assert (objects.about, objects.cells["adapted"]) == ("Carnival, small objects", "44.0 (one seed)")
    assert objects.cells["image mean"] == "30.5"
    assert line.cells["adapted"].startswith("21.0 [")
    assert (line.cells["frozen"], line.cells["image mean"], line.cells["patch mean"]) == ("-", "41.8", "30.0")
    told = answers({"games-nano": {"rows": [*rows, floors]}})[-1]
    assert f"of 255: Carnival {line.cells['adapted']} (the image's mean 41.8); " in told
    assert "of 255: " not in answers({"games-nano": {"rows": [played("pvp", 0, 9.0), played("none", 0, 9.0)]}})[-1]


def test_what_is_added_pairs_policies_of_a_seed_in_points_and_in_nats():
    rows = [{**played("pvp", 0, 90.0), "loss": 1.0}, {**played("none", 0, 70.0), "loss": 1.25}, played("none", 1, 5.0)]
    (line,) = gain_lines(rows, 1.0)
    assert line.about == "PVP, encoder adapted"
    assert line.cells == {"Carnival, points": "20 (one seed)", "Carnival, nats": "0.250 (one seed)"}


def test_a_profile_is_the_share_of_games_above_a_score_with_an_interval():
    games = {"one": [[0.0, 100.0, 200.0, 300.0], [50.0, 100.0, 400.0, 400.0]], "other": [[10.0] * 4]}
    found = performance_profiles(games, points=9)
    one, other = found["one"], found["other"]
    assert one.scores.tolist() == np.linspace(0, 400, 9).tolist() == other.scores.tolist()
    assert one.share.tolist() == [7 / 8, 6 / 8, 4 / 8, 4 / 8, 3 / 8, 3 / 8, 2 / 8, 2 / 8, 0]
    assert (one.low <= one.share).all() and (one.share <= one.high).all()  # noqa: PT018
    assert one.low[3] < one.share[3] < one.high[3]
    assert other.share.tolist() == other.low.tolist() == [1, *[0] * 8]


def test_games_are_gathered_by_arm_and_by_agent_and_temperature():
    rows = [played("pvp", 0, 5.0), played("pvp", 1, 6.0), played("none", 0, 7.0)]
    assert arm_games(rows, "Carnival", 1.0) == {"adapted, pvp": [[5, 5], [6, 6]], "adapted, no PVP": [[7, 7]]}
    assert arm_games(rows, "Carnival", 0.1) == {}
    scored = [
        {"agent": "vlm:some/where", "game": "Carnival", "temperature": 0.3, "scores": [1.0]},
        {"agent": "random", "game": "Carnival", "scores": [2.0]},
        {"agent": "random", "game": "Carnival", "scores": [3.0]},
        {"agent": "random", "game": "MsPacman", "scores": [4.0]},
    ]
    assert agent_games(scored, "Carnival") == {"vlm, temperature 0.3": [[1.0]], "random": [[2.0], [3.0]]}


def test_the_page_holds_its_pictures_and_asks_nothing_of_a_network(results, tmp_path):
    (tmp_path / "arms.mp4").write_bytes(b"film")
    assert command("--results", results, "--out", tmp_path / "page", "--videos", tmp_path / "arms.mp4") == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", page)
    (picture,) = re.findall(r"<img src=\"data:image/png;base64,([^\"]+)\"", page)
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert (tmp_path / "page" / "0-arms.mp4").read_bytes() == b"film"
    for words in ("200 [", "python -m experiments.run pvp-nano", "protocol machado2018", 'name="viewport"', "<svg",
                  "performance profiles"):  # fmt: skip
        assert words in page
    assert page.index("less error with unfreezing") < page.index("<nav")


def test_what_is_committed_makes_a_page_and_any_results_make_markdown(results, tmp_path, capsys):
    assert command("--out", tmp_path) == 0
    assert command("--results", results, "--markdown") == 0
    assert "| held-out games (open) |" in capsys.readouterr().out
    assert json.loads((RESULTS / "pvp-nano.json").read_text())["name"] == "pvp-nano"


def test_missing_files_are_told_in_one_line(results, tmp_path, capsys):
    assert command("--results", tmp_path / "none", "--out", tmp_path / "page") == 2
    assert "found none" in capsys.readouterr().err
    assert command("--results", results, "--out", tmp_path / "page", "--videos", tmp_path / "none.mp4") == 2
    assert "none.mp4, which does not exist" in capsys.readouterr().err


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_opens_the_page_from_the_file_system_without_a_complaint(results, tmp_path, width):
    assert command("--results", results, "--out", tmp_path / "page") == 0
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={width},900"]
    words += [f"--screenshot={tmp_path / 'seen.png'}", f"--user-data-dir={tmp_path / 'profile'}"]
    page = (tmp_path / "page" / "index.html").as_uri()
    done = subprocess.run([str(BROWSER), *words, page], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    assert "net::ERR" not in done.stderr
    seen = np.asarray(Image.open(tmp_path / "seen.png").convert("RGB"))
    assert seen.shape[1] >= width
    assert seen.std() > 5
