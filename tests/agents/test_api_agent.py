"""A model behind an endpoint plays; what its server does wrong is reported as such and is never an action."""

import base64
import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
from PIL import Image

from agents import play, record, score
from agents.api_agent import ApiAgent
from agents.api_client import ChatClient
from agents.api_config import ApiConfig, ApiError
from agents.frame_stack import FrameStack
from agents.model_limits import ModelLimits
from agents.registry import agent_files
from agents.rollout import play_games
from common.command import run
from common.errors import UserError
from envs.atari import make_envs
from envs.episodes import EpisodeDataset
from envs.games import action_names, find_game
from envs.protocol import MACHADO2018, PROTOCOLS
from vlm import checkpoint
from vlm.presets import build
from vlm.prompts import parse_action
from vlm.released_checkpoints import RELEASED_POLICY

ROOT = Path(__file__).resolve().parents[2]
CARNIVAL = find_game("Carnival")
NAMES = action_names(CARNIVAL)


def completion(text, **others):
    usage = {"prompt_tokens": 100, "completion_tokens": 2}
    return {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage, **others}


class Endpoint(ThreadingHTTPServer):
    """Answers the n-th request by `answer(n, body)`: a text, JSON values, (status, bytes), or None to hang up."""

    daemon_threads, block_on_close = True, False

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), EndpointHandler)
        self.answer, self.bodies, self.headers, self.lock = answer, [], [], threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"


class EndpointHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.headers.append((self.path, dict(self.headers)))
            number = len(self.server.bodies)
        answer = self.server.answer(number, body)
        if answer is None:
            self.close_connection = True
            return
        if isinstance(answer, str):
            answer = completion(answer)
        status, content = answer if isinstance(answer, tuple) else (200, json.dumps(answer).encode())
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def endpoint(answer):
    with Endpoint(answer) as server:
        threading.Thread(target=lambda: server.serve_forever(0.05), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def command(module, *arguments):
    return run(lambda: module.main([str(argument) for argument in arguments]))


def plays(server, out, *arguments):
    """Return the exit code of a play without video, and its result, if there is one."""
    asked = ("--agent", "api:some/model", "--base-url", server.url, "--out", out, "--retries", 1, "--no-video")
    code = command(play, *asked, *arguments)
    files = list(out.glob("*.json"))
    return code, json.loads(files[0].read_text()) if files else None


def test_a_model_plays_and_the_result_tells_what_it_took(tmp_path, capsys):
    with endpoint(lambda number, _: f"Action: {NAMES[number % len(NAMES)].upper()}.") as server:
        code, result = plays(server, tmp_path, "--max-frames", 40, "--price", 2, 10)
    assert code == 0
    assert result["protocol"] == {**MACHADO2018.to_dict(), "paused": True, "few_shot": 0}
    (row,) = result["rows"]
    assert (row["agent"], row["steps"], row["invalid"]) == ("api:some/model", 10, 0)
    assert (row["requests"], row["retries"], row["prompt_tokens"], row["completion_tokens"]) == (10, 0, 1000, 20)
    assert row["cost"] == pytest.approx((1000 * 2 + 20 * 10) / 1e6)
    assert (row["decode"], row["temperature"], row["history"]) == ("generate", None, 1)
    assert "failure" not in row
    assert "10 requests, 0 answers from the cache, 1,000 + 20 tokens, 0.0022 dollars" in capsys.readouterr().out


def test_a_question_holds_the_true_frames_and_the_legal_actions(tmp_path):
    with endpoint(lambda *_: "fire") as server, make_envs(CARNIVAL, 1) as envs:
        agent = ApiAgent("m", envs, ApiConfig(base_url=server.url + "/"), 0.0, ModelLimits(history=3))
        frames = [step.frame for step, _ in zip(play_games(agent, envs, [5]), range(5), strict=False)]
        stack = FrameStack(3)
        for body, frame in zip(server.bodies, frames, strict=False):
            text, *images = body["messages"][0]["content"]
            shown = [decoded(image["image_url"]["url"]) for image in images]
            stack.reset(np.array([False]))
            assert np.array_equal(shown, stack.add(frame[None])[0])
            assert "Carnival" in text["text"]
            assert "last 3 screens, 4 frames of 60 a second apart" in text["text"]
            assert ", ".join(NAMES) in text["text"]
            assert (body["model"], body["temperature"], body["max_tokens"]) == ("m", 0.0, 64)
            assert "seed" not in body
    assert server.headers[0][0] == "/v1/chat/completions"


def decoded(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def test_the_key_is_sent_and_told_nowhere(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    with endpoint(lambda *_: "fire") as server:
        _, result = plays(server, tmp_path, "--max-frames", 8)
        assert server.headers[0][1]["Authorization"] == "Bearer secret-key"
    assert "secret-key" not in json.dumps(result) + str(capsys.readouterr())
    monkeypatch.setenv("OPENAI_API_KEY", "secret\u00e9")
    assert command(play, "--agent", "api:m", "--base-url", "http://127.0.0.1:9/v1", "--out", tmp_path) == 2
    assert "expected printable ASCII in OPENAI_API_KEY" in capsys.readouterr().err


def hang(*_):
    time.sleep(3)


BAD = {
    "hangs": (hang, "no answer within 0.4 s (--timeout)"),
    "dies": (lambda *_: None, "the connection failed: Server disconnected without sending a response. (2 tries)"),
    "fails": (
        lambda *_: (500, b'{"error": {"message": "out of\\nmemory"}}'),
        "status 500 Internal Server Error: out of",
    ),
    "wrong JSON": (lambda *_: (200, b"<html>busy</html>"), "expected a chat completion in JSON, got b'<html>busy"),
    "other JSON": (lambda *_: {"choices": []}, "expected a chat completion, got other JSON: choices: "),
    "endless": (lambda *_: (200, b"x" * 2**21), "expected an answer of at most 1,048,576 bytes, got more"),
    "refuses": (lambda *_: (401, b'{"error": {"message": "no such key"}}'), "status 401 Unauthorized: no such key"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_server_is_reported_as_such_within_its_time_out_and_what_was_played_is_kept(kind, tmp_path, capsys):
    bad, message = BAD[kind]
    with endpoint(lambda number, body: "fire" if number <= 4 else bad(number, body)) as server:
        start = time.monotonic()
        code, result = plays(server, tmp_path, "--timeout", 0.4 if kind == "hangs" else 20)
        assert time.monotonic() - start < 15
    assert code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"error: {server.url}/chat/completions: ")
    assert message in last
    (row,) = result["rows"]
    assert result["interrupted"]
    assert (row["steps"], row["invalid"], row["scores"]) == (4, 0, [])
    assert message in row["failure"]


def test_a_server_that_drips_is_not_waited_for(tmp_path):
    class Dripping(EndpointHandler):
        def do_POST(self):
            self.send_response(200)
            self.end_headers()
            for _ in range(50):
                self.wfile.write(b" ")
                time.sleep(0.1)

    with endpoint(None) as server:
        server.RequestHandlerClass = Dripping
        client, start = ChatClient(ApiConfig(base_url=server.url, timeout=0.5)), time.monotonic()
        with pytest.raises(ApiError, match=r"no answer within 0.5 s"):
            client.complete([{"model": "m"}])
        assert time.monotonic() - start < 2.5


def test_an_illegal_action_in_prose_is_counted_and_too_many_end_the_play(tmp_path, capsys):
    prose = "I would jump over the duck, or fire."
    with endpoint(lambda number, _: prose if number > 2 else "fire") as server:
        code, result = plays(server, tmp_path, "--max-frames", 24)
        assert (code, result["rows"][0]["invalid"]) == (0, 4 / 6)
        assert "66.7% invalid answers" in capsys.readouterr().out
        code, result = plays(server, tmp_path, "--max-invalid", 3)
    assert code == 2
    message = f"3 answers in a row (--max-invalid) named none of the legal actions; the last: {prose!r}"
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert result["rows"][0]["failure"].endswith(message)


def test_the_video_of_what_was_played_before_a_failure_plays(tmp_path):
    with endpoint(lambda number, _: "fire" if number <= 5 else (500, b"")) as server:
        arguments = ("--agent", "api:m", "--base-url", server.url, "--retries", 0, "--out", tmp_path)
        assert command(play, *arguments) == 2
    (file,) = tmp_path.glob("*.mp4")
    with imageio.get_reader(file) as reader:
        assert sum(1 for _ in reader) == 5


def test_a_failure_is_tried_again_and_a_busy_server_is_waited_for(tmp_path):
    answers = {1: (503, b"busy"), 2: None, 3: (429, b"slow down")}
    with endpoint(lambda number, _: answers.get(number, "fire")) as server:
        _, result = plays(server, tmp_path, "--max-frames", 8, "--retries", 3)
    assert (result["rows"][0]["steps"], result["rows"][0]["retries"]) == (2, 3)


def test_the_cache_answers_the_same_question_and_nobody_else(tmp_path):
    with endpoint(lambda *_: "fire") as server:
        asked = ("--max-frames", 24, "--temperature", 0, "--cache", tmp_path / "cache")
        _, first = plays(server, tmp_path / "a", *asked)
        _, again = plays(server, tmp_path / "b", *asked)
        count = len(server.bodies)
        plays(server, tmp_path / "c", *asked, "--history", 2)
        assert len(server.bodies) > count
    rows = [result["rows"][0] for result in (first, again)]
    assert [row["requests"] + row["cached_answers"] for row in rows] == [6, 6]
    assert (rows[1]["requests"], rows[1]["prompt_tokens"]) == (0, 0)
    assert rows[0]["unfinished_scores"] == rows[1]["unfinished_scores"]


def test_parallel_games_ask_at_once_and_an_idle_environment_asks_nothing(monkeypatch, tmp_path):
    monkeypatch.setitem(PROTOCOLS, "machado2018", replace(MACHADO2018, max_episode_frames=40))
    together = threading.Barrier(3)

    def answer(number, _):
        if number <= 3:
            together.wait(20)  # breaks unless three questions are under way
        return "fire"

    with endpoint(answer) as server:
        args = score.Args(("api:m",), ("Carnival",), tmp_path / "s.json", 4, num_envs=3, api=ApiConfig(server.url))
        (row,) = score.score(args)["rows"]
    assert row["steps"] == row["requests"] == len(server.bodies) == 4 * 10


def test_a_scoring_keeps_the_finished_games_of_a_row_and_resumes_there(monkeypatch, tmp_path):
    monkeypatch.setitem(PROTOCOLS, "machado2018", replace(MACHADO2018, max_episode_frames=40))
    out = tmp_path / "s.json"
    arguments = ("--agents", "random", "api:m", "--games", "Carnival", "--episodes", 3, "--num-envs", 1, "--out", out)
    with endpoint(lambda number, _: "fire" if number <= 25 else (500, b"down")) as server:
        asked = (*arguments, "--base-url", server.url, "--retries", 0)
        assert command(score, *asked) == 2
        kept = json.loads(out.read_text())
        assert len(kept["rows"]) == 1
        (unfinished,) = kept["unfinished"]
        assert list(unfinished["games"]) == ["0", "1"]
        assert unfinished["usage"]["requests"] == 25
        server.answer = lambda *_: "fire"
        assert command(score, *asked) == 0
        resumed = json.loads(out.read_text())
        assert "unfinished" not in resumed
        assert len(server.bodies) == 26 + 10
        row, whole = resumed["rows"][1], tmp_path / "whole.json"
        assert command(score, *[whole if argument == out else argument for argument in asked]) == 0
    expected = json.loads(whole.read_text())["rows"][1]
    same = ("scores", "steps", "invalid", "episodes", "history", "few_shot", "agent")
    assert [row[name] for name in same] == [expected[name] for name in same]
    assert row["requests"] == 35
    assert resumed["protocol"]["paused"]
    assert command(score, *arguments, "--base-url", "http://127.0.0.1:9/v1") == 0  # nothing is left to play


def test_stored_games_beyond_those_asked_are_not_lost(monkeypatch, tmp_path):
    monkeypatch.setitem(PROTOCOLS, "machado2018", replace(MACHADO2018, max_episode_frames=40))
    out = tmp_path / "s.json"
    arguments = ("--agents", "api:m", "--games", "Carnival", "--num-envs", 1, "--out", out)
    with endpoint(lambda number, _: "fire" if number <= 35 else (500, b"down")) as server:
        asked = (*arguments, "--base-url", server.url, "--retries", 0)
        assert command(score, *asked, "--episodes", 5) == 2
        count = len(server.bodies)
        assert command(score, *asked, "--episodes", 2) == 0
        assert len(server.bodies) == count
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["episodes"], len(row["scores"]), row["steps"]) == (3, 3, 30)


def test_a_directory_that_is_named_like_a_model_is_no_checkpoint(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert agent_files(["api:model", "random", "vlm:model"]) == [Path("model")]
    with endpoint(lambda *_: "fire") as server:
        asked = ("--agent", "api:model", "--base-url", server.url, "--max-frames", 8, "--no-video")
        assert command(play, *asked, "--out", "model") == 0


def test_another_endpoint_is_another_play_but_another_time_out_is_not(tmp_path, capsys):
    with endpoint(lambda *_: "fire") as server, endpoint(lambda *_: "left") as other:
        assert plays(server, tmp_path, "--max-frames", 8)[0] == 0
        assert plays(server, tmp_path, "--max-frames", 12, "--timeout", 9, "--cache", tmp_path / "c")[0] == 0
        assert plays(other, tmp_path, "--max-frames", 12)[0] == 2
        assert "holds a play with another base_url" in capsys.readouterr().err
        assert not other.bodies


def test_a_play_stored_before_there_were_endpoints_is_repeated(tmp_path):
    arguments = ("--game", "Pong", "--agent", "random", "--max-frames", 8, "--no-video", "--out", tmp_path)
    assert command(play, *arguments) == 0
    (file,) = tmp_path.glob("*.json")
    stored = json.loads(file.read_text())["arguments"]
    assert {"image_tokens", "history", "max_new_tokens"} <= set(stored)
    assert not {"api", "base_url", "limits"} & set(stored)
    assert command(play, *arguments) == 0


def test_a_recording_keeps_every_finished_game_and_gives_examples(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(PROTOCOLS, "machado2018", replace(MACHADO2018, max_episode_frames=40))
    out = tmp_path / "data"
    with endpoint(lambda number, _: "fire" if number != 16 else (400, b'{"error": "bad"}')) as server:
        asked = ("--game", "Carnival", "--agent", "api:m", "--base-url", server.url, "--episodes", 2, "--out", out)
        assert command(record, *asked) == 2
        assert "status 400 Bad Request: bad" in capsys.readouterr().err.strip().splitlines()[-1]
        assert len(EpisodeDataset(out).seeds) == 1
        assert command(record, *asked) == 0
        assert len(EpisodeDataset(out).seeds) == 2
        assert EpisodeDataset(out).info.agent == "api:m"
        shots = ("--few-shot", 3, "--examples", out, "--max-frames", 8)
        code, result = plays(server, tmp_path / "played", *shots)
        assert code == 0
        assert result["protocol"]["few_shot"] == result["rows"][0]["few_shot"] == 3
        messages = server.bodies[-1]["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant"] * 3 + ["user"]
        assert [message["content"] for message in messages[1::2]] == ["fire"] * 3
        assert plays(server, tmp_path / "other", *shots, "--game", "Pong")[0] == 2
        assert "expected a dataset of Pong and its actions, got Carnival" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("fire", "fire"),
        ("FIRE.", "fire"),
        ("  Right Fire\n", "right fire"),
        ("right_fire", "right fire"),
        ("**Action:** fire", "fire"),
        ("Action: LEFT", "left"),
        ('{"action": "right fire"}', "right fire"),
        ('```json\n{"action": "fire"}\n```', "fire"),
        ("<think>left or right? left!</think>\nfire", "fire"),
        ("The ducks come near.\n\nFinal answer: fire", "fire"),
        ("", None),
        ("jump", None),
        ("left or right", None),
        ("I would fire now", None),
        ("fire\nor maybe not", None),
        ('{"action": 3}', None),
        ("{" * 5000, None),
    ],
)
def test_an_answer_is_an_action_only_where_it_leaves_no_doubt(text, action):
    assert parse_action(text, ("noop", "fire", "left", "right", "right fire")) == action


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--agent", "api:m"), "expected --base-url URL for the agent api:MODEL"),
        (("--agent", "api:"), "expected api:MODEL"),
        (("--agent", "random", "--base-url", "http://x/v1"), "need --agent api:MODEL"),
        (("--agent", "api:m", "--base-url", "x:80"), "expected --base-url as http://127.0.0.1:8000/v1, got 'x:80'"),
        (("--agent", "api:m", "--base-url", "http://u:p@x/v1"), "without a password"),
        (("--agent", "api:m", "--base-url", "http://x/v1", "--few-shot", 2), "--few-shot N and --examples DATASET"),
        (
            ("--agent", "api:m", "--base-url", "http://x/v1", "--image-tokens", 9),
            "--image-tokens is for a model loaded",
        ),
        (("--agent", "api:m", "--base-url", "http://x/v1", "--history", 0), "--history must be at least 1"),
        (("--agent", "api:m", "--base-url", "http://x/v1", "--timeout", 0), "--timeout must be above 0"),
        (("--agent", "api:m", "--base-url", "http://x/v1", "--temperature", -1), "a temperature of at least 0"),
    ],
)
def test_each_mistake_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    assert command(play, "--out", tmp_path, *arguments) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_password_in_an_address_is_not_repeated():
    with pytest.raises(UserError) as refused:
        ApiConfig(base_url="http://u:hunter2@x/v1")
    assert "hunter2" not in str(refused.value)


@pytest.mark.slow
def test_a_whole_game_on_video_has_the_score_of_the_local_agent(tmp_path):
    arguments = ("--game", "Carnival", "--seed", 3, "--temperature", 0)
    assert command(play, *arguments, "--engine", "torch", "--no-video", "--out", tmp_path / "local") == 0
    serving = [sys.executable, "-m", "agents.serve", "--checkpoint", str(RELEASED_POLICY), "--port", "0"]
    process = subprocess.Popen(serving, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http://\S+/v1", process.stdout.readline())[0]
        asked = ("--agent", "api:policy", "--base-url", url, "--history", 2, "--out", tmp_path / "served")
        assert command(play, *arguments, *asked) == 0
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
    local, served = (json.loads(next((tmp_path / name).glob("*.json")).read_text()) for name in ("local", "served"))
    names = ("scores", "steps", "invalid")
    assert [served["rows"][0][name] for name in names] == [local["rows"][0][name] for name in names]
    assert served["rows"][0]["scores"][0] > 0
    assert next((tmp_path / "served").glob("*.mp4")).stat().st_size > 10_000


def test_one_table_holds_models_behind_an_endpoint_and_policies_here_each_with_the_limits_it_takes(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setitem(PROTOCOLS, "machado2018", replace(MACHADO2018, max_episode_frames=40))
    checkpoint.save(build("tiny"), tmp_path / "tiny")
    agents = ("api:m", f"vlm:{tmp_path / 'tiny'}", "random")
    games, out = ("Carnival", "MsPacman"), tmp_path / "s.json"
    with endpoint(lambda number, _: "fire" if number % 4 else "What a game!") as server:
        asked = ("--history", 2, "--image-tokens", 9, "--base-url", server.url, "--price", 1000, 5000)
        assert command(score, "--agents", *agents, "--games", *games, "--episodes", 1, *asked, "--out", out) == 2
        assert "--image-tokens: expected a model of transformers among --agents, got api:m" in capsys.readouterr().err
        assert not server.bodies
        asked = [one for one in asked if one not in ("--image-tokens", 9)]
        assert command(score, "--agents", *agents, "--games", *games, "--episodes", 1, *asked, "--out", out) == 0
    result, table = json.loads(out.read_text()), capsys.readouterr().out
    assert [(row["agent"], row["game"], row.get("history")) for row in result["rows"]] == [
        (agent, game, 2 if agent == "api:m" else None) for game in games for agent in agents
    ]
    assert result["protocol"]["paused"]
    (line,) = [line for line in table.split("Ms. Pac-Man")[0].splitlines() if "api:m" in line]
    assert "2 of 10 answers invalid (20.0%)  10 requests, 1,000 + 20 tokens, $1.10" in line
