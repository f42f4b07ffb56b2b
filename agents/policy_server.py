"""A served policy over HTTP: the chat form of OpenAI's endpoints, and a small JSON form.

    GET  /v1/info                   the checkpoint: history, temperature, games and their actions, pixels, masks
    GET  /v1/models                 NAME, and NAME/GAME for every game it was trained to play
    POST /v1/chat/completions       images in the user's messages -> the action's name
    POST /v1/act                    {"game": "Carnival", "frames": base64, "shape": [n, H, W, 3]}
    POST /v1/pixels                 {"frames", "shape", "cells": [[row, column], ...]}
    POST /v1/mask                   {"frames", "shape", "expression": "the red ghost"}

In a chat, the game is that of the model's name, else the one whose title the text holds. With `logprobs` the answer
counts as one token, and `top_logprobs` holds the other actions. A text that begins with "[reconstruct]" asks for pixel
values, of one cell as in "[reconstruct] loc: [12,7]"; "[segmentation] the red ghost" asks for a mask.

A mask is COCO's uncompressed run lengths: {"size": [H, W], "counts": [...]}, column by column, background first. A
mistake is answered by {"error": {"message": one line}}. Requests of web pages, which carry an Origin, are refused.
"""

import json
import re
import secrets
import time
import traceback
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import numpy as np

from agents.json_server import JsonHandler, JsonServer, RequestError
from agents.policy_requests import (
    MAX_BODY_BYTES,
    MAX_WORDS,
    ActRequest,
    ChatRequest,
    MaskRequest,
    PixelsRequest,
    parse_request,
)
from agents.served_policy import MAX_FRAMES, ActionAnswer, ServedPolicy
from common.errors import UserError, nearest
from common.text import printable
from envs.games import Game, find_game
from vlm.prompts import MASK_PREFIX

RECONSTRUCT = "[reconstruct]"
CELL = re.compile(r"\[reconstruct\] loc: \[(\d{1,5}) ?, ?(\d{1,5})\]")


class PolicyServer(JsonServer):
    """Serves one policy. default_game: of chats that name none."""

    def __init__(self, policy: ServedPolicy, host: str, port: int, default_game: Game | None = None, **limits: int):
        super().__init__(host, port, PolicyHandler, **limits)
        self.policy, self.default_game = policy, default_game

    @property
    def url(self) -> str:
        """The base URL of the chat form."""
        host = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return f"http://{host}:{self.server_port}/v1"


