"""A model behind an OpenAI-compatible endpoint as an agent: frames as images in a chat, a text action out.

    python -m agents.play --game Carnival --agent api:llava --base-url http://127.0.0.1:11434/v1

The game waits for the answers; parallel games ask at once. A failure of the endpoint ends the play with an error and
never becomes an action; an answer that names no legal action is counted as invalid, and too many in a row end the play.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from agents.agent import Actions, Rngs, reset_rngs, reset_states
from agents.api_client import ChatClient
from agents.api_config import MAX_NEW_TOKENS, ApiConfig, ApiError
from agents.data_url import png_url
from agents.model_limits import NO_LIMITS, ModelLimits
from common.errors import UserError
from common.text import printable
from envs.atari import GameEnvs
from envs.hub_sets import open_dataset
from vlm.prompts import parse_action

Chat = list[dict[str, Any]]


class ApiAgent:
    """Plays one game with a model behind an endpoint; a temperature of None is the endpoint's own."""

    def __init__(
        self,
        model: str,
        envs: GameEnvs,
        config: ApiConfig,
        temperature: float | None,
        limits: ModelLimits = NO_LIMITS,
    ):
        if temperature is not None and temperature < 0:
            raise UserError(f"expected a temperature of at least 0, got {temperature}")
        self.model, self.config, self.temperature = model, config, temperature
        self.history, self.max_new_tokens = limits.history or 1, limits.max_new_tokens or MAX_NEW_TOKENS
        self.action_names = envs.action_names
        self.name = agent_name(model, self.history, config.few_shot)
        self.client = ChatClient(config)
        self._question = question(envs, self.history)
        self._examples = read_examples(config, envs, self._question, self.history)
        self._urls: list[list[str]] = []  # of each environment's last frames
        self._rngs: Rngs = []
        self._idle = np.zeros(0, dtype=bool)
        self._invalid_in_a_row = 0

    def reset(self, seeds: Sequence[int | None]) -> None:
        """See `agents.agent.Agent`."""
        self._urls = reset_states(self._urls, seeds, lambda _: [])
        self._rngs = reset_rngs(self._rngs, seeds, 0xA91)
        self.set_idle(np.zeros(len(seeds), dtype=bool))

    def set_idle(self, idle: np.ndarray) -> None:
        """See `agents.agent.report_idle`."""
        self._idle = idle

    def act(self, frames: np.ndarray) -> Actions:
        """Return the actions that the model answers; `ApiError` if the endpoint gives no answer."""
        playing = np.flatnonzero(~self._idle)
        bodies = [self._body(int(i), png_url(frames[i])) for i in playing]
        texts = [""] * len(frames)
        for i, text in zip(playing, self.client.complete(bodies), strict=True):
            texts[i] = text
        parsed = [parse_action(text, self.action_names) for text in texts]
        invalid = np.array([name is None for name in parsed]) & ~self._idle
        self._count_invalid([texts[i] for i in playing], invalid[playing])
        indices = np.array([0 if name is None else self.action_names.index(name) for name in parsed])
        return Actions(indices, tuple(texts), None, invalid)

    def _body(self, env_index: int, url: str) -> dict[str, Any]:
        """Return the request about an environment's frames, the first of which is repeated."""
        self._urls[env_index] = [*(self._urls[env_index] or [url] * self.history), url][-self.history :]
        asked = {"role": "user", "content": content(self._question, self._urls[env_index])}
        body = {"model": self.model, "messages": [*self._examples, asked], "max_tokens": self.max_new_tokens}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.temperature != 0:
            body["seed"] = int(self._rngs[env_index].integers(2**31))
        return body

    def _count_invalid(self, texts: list[str], invalid: np.ndarray) -> None:
        for text, wrong in zip(texts, invalid, strict=True):
            self._invalid_in_a_row = self._invalid_in_a_row + 1 if wrong else 0
            if self._invalid_in_a_row >= self.config.max_invalid:
                said = printable(" ".join(text.split()))[:100]
                count = f"{self._invalid_in_a_row} answers in a row (--max-invalid)"
                raise ApiError(f"{self.client.url}: {count} named none of the legal actions; the last: {said!r}")

    def usage(self) -> dict[str, Any]:
        """Return what a result row tells of the requests."""
        return self.client.usage.row(self.config.price)


def agent_name(model: str, history: int, few_shot: int) -> str:
    """Return the name of an agent in videos and datasets, with the settings that change what it sees."""
    frames = f", {history} frames" if history > 1 else ""
    return f"api:{model}{frames}" + (f", few-shot {few_shot}" if few_shot else "")


def question(envs: GameEnvs, history: int) -> str:
    """Return the text of a question; the images follow it."""
    screens = "The image is the present screen."
    if history > 1:
        apart = f"{envs.protocol.frame_skip} frames of 60 a second apart"
        screens = f"The images are the last {history} screens, {apart}, the present one last."
    actions = ", ".join(envs.action_names)
    return (
        f"You play the Atari 2600 game {envs.game.title}. {screens} "
        f"The legal actions are: {actions}. Answer with the name of one of them and nothing else."
    )


def content(text: str, urls: Sequence[str]) -> list[dict[str, Any]]:
    """Return the content of a message: a text and images."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"type": "text", "text": text}, *images]


def read_examples(config: ApiConfig, envs: GameEnvs, text: str, history: int) -> Chat:
    """Return the chat of the examples: steps at even distances of a dataset of the same game and actions."""
    if not config.examples:
        return []
    data = open_dataset(config.examples)
    if (data.info.game, data.info.action_names) != (envs.game.name, envs.action_names):
        raise UserError(f"--examples: expected a dataset of {envs.game.name} and its actions, got {data.info.game}")
    if len(data) < config.few_shot:
        raise UserError(f"--few-shot {config.few_shot}: {config.examples} holds {len(data)} steps")
    chat: Chat = []
    for row in np.linspace(0, len(data) - 1, config.few_shot + 2).round().astype(int)[1:-1]:
        urls = [png_url(frame) for frame in data.frames(int(row), history)]
        chat.append({"role": "user", "content": content(text, urls)})
        chat.append({"role": "assistant", "content": envs.action_names[int(data.actions[row])]})
    return chat
