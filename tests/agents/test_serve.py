"""A served policy: both forms agree with the local agent, clients share forward passes, bad requests cost one line."""

import ast
import base64
import http.client
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agents import policy_client
from agents.data_url import png_url
from agents.policy_batches import ActionQuestion, PolicyBatcher
from agents.policy_client import PolicyClient, PolicyError
from agents.policy_requests import MAX_BODY_BYTES
from agents.policy_server import PolicyServer, run_lengths
from agents.rollout import play_games
from agents.served_policy import ServedPolicy
from agents.vlm_agent import VlmAgent
from envs.atari import make_envs
from envs.games import action_names, find_game
from vlm import checkpoint
from vlm.presets import build

ROOT = Path(__file__).resolve().parents[2]
ALL = {
    "games": ["Carnival", "MsPacman"],
    "arguments": {"grid": "8", "size": [210, 160]},
    "point_grid": 4,
    "play": {"temperature": 0.7},
}
CARNIVAL = find_game("Carnival")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    directory = tmp_path_factory.mktemp("served") / "tiny"
    checkpoint.save(build("tiny", seed=7), directory, ALL)
    return directory


@contextmanager
def serving(policy, **settings):
    with PolicyServer(policy, "127.0.0.1", 0, **settings) as server:
        threading.Thread(target=lambda: server.serve_forever(0.05), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


@pytest.fixture(scope="module")
def server(served):
    with serving(ServedPolicy(served)) as server:
        yield server


def ask(server, method, path, body=None, headers=None):
    """Return the status and the JSON of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    body = json.dumps(body).encode() if isinstance(body, dict) else body
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    found = response.status, json.loads(response.read())
    connection.close()
    return found


def frames_of(count, seed=0, size=(214, 160)):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def packed(frames):
    return {"frames": base64.b64encode(frames.tobytes()).decode(), "shape": list(frames.shape)}


def chat(frames, text="You play Carnival.", **settings):
    images = [{"type": "image_url", "image_url": {"url": png_url(frame)}} for frame in frames]
    content = [{"type": "text", "text": text}, *images]
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], **settings}


def expected_probabilities(served, frames):
    """The local agent's, after these frames of a game."""
    agent = VlmAgent(checkpoint.load(served), CARNIVAL.title, action_names(CARNIVAL))
    agent.reset([0])
    return [agent.act(frame[None]).scores[0] for frame in frames][-1]


def test_both_forms_answer_as_the_local_agent_does(server, served):
    frames = frames_of(server.policy.model.vlm.history)
    expected = expected_probabilities(served, frames)
    status, answer = ask(server, "POST", "/v1/act", {"game": "carnival", "temperature": 0, **packed(frames)})
    assert status == 200
    assert list(answer["probabilities"]) == list(action_names(CARNIVAL))
    assert np.float32(list(answer["probabilities"].values())).tolist() == expected.tolist()
    assert answer["index"] == expected.argmax()
    status, said = ask(
        server, "POST", "/v1/chat/completions", chat(frames, temperature=0, logprobs=True, top_logprobs=20)
    )
    assert status == 200
    assert said["choices"][0]["message"] == {"role": "assistant", "content": answer["action"]}
    tokens = said["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    assert {token["token"]: pytest.approx(np.exp(token["logprob"])) for token in tokens} == answer["probabilities"]


def test_fewer_frames_than_the_model_takes_are_those_of_a_games_start(server, served):
    frames = frames_of(1)
    _, answer = ask(server, "POST", "/v1/act", {"game": "Carnival", **packed(frames)})
    assert (
        np.float32(list(answer["probabilities"].values())).tolist() == expected_probabilities(served, frames).tolist()
    )


def test_an_action_is_drawn_at_a_temperature_with_the_requests_seed(server):
    def drawn(seed):
        body = {"game": "Carnival", "temperature": 5, "seed": seed, **packed(frames_of(1))}
        return ask(server, "POST", "/v1/act", body)[1]["action"]

    found = [drawn(seed) for seed in range(12)]
    assert len(set(found)) > 1
    assert found == [drawn(seed) for seed in range(12)]


def test_the_games_and_the_actions_are_those_that_are_named(server):
    frames = frames_of(1, size=(210, 160))
    _, named = ask(server, "POST", "/v1/chat/completions", {**chat(frames, "act"), "model": "tiny/MsPacman"})
    assert named["choices"][0]["message"]["content"] in action_names(find_game("MsPacman"))
    _, titled = ask(server, "POST", "/v1/chat/completions", chat(frames, 'The game is "Ms. Pac-Man".'))
    assert titled["model"] == "tiny"
    _, few = ask(server, "POST", "/v1/act", {"game": "MsPacman", "actions": ["up", "down"], **packed(frames)})
    assert list(few["probabilities"]) == ["up", "down"]
    _, models = ask(server, "GET", "/v1/models")
    assert [model["id"] for model in models["data"]] == ["tiny", "tiny/Carnival", "tiny/MsPacman"]


def test_pixel_values_and_masks_are_those_of_the_model_in_both_forms(server):
    client, frame = PolicyClient(server.url, "Carnival"), frames_of(1, seed=3)[0]
    questions = server.policy.model.about(server.policy._stack(frame[None]))
    assert np.array_equal(client.pixels(frame), questions.grid().predicted)
    assert np.array_equal(client.mask(frame, "the duck"), questions.mask("the duck"))
    _, cells = ask(server, "POST", "/v1/pixels", {"cells": [[5, 2], [0, 7]], **packed(frame[None])})
    assert cells == {"grid": [8, 8], "colors": questions.grid().predicted[[5, 0], [2, 7]].tolist()}
    _, said = ask(server, "POST", "/v1/chat/completions", chat(frame[None], "[reconstruct] loc: [5,2] rgb: ["))
    assert said["choices"][0]["message"]["content"] == ",".join(map(str, cells["colors"][0]))
    _, said = ask(server, "POST", "/v1/chat/completions", chat(frame[None], "[segmentation] the duck"))
    assert json.loads(said["choices"][0]["message"]["content"]) == run_lengths(questions.mask("the duck"))


def test_run_lengths_are_those_of_coco():
    pycocotools = pytest.importorskip("pycocotools.mask")
    for seed, share in ((0, 0.5), (1, 0.0), (2, 1.0), (3, 0.02)):
        mask = np.random.default_rng(seed).random((7, 5)) < share
        packed_mask = pycocotools.frPyObjects(run_lengths(mask), 7, 5)
        assert np.array_equal(pycocotools.decode(packed_mask).astype(bool), mask)


class Blocked:
    """Lets the first forward pass wait, so that others gather."""

    def __init__(self, batcher, monkeypatch):
        self.entered, self.go = threading.Event(), threading.Event()
        original = batcher._answer

        def wait(batch):
            self.entered.set()
            assert self.go.wait(30)
            original(batch)

        monkeypatch.setattr(batcher, "_answer", wait)


def test_clients_share_forward_passes_and_each_gets_its_own_answer(server, monkeypatch):
    frames = [frames_of(1, seed) for seed in range(9)]
    bodies = [{"game": "Carnival", **packed(frame)} for frame in frames]
    alone = [ask(server, "POST", "/v1/act", body)[1]["probabilities"] for body in bodies]
    batcher, before = server.policy.batcher, len(server.policy.batcher.batch_sizes)
    blocked = Blocked(batcher, monkeypatch)
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(ask, server, "POST", "/v1/act", bodies[0])
        assert blocked.entered.wait(30)
        others = [pool.submit(ask, server, "POST", "/v1/act", body) for body in bodies[1:]]
        while batcher._jobs.qsize() < 8:
            time.sleep(0.01)
        blocked.go.set()
        together = [one.result()[1]["probabilities"] for one in (first, *others)]
    assert batcher.batch_sizes[before:] == [1, 8]
    for one, other in zip(alone, together, strict=True):
        assert list(one.values()) == pytest.approx(list(other.values()), abs=1e-5)


def test_a_batch_has_a_largest_size_and_one_game(served):
    batcher = PolicyBatcher.__new__(PolicyBatcher)
    batcher.max_batch = 2
    frame = frames_of(1)

    class Job:
        def __init__(self, question):
            self.question = question

    jobs = [Job(ActionQuestion(title, ("up",), frame)) for title in "abaab"] + [Job(print), Job(print)]
    found = batcher._batches(jobs)
    assert [[job.question.title for job in batch] for batch in found[:3]] == [["a", "a"], ["b", "b"], ["a"]]
    assert [len(batch) for batch in found[3:]] == [1, 1]


BAD_JSON = [
    (b"{", "expected a request in JSON: "),
    (b"[]", "expected a request in JSON: "),
    (b"\xff\xfe", "expected a request in JSON: "),
    (b"[" * 100_000, "expected a request in JSON: "),
    (b'{"model": "tiny"}', "messages: field required"),
    (b'{"model": "tiny", "messages": []}', "messages: "),
    (b'{"model": "tiny", "messages": [{"role": "user", "content": "Carnival"}]}', "got none"),
]


@pytest.mark.parametrize(("body", "message"), BAD_JSON)
def test_a_malformed_chat_is_answered_in_one_line(server, body, message):
    status, answer = ask(server, "POST", "/v1/chat/completions", body)
    assert (status, list(answer)) == (400, ["error"])
    assert message in answer["error"]["message"]
    assert "\n" not in answer["error"]["message"]
    assert len(answer["error"]["message"]) <= 500


def with_url(url):
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Carnival"}]
    return {"model": "tiny", "messages": [{"role": "user", "content": content}]}


def bomb():
    buffer = io.BytesIO()
    Image.new("RGB", (6000, 6000)).save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("chat/completions", with_url("http://127.0.0.1:1/x.png"), "nothing is fetched"),
        ("chat/completions", with_url("file:///etc/passwd"), "nothing is fetched"),
        ("chat/completions", with_url("data:image/png;base64,!!"), "expected image 1 in base64"),
        ("chat/completions", with_url("data:image/png;base64,AAAA"), "image 1 is not a PNG or JPEG picture"),
        ("chat/completions", with_url(bomb()), "expected at most 4,194,304 pixels, got 6000 x 6000"),
        ("chat/completions", chat(frames_of(1), "act"), "expected the model's name to hold the game: tiny/Carnival"),
        ("chat/completions", chat(frames_of(1), stream=True), "stream: "),
        ("chat/completions", chat(frames_of(1), temperature=-1), "temperature: "),
        ("chat/completions", chat(frames_of(1), temperature=1e-9), "expected a temperature of 0, or of at least 0.001"),
        ("chat/completions", {**chat(frames_of(1)), "model": "tiny/" + "x" * 10**6}, "model: "),
        ("chat/completions", chat(frames_of(1), "[segmentation]" + "x" * 201), "of at most 200 characters, got 201"),
        ("chat/completions", chat(frames_of(1, size=(84, 84))), "214 x 160 pixels, got 84 x 84"),
        ("act", {"game": "Carnival", "frames": "AAAA", "shape": [1, 214, 160, 3]}, "bytes, up to 12,582,912, got 3"),
        ("act", {"game": "Carnival", "frames": "", "shape": [1, 2**14, 2**14, 3]}, "up to 12,582,912, got 0"),
        ("act", {"game": "Carnival", "frames": "", "shape": [1, -1, 160, 3]}, "shape.1: "),
        ("act", {"game": "Carnival", "frames": "", "shape": [17, 1, 1, 3]}, "up to 16 frames"),
        ("act", {"game": "Carnivall", **packed(frames_of(1))}, "nearest: Carnival"),
        ("act", {"game": "Carnival", "gmae": 1, **packed(frames_of(1))}, "gmae: "),
        ("act", {"game": "Carnival", "actions": ["jump"], **packed(frames_of(1))}, "got 'jump'; nearest: "),
        ("act", {"game": "Carnival", "actions": ["up", "up"], **packed(frames_of(1))}, "expected different actions"),
        ("pixels", {"cells": [[8, 0]], **packed(frames_of(1))}, "got row 8, column 0"),
        ("mask", {"expression": "", **packed(frames_of(1))}, "expression: "),
        ("mask", {"expression": " ", **packed(frames_of(1))}, "got none"),
        ("mask", {"expression": "x" * 201, **packed(frames_of(1))}, "expression: "),
    ],
)
def test_each_mistake_is_one_line(server, path, body, message):
    status, answer = ask(server, "POST", f"/v1/{path}", body)
    assert status == 400
    assert message in answer["error"]["message"]
    assert "\n" not in answer["error"]["message"]