class PolicyHandler(JsonHandler):
    """Answers the requests of one client."""

    server: PolicyServer

    def respond(self) -> None:
        """Send an answer, or a refusal in one line."""
        status: int = HTTPStatus.OK
        try:
            content = self._answer()
        except UserError as error:
            status = error.status if isinstance(error, RequestError) else HTTPStatus.BAD_REQUEST
            content = _error(str(error), "invalid_request_error")
        except (ConnectionError, TimeoutError):
            raise  # the client left
        except Exception as error:  # a defect, or no memory: this client's answer, not the server's end
            traceback.print_exc()
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            content = _error(f"{type(error).__name__}: {error}", "server_error")
        self.send_json(status, content)

    def _answer(self) -> dict[str, Any]:
        path = self.path.partition("?")[0]
        if self.headers.get("Origin") is not None:
            raise RequestError(HTTPStatus.FORBIDDEN, "expected a program's request, got one of a web page")
        answers: dict[str, dict[str, Callable[[], dict[str, Any]]]] = {
            "GET": {"/v1/info": self.server.policy.info, "/v1/models": self._models},
            "POST": {
                "/v1/act": self._act,
                "/v1/pixels": self._pixels,
                "/v1/mask": self._mask,
                "/v1/chat/completions": self._chat,
            },
        }
        known = answers[self.command]
        if path not in known:
            message = f"there is no {self.command} {path[:80]}; expected {', '.join(known)}"
            raise RequestError(HTTPStatus.NOT_FOUND, message)
        return known[path]()

    def _body(self) -> bytes:
        return self.read_body(MAX_BODY_BYTES, "a request in JSON")

    def _models(self) -> dict[str, Any]:
        models = [{"id": name, "object": "model", "owned_by": "pvplay"} for name in self._model_names()]
        return {"object": "list", "data": models}

    def _model_names(self) -> list[str]:
        policy = self.server.policy
        return [policy.name, *(f"{policy.name}/{game}" for game in policy.model.games)]

    def _act(self) -> dict[str, Any]:
        request = parse_request(self._body(), ActRequest)
        answer = self.server.policy.act(
            request.array(), find_game(request.game), request.actions, request.temperature, request.seed
        )
        return {"action": answer.action, "index": answer.index, "probabilities": _by_action(answer)}

    def _pixels(self) -> dict[str, Any]:
        request = parse_request(self._body(), PixelsRequest)
        size, colors = self.server.policy.pixels(request.array(), request.cells)
        return {"grid": list(size), "colors": colors.tolist()}

    def _mask(self) -> dict[str, Any]:
        request = parse_request(self._body(), MaskRequest)
        return run_lengths(self.server.policy.mask(request.array(), request.expression))

    def _chat(self) -> dict[str, Any]:
        request, policy = parse_request(self._body(), ChatRequest), self.server.policy
        game = self._chat_game(request.model)
        frames, text = request.array(MAX_FRAMES), request.text().strip()
        logprobs = None
        if text.startswith(RECONSTRUCT):
            cell = CELL.match(text)
            size, colors = policy.pixels(frames, [(int(cell[1]), int(cell[2]))] if cell else None)
            content = ",".join(map(str, colors[0])) if cell else json.dumps({"grid": size, "colors": colors.tolist()})
        elif text.startswith(MASK_PREFIX):
            content = json.dumps(run_lengths(policy.mask(frames, _expression(text))))
        else:
            game = game or self._titled_game(request.text())
            answer = policy.act(frames, game, temperature=request.temperature, seed=request.seed)
            content = answer.action
            logprobs = _logprobs(answer, request.top_logprobs or 0) if request.logprobs else None
        choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
        return {
            "id": f"chatcmpl-{secrets.token_hex(8)}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request.model,
            "choices": [choice | {"logprobs": logprobs}],
        }

    def _chat_game(self, model: str) -> Game | None:
        """Return the game that a model's name holds, if any; `RequestError` for another model."""
        name, _, game = model.partition("/")
        if name != self.server.policy.name:
            known = self._model_names()
            message = (
                f"expected a model ({', '.join(known)}), got {model[:80]!r}; nearest: {nearest(model[:80], known)}"
            )
            raise RequestError(HTTPStatus.NOT_FOUND, message)
        return find_game(game) if game else self.server.default_game

    def _titled_game(self, text: str) -> Game:
        """Return the one trained game whose title a text holds; a checkpoint of one game needs no title."""
        games = [find_game(name) for name in self.server.policy.model.games]
        found = [game for game in games if re.search(rf"(?<!\w){re.escape(game.title)}(?!\w)", text)]
        found = games if len(games) == 1 else found
        if len(found) != 1:
            raise UserError(f"expected the model's name to hold the game: {', '.join(self._model_names()[1:])}")
        return found[0]


def _expression(text: str) -> str:
    expression = text.removeprefix(MASK_PREFIX)
    if len(expression) > MAX_WORDS:
        raise UserError(f"expected an expression of at most {MAX_WORDS} characters, got {len(expression):,}")
    return expression


def _error(message: str, kind: str) -> dict[str, Any]:
    return {"error": {"message": printable(" ".join(message.split()))[:500], "type": kind}}


def _by_action(answer: ActionAnswer) -> dict[str, float]:
    return {name: float(p) for name, p in zip(answer.action_names, answer.probabilities, strict=True)}


def _logprobs(answer: ActionAnswer, top: int) -> dict[str, Any]:
    logs = np.log(answer.probabilities.astype(np.float64) + 1e-30)
    tokens: list[dict[str, Any]] = [
        {"token": name, "logprob": float(log), "bytes": list(name.encode())}
        for name, log in zip(answer.action_names, logs, strict=True)
    ]
    ranked = [tokens[i] for i in np.argsort(-logs)[:top]]
    return {"content": [{**tokens[answer.index], "top_logprobs": ranked}], "refusal": None}


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Return a mask bool[H, W] as COCO's uncompressed run lengths: column by column, background first."""
    flat = mask.T.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}
