"""A small server of this computer alone, for the page `ask.html`: an `AskSession`'s answers as JSON.

    GET  /                                  the page
    GET  /api/info, /api/state, /api/grid
    GET  /api/pixel?row=3&column=7
    GET  /api/mask?expression=the+red+ghost
    POST /api/step, /api/restart
    POST /api/picture                       a PNG or JPEG as the body

A user's mistake is answered by 400 and {"error": one line}. The address is 127.0.0.1, and requests that another site
makes in the user's browser are refused: they name another host or origin.
"""

import json
import threading
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from agents.ask_session import AskSession
from agents.json_server import JsonHandler, JsonServer
from common.errors import UserError

PAGE = Path(__file__).with_name("ask.html")
HOST = "127.0.0.1"
MAX_PICTURE_BYTES = 2**25
BAKED = '<script type="application/json" id="baked">null</script>'


class AskServer(JsonServer):
    """Serves one session; requests wait for one another."""

    def __init__(self, session: AskSession, port: int):
        super().__init__(HOST, port, AskHandler)
        self.session, self.lock = session, threading.Lock()

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.server_port}/"


class AskHandler(JsonHandler):
    """Answers one request."""

    server: AskServer

    def respond(self) -> None:
        """Send the page, an answer or a refusal."""
        known = {"GET": {"info", "state", "grid", "pixel", "mask"}, "POST": {"step", "restart", "picture"}}
        try:
            url = urlsplit(self.path)
            name = url.path.removeprefix("/api/")
            if not self._is_own_page():
                self.send_json(HTTPStatus.FORBIDDEN, {"error": "expected a request of this server's own page"})
            elif url.path == "/" and self.command == "GET":
                self.send(HTTPStatus.OK, "text/html; charset=utf-8", PAGE.read_bytes())
            elif url.path == f"/api/{name}" and name in known[self.command]:
                self.send_json(HTTPStatus.OK, self._answer(name, parse_qs(url.query)))
            else:
                self.send_json(HTTPStatus.NOT_FOUND, {"error": f"there is no {self.command} {url.path}"})
        except (UserError, ValueError) as error:  # urlsplit raises ValueError
            self.send_json(HTTPStatus.BAD_REQUEST, {"error": " ".join(str(error).split())})

    def _is_own_page(self) -> bool:
        own = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        origin = self.headers.get("Origin")
        return self.headers.get("Host") in own and (origin is None or urlsplit(origin).netloc in own)

    def _answer(self, name: str, query: dict[str, list[str]]) -> dict[str, Any]:
        content = self.read_body(MAX_PICTURE_BYTES, "a picture") if name == "picture" else b""
        session = self.server.session
        with self.server.lock:
            if name == "pixel":
                return session.pixel(_integer(query, "row"), _integer(query, "column"))
            if name == "mask":
                return session.mask(query.get("expression", [""])[0])
            return session.show_picture(content) if name == "picture" else getattr(session, name)()


def _integer(query: dict[str, list[str]], name: str) -> int:
    value = query.get(name, [""])[0]
    if not (value.isascii() and value.isdecimal() and len(value) < 6):
        raise UserError(f"expected {name}, a whole number, got {value[:20]!r}")
    return int(value)


def bake_page(session: AskSession, num_frames: int, frame_every: int, expressions: tuple[str, ...]) -> str:
    """Return the page with the answers about `num_frames` frames, `frame_every` steps apart, and needing no server."""
    frames: list[dict[str, Any]] = []
    while len(frames) < num_frames:
        frame = session.state()
        frame["grid_answer"] = session.grid() if session.model.pixels else None
        frame["masks"] = [session.mask(words) for words in expressions] if session.model.segmenter else []
        frames.append(frame)
        if session.envs is None or frame.get("ended"):
            break
        for _ in range(frame_every):
            session.step()
    content = json.dumps({"info": session.info(), "frames": frames, "expressions": list(expressions)})
    script = BAKED.replace("null", content.replace("<", "\\u003c").replace("&", "\\u0026"))
    page = PAGE.read_text()
    assert BAKED in page
    return page.replace(BAKED, script)
