"""A client of `agents.serve` that needs numpy alone; copy this file into a harness of your own.

    client = PolicyClient("http://127.0.0.1:8124", "Carnival")
    client.reset(seed=1)                        at the start of every game
    name = client.act(frame)                    frame uint8[H, W, 3], the game's own, one for each agent step
    client.probabilities                        of every action, by name

    client.pixels(frame)                        uint8[rows, columns, 3], the colors that the model answers
    client.mask(frame, "the red ghost")         bool[H, W]

A game that starts with a seed is played as `agents.play` plays it with that emulator seed.
"""

import base64
import json
import urllib.error
import urllib.request

import numpy as np


class PolicyError(Exception):
    """What the server, or the way to it, refuses, in one line."""


class PolicyClient:
    """Plays one game with a served policy; `timeout` in seconds, of each answer."""

    def __init__(self, url: str, game: str, temperature: float | None = None, timeout: float = 60.0):
        self.url, self.game, self.timeout = url.rstrip("/").removesuffix("/v1"), game, timeout
        self.info = self._request("/v1/info", None)
        self.temperature: float = self.info["temperature"] if temperature is None else temperature
        self.probabilities: dict[str, float] = {}
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Start a game; its frames and its random draws are its own."""
        self._frames: list[np.ndarray] = []
        self._rng = np.random.default_rng([seed, 0x5A3])

    def act(self, frame: np.ndarray) -> str:
        """Return the action's name for the present frame uint8[H, W, 3]."""
        first = self._frames or [frame] * self.info["history"]
        self._frames = [*first, frame][-self.info["history"] :]
        answer = self._request("/v1/act", {"game": self.game, "temperature": 0, **_packed(np.stack(self._frames))})
        self.probabilities = answer["probabilities"]
        names, found = list(self.probabilities), np.array(list(self.probabilities.values()))
        if self.temperature == 0:
            return names[int(found.argmax())]
        logits = np.log(found + 1e-30) / self.temperature
        weights = np.exp(logits - logits.max())
        return names[int(self._rng.choice(len(names), p=weights / weights.sum()))]

    def pixels(self, frame: np.ndarray) -> np.ndarray:
        """Return the color that the model answers for every cell of its grid, uint8[rows, columns, 3]."""
        answer = self._request("/v1/pixels", _packed(frame[None]))
        return np.array(answer["colors"], np.uint8).reshape(*answer["grid"], 3)

    def mask(self, frame: np.ndarray, expression: str) -> np.ndarray:
        """Return the mask of what words mean, bool[H, W]."""
        answer = self._request("/v1/mask", {"expression": expression, **_packed(frame[None])})
        height, width = answer["size"]
        runs = np.arange(len(answer["counts"])) % 2 == 1
        return np.repeat(runs, answer["counts"]).reshape(width, height).T

    def _request(self, path: str, content: dict | None) -> dict:
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            try:
                message = json.load(error)["error"]["message"]
            except (ValueError, KeyError, TypeError):
                message = error.reason
            raise PolicyError(f"{self.url}: {message}") from error
        except (OSError, ValueError) as error:
            raise PolicyError(f"{self.url}: {error}") from error


def _packed(frames: np.ndarray) -> dict:
    content = base64.b64encode(np.ascontiguousarray(frames, np.uint8).tobytes()).decode()
    return {"frames": content, "shape": list(frames.shape)}
