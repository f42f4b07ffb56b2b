"""A page questions a model about a frame: its server answers in JSON, its mistakes too, and a browser shows it all."""

import base64
import io
import json
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from agents import ask, ask_server
from agents.ask import Args, open_session
from agents.ask_server import AskServer, bake_page
from agents.ask_session import mask_overlay
from agents.frame_questions import trained_games
from common.command import run
from common.errors import UserError
from vlm import checkpoint
from vlm.presets import build
from vlm.segmentation.referring_segmenter import load_segmenter

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
ALL = {"games": ["MsPacman"], "arguments": {"grid": "8", "size": [210, 160]}, "point_grid": 4}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Models that were trained on play, pixel values and masks; on play alone; on nothing."""
    place = tmp_path_factory.mktemp("asked")
    for name, training in (("all", ALL), ("player", {"games": ["MsPacman"]}), ("none", {})):
        checkpoint.save(build("tiny", seed=7), place / name, training)
    return place


@contextmanager
def serving(directory, *, game="MsPacman", **settings):
    """A function that asks a running server for a path, and returns the status and the JSON."""
    with open_session(Args(directory, game, **settings)) as session, AskServer(session, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def request(path, body=None, **headers):
            asked = urllib.request.Request(server.url + path, body, headers)
            try:
                with urllib.request.urlopen(asked, timeout=60) as response:
                    return response.status, json.loads(response.read())
            except urllib.error.HTTPError as error:
                return error.code, json.loads(error.read())

        request.url, request.session = server.url, session
        try:
            yield request
        finally:
            server.shutdown()


@pytest.fixture(scope="module")
def asked(checkpoints):
    with serving(checkpoints / "all") as request:
        yield request


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def pixels_of(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def test_the_game_moves_on_by_steps_and_begins_again(asked):
    status, first = asked("api/restart", b"")
    assert status == 200
    assert (first["step"], first["score"], first["size"], first["grid"]) == (0, 0.0, [210, 160], [8, 8])
    assert sum(first["probabilities"]) == pytest.approx(1, abs=1e-3)
    assert first["played"] == int(np.argmax(first["probabilities"]))  # greedy, by the tiny model's default
    for number in (1, 2, 3):
        _, state = asked("api/step", b"")
        assert state["step"] == number
    assert state["serial"] == first["serial"] + 3
    assert asked("api/state")[1] == state
    assert asked("api/restart", b"")[1]["frame"] == first["frame"]


def test_the_answer_for_a_cell_is_that_of_the_grid_and_a_frame_is_encoded_once(asked, monkeypatch):
    asked("api/restart", b"")
    model, encoded = asked.session.model.vlm, []
    original = model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda *a, **k: encoded.append(1) or original(*a, **k))
    _, alone = asked("api/pixel?row=5&column=2")
    asked("api/mask?expression=the+duck")
    assert encoded == []  # the state has asked for the actions' probabilities
    _, grid = asked("api/grid")
    answered, true = (
        np.frombuffer(base64.b64decode(grid[name]), np.uint8).reshape(8, 8, 3) for name in ("answered", "true")
    )
    assert alone["answered"] == answered[5, 2].tolist()
    assert alone["true"] == true[5, 2].tolist()
    assert alone["error"] == pytest.approx(np.abs(answered[5, 2].astype(int) - true[5, 2]).mean(), abs=0.01)
    assert grid["mae"] == pytest.approx(np.abs(answered.astype(int) - true).mean(), abs=0.01)
    assert 0 <= grid["parsed"] <= 1


def test_a_mask_is_that_of_the_segmenter(asked, checkpoints):
    asked("api/restart", b"")
    status, found = asked("api/mask?expression=the+duck")
    assert status == 200
    frames = asked.session.questions.frames
    expected = load_segmenter(checkpoints / "all").predict(frames, ["the duck"])[0]
    assert found["pixels"] == (expected > 0.5).sum()
    assert np.array_equal(pixels_of(found["overlay"])[..., 3] > 0, expected > 0.5)
    assert found["highest"] == pytest.approx(expected.max(), abs=1e-3)


def test_the_overlay_of_a_mask_has_a_border():
    mask = np.zeros((5, 6), bool)
    mask[1:4, 1:5] = True
    opacity = mask_overlay(mask)[..., 3]
    assert np.array_equal(opacity > 0, mask)
    assert (opacity == 255).sum() == 10
    assert (mask_overlay(np.ones((3, 3), bool))[..., 3] == 255).sum() == 8


def test_a_picture_takes_the_games_place_until_the_next_step(asked):
    asked("api/restart", b"")
    image = np.full((64, 64, 3), 90, np.uint8)
    status, state = asked("api/picture", png(image))
    assert status == 200
    assert state["picture"] == "picture"
    assert "played" not in state
    assert asked("api/pixel?row=0&column=0")[1]["true"] == [90, 90, 90]
    _, after = asked("api/step", b"")
    assert (after["picture"], after["step"]) == (None, 0)


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("api/pixel?row=8&column=0", None, "expected a cell of a grid of 8 x 8, got row 8, column 0"),
        ("api/pixel?row=-1&column=0", None, "expected row, a whole number, got '-1'"),
        ("api/pixel", None, "expected row, a whole number, got ''"),
        ("api/mask?expression=+", None, "got none"),
        ("api/picture", b"<html>", "picture is not a PNG or JPEG picture, or is damaged"),
        ("api/picture", b"", "expected a picture of up to"),
        ("api/picture", png(np.zeros((4, 4, 3), np.uint8)), "at least 8 x 8 pixels for grid 8, got 4 x 4"),
    ],
)
def test_a_mistake_is_one_line_of_json_with_status_400(asked, path, body, message):
    status, answer = asked(path, body)
    assert status == 400
    assert message in answer["error"]
    assert "/tmp" not in answer["error"]


def test_only_its_own_page_may_ask_and_only_what_there_is(asked):
    assert asked("api/state", None, Host="example.org")[0] == 403
    assert asked("api/step", b"", Origin="http://example.org")[0] == 403
    assert asked("api/state", None, Origin=asked.url.rstrip("/"))[0] == 200
    for path, body in (
        ("api/nothing", None),
        ("../ask.py", None),
        ("api/step", None),
        ("api/grid", b""),
        ("info", None),
    ):
        assert asked(path, body)[0] == 404
    assert asked.session.envs.num_envs == 1
    with pytest.raises(UserError, match="cannot be used"):
        AskServer(asked.session, int(re.search(r":(\d+)/", asked.url)[1]))


def test_a_checkpoint_is_asked_only_what_it_was_trained_on(checkpoints, capsys):
    with serving(checkpoints / "player", agent="random") as request:
        info = request("api/info")[1]
        assert (info["pixels"], info["masks"], info["player"]) == (False, None, "random")
        assert not info["plays_itself"]
        assert request("api/state")[1]["grid"] is None
        for path in ("api/grid", "api/pixel?row=0&column=0"):
            status, answer = request(path)
            assert status == 400
            assert "expected a checkpoint trained on pixel values" in answer["error"]
        assert "trained on masks" in request("api/mask?expression=x")[1]["error"]
    assert run(lambda: ask.main(["--checkpoint", str(checkpoints / "none"), "--game", "Pong"])) == 2
    assert "trained on play, pixel values or masks, got" in capsys.readouterr().err


def test_the_games_are_those_of_the_last_training_to_play():
    masks_after_play = {"started_from": {"games": [], "started_from": {"games": ["Pong"], "started_from": None}}}
    assert trained_games(masks_after_play) == ("Pong",)
    assert trained_games({"games": ["Carnival"], "started_from": masks_after_play}) == ("Carnival",)
    assert trained_games({"started_from": {}}) == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected --game or --image"),
        (("--game", "Carnivall"), "nearest: Carnival"),
        (("--game", "Pong", "--agent", "human"), "expected an agent that plays by itself"),
        (("--image", "nowhere.png"), "nowhere.png, which is not a file"),
        (("--game", "Pong", "--expression", "the ball"), "--expression is for --html"),
        (("--game", "Pong", "--html", "x.html", "--expression", "the ball"), "trained on masks"),
        (("--game", "Pong", "--frames", "0"), "--frames must be at least 1"),
        (("--game", "Pong", "--port", "99999"), "--port 99999 cannot be used"),
    ],
)
def test_each_mistake_of_the_command_is_one_line(checkpoints, arguments, message, capsys):
    assert run(lambda: ask.main(["--checkpoint", str(checkpoints / "player"), *arguments])) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_file_holds_the_answers_and_its_words_are_escaped(checkpoints, tmp_path):
    words = "</script><b>the duck & 'co'"
    arguments = ["--game", "MsPacman", "--frames", "2", "--frame-every", "1", "--expression", words]
    assert ask.main(["--checkpoint", str(checkpoints / "all"), *arguments, "--html", str(tmp_path / "a.html")]) == 0
    page = (tmp_path / "a.html").read_text()
    baked = json.loads(re.search(r'id="baked">(.*?)</script>', page)[1])
    assert baked["expressions"] == [words]
    assert [frame["step"] for frame in baked["frames"]] == [0, 1]
    assert baked["frames"][1]["grid_answer"]["rows"] == 8
    assert baked["frames"][1]["masks"][0]["expression"] == words
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", page)


CLICKS = """<script>
const seen = {width: document.body.scrollWidth};
const look = setInterval(async () => {
  if (!document.body.dataset.ready) return;
  clearInterval(look);
  if (!seeing) $("see").click();
  const press = key => document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  const pause = () => new Promise(done => setTimeout(done, 700));
  press("ArrowRight"); await pause();
  const box = $("frame").getBoundingClientRect();
  const at = {clientX: box.left + box.width * .3, clientY: box.top + box.height * .7};
  $("frame").dispatchEvent(new MouseEvent("click", {...at, bubbles: true}));
  $("words").value = "the duck"; $("maskform").requestSubmit(); await pause();
  press(" "); seen.playing = playing; press(" "); seen.paused = !playing; await pause();
  seen.width = document.body.scrollWidth; seen.step = state.step; seen.cell = cell;
  seen.note = $("cellnote").textContent; seen.mask = $("masknote").textContent; seen.mae = $("mae").textContent;
  seen.bars = document.querySelectorAll("#bars li").length; seen.message = $("message").textContent;
  document.body.dataset.seen = JSON.stringify(seen);
}, 50);
document.documentElement.style.width = "%dpx"; // a window may be no narrower than 500
</script></body>"""


def browse(address, folder, width):
    """Open an address in a browser; return what the page's own script saw."""
    offline = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *offline]
    words += [f"--window-size={width},900", f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000"]
    done = subprocess.run([str(BROWSER), *words, "--dump-dom", address], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    assert "net::ERR" not in done.stderr
    return json.loads(re.search(r'data-seen="([^"]+)"', done.stdout)[1].replace("&quot;", '"'))


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("baked", [False, True], ids=["served", "file"])
@pytest.mark.parametrize("width", [420, 1400])
def test_a_browser_plays_pauses_and_asks_for_colors_and_masks(checkpoints, tmp_path, monkeypatch, baked, width):
    clicking = ask_server.PAGE.read_text().replace("</body>", CLICKS % width)
    (tmp_path / "ask.html").write_text(clicking)
    monkeypatch.setattr(ask_server, "PAGE", tmp_path / "ask.html")
    with serving(checkpoints / "all") as request:
        address = request.url
        if baked:
            (tmp_path / "baked.html").write_text(bake_page(request.session, 3, 2, ("the duck",)))
            address = (tmp_path / "baked.html").as_uri()
        seen = browse(address, tmp_path, width)
    assert seen["width"] <= width
    assert seen["message"] == ""
    assert seen["cell"] == {"row": 5, "column": 2}
    assert re.match(r"Row 5, column 2 of 8 x 8: mean error [\d.]+ of 255\.", seen["note"])
    assert seen["mask"].startswith("“the duck”: ")
    assert re.match(r"mean error [\d.]+ of 255", seen["mae"])
    assert seen["bars"] == 9
    assert seen["step"] >= 1 or baked
    assert seen["playing"]
    assert seen["paused"]