def test_other_paths_models_methods_and_web_pages_are_refused(server):
    assert ask(server, "GET", "/v1/act")[0] == 404
    status, answer = ask(server, "POST", "/v1/chat/completions", {**chat(frames_of(1)), "model": "tinny/Carnival"})
    assert status == 404
    assert "nearest: tiny/Carnival" in answer["error"]["message"]
    assert ask(server, "GET", "/v1/info", headers={"Origin": "http://evil.example"})[0] == 403
    assert ask(server, "PUT", "/v1/act", b"")[0] == 501


def test_an_over_long_body_is_refused_before_it_is_read(server):
    status, answer = ask(server, "POST", "/v1/act", b"x" * (MAX_BODY_BYTES + 1))
    assert status == 413
    assert "expected a request in JSON of up to 8,388,608 bytes" in answer["error"]["message"]
    for headers, expected in (({"Content-Length": "9" * 5000}, 413), ({"Content-Length": "-5"}, 411)):
        assert ask(server, "POST", "/v1/act", None, headers)[0] == expected
    assert ask(server, "POST", "/v1/act", iter([b"{}"]), {"Transfer-Encoding": "chunked"})[0] == 411


def test_clients_that_leave_or_stall_take_nothing_from_the_others(served, capfd):
    with serving(ServedPolicy(served), max_connections=2) as server:
        server.seconds_to_arrive = 3
        body = json.dumps({"game": "Carnival", **packed(frames_of(1))}).encode()
        head = f"POST /v1/act HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        for sent in (b"", head[:9], head, head + body[:99], head + body):
            with socket.create_connection(("127.0.0.1", server.server_port)) as gone:
                gone.sendall(sent)
        deadline = time.monotonic() + 60
        while ask(server, "GET", "/v1/info")[0] != 200 and time.monotonic() < deadline:
            time.sleep(0.02)
        while server._slots._value < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        stalled = [socket.create_connection(("127.0.0.1", server.server_port)) for _ in range(2)]
        while len(server._deadlines) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        for one in stalled:
            one.sendall(head + body[:50])  # and nothing more
        refused = socket.create_connection(("127.0.0.1", server.server_port))
        refused.settimeout(10)
        assert b"503" in refused.recv(4096)
        assert [one.settimeout(10) or one.recv(10) for one in stalled] == [b"", b""]  # closed by the server
        while server._deadlines and time.monotonic() < deadline:
            time.sleep(0.02)
        assert ask(server, "POST", "/v1/act", body)[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_defect_is_one_clients_answer_and_the_model_goes_on(server, monkeypatch, capfd):
    body = {"game": "Carnival", **packed(frames_of(1))}
    with monkeypatch.context() as patch:
        patch.setattr(server.policy.model.vlm, "encode_images", lambda *_: 1 / 0)
        status, answer = ask(server, "POST", "/v1/act", body)
        assert (status, answer["error"]["message"]) == (500, "ZeroDivisionError: division by zero")
    assert "ZeroDivisionError" in capfd.readouterr().err
    assert ask(server, "POST", "/v1/act", body)[0] == 200


def test_the_client_is_one_short_file_that_needs_numpy_alone():
    text = Path(policy_client.__file__).read_text()
    assert len(text.splitlines()) < 100
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in imports if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == {"numpy"}


def test_the_client_plays_as_the_local_agent_does_at_the_checkpoints_temperature(server, served):
    with make_envs(CARNIVAL, 1) as envs:
        agent = VlmAgent.load(served, envs, "scores", None, "torch")
        assert agent.temperature == 0.7
        steps = play_games(agent, envs, [5])
        local = [next(steps) for _ in range(40)]
    client = PolicyClient(server.url, "Carnival")
    client.reset(5)
    assert [client.act(step.frame) for step in local] == [step.text for step in local]
    assert len({step.text for step in local}) > 1


def test_the_client_reports_the_servers_refusal_and_a_server_that_is_gone(server):
    client = PolicyClient(server.url, "Carnival")
    with pytest.raises(PolicyError, match="214 x 160 pixels, got 84 x 84"):
        client.act(np.zeros((84, 84, 3), np.uint8))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(PolicyError, match=f"http://127.0.0.1:{port}: "):
        PolicyClient(f"http://127.0.0.1:{port}", "Carnival")


@contextmanager
def process(directory, *options):
    """A process of `agents.serve`; yields its base URL."""
    command = [sys.executable, "-m", "agents.serve", "--checkpoint", str(directory), "--port", "0", *options]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = running.stdout.readline()
        assert line, running.stderr.read()
        yield re.search(r"http://\S+/v1", line)[0], running
    finally:
        running.send_signal(signal.SIGINT)
        assert running.wait(120) == 0  # on a busy machine the interpreter itself takes long to end
        assert "Traceback" not in running.stderr.read()


@pytest.mark.slow
def test_a_process_serves_several_clients_whatever_others_send(served):
    with process(served) as (url, _):
        port = int(url.split(":")[2].split("/")[0])

        def plays(seed):
            client, frames = PolicyClient(url, "Carnival", temperature=0), frames_of(6, seed)
            client.reset(seed)
            return [client.act(frame) for frame in frames]

        def disturbs(_):
            for sent in (
                b"\x00\xff" * 500,
                b"POST /v1/act HTTP/1.1\r\nContent-Length: 7\r\n\r\n{",
                b"GET / HTTP/1.1\r\n",
            ):
                with socket.create_connection(("127.0.0.1", port)) as gone:
                    gone.sendall(sent)

        with ThreadPoolExecutor(8) as pool:
            games = [pool.submit(plays, seed) for seed in range(5)]
            assert [one.result() for one in [pool.submit(disturbs, number) for number in range(9)]] == [None] * 9
            together = [game.result() for game in games]
        assert together == [plays(seed) for seed in range(5)]
