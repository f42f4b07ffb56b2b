"""Chat completions of an OpenAI-compatible endpoint, several at once: retries, a time-out, counts, a cache.

Whatever goes wrong on the way is an `ApiError` of one line, within the time-out of the question. An answer is checked
and bounded: an endpoint is not trusted.
"""

import asyncio
import hashlib
import json
import random
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx2
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from agents.api_config import ApiConfig, ApiError, read_key
from common.errors import UserError
from common.files import write_text_atomically
from common.json_file import checked, first_fault, parse_json, read_json
from common.text import printable

MAX_ANSWER_BYTES = 2**20
MAX_WAIT = 30.0  # seconds between two tries
BUSY = (408, 409, 425, 429)  # statuses that another try may mend, beside those of 500 and above


class _TryError(Exception):
    """One try that failed; `retry` if another may succeed, after so many seconds if the endpoint says so."""

    def __init__(self, message: str, retry: bool, wait: float = 0.0):
        super().__init__(message)
        self.retry, self.wait = retry, wait


Count = Annotated[int, Field(ge=0, lt=2**40)]


class Message(BaseModel):
    """What the model says; None where it says nothing."""

    content: str | None = None


class Choice(BaseModel):
    """One answer."""

    message: Message


class Usage(BaseModel):
    """The tokens of a question and an answer."""

    prompt_tokens: Count = 0
    completion_tokens: Count = 0


class Completion(BaseModel):
    """The part of a chat completion that is read here."""

    choices: Annotated[list[Choice], Field(min_length=1)]
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """The answer."""
        return self.choices[0].message.content or ""


@dataclass
class ApiUsage:
    """What an agent asked of an endpoint. uncounted: answers that came without a count of their tokens."""

    requests: int = 0
    retries: int = 0
    cached: int = 0
    uncounted: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, completion: Completion) -> None:
        """Count an answer."""
        self.requests += 1
        if completion.usage is None:
            self.uncounted += 1
            return
        self.prompt_tokens += completion.usage.prompt_tokens
        self.completion_tokens += completion.usage.completion_tokens

    def row(self, price: tuple[float, float] | None) -> dict[str, Any]:
        """Return the entries of a result row; the cost is None where no price, or not every token, is known."""
        cost = None
        if price and not self.uncounted:
            cost = round((self.prompt_tokens * price[0] + self.completion_tokens * price[1]) / 1e6, 6)
        counts = {"requests": self.requests, "retries": self.retries, "cached_answers": self.cached}
        tokens = {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens}
        return {**counts, **tokens, "answers_without_token_counts": self.uncounted, "cost": cost}


class ChatClient:
    """Asks one endpoint. Its connections live in an event loop on a thread of its own."""

    def __init__(self, config: ApiConfig):
        self.config, self.usage, self._key = config, ApiUsage(), read_key()
        self.url = f"{str(config.base_url).rstrip('/')}/chat/completions"
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="api").start()
        self._http = self._wait(self._connect())

    async def _connect(self) -> httpx2.AsyncClient:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        limits = httpx2.Limits(max_connections=None)
        return httpx2.AsyncClient(headers=headers, timeout=self.config.timeout, limits=limits)

    def complete(self, bodies: Sequence[dict[str, Any]]) -> list[str]:
        """Return the answer to every request, asked at once; `ApiError` for the first that has none."""
        found = self._wait(self._complete(bodies))
        for answer in found:  # the others are in the cache by now
            if isinstance(answer, BaseException):
                raise answer
        return [str(answer) for answer in found]

    def _wait(self, task: Coroutine[Any, Any, Any]) -> Any:
        future = asyncio.run_coroutine_threadsafe(task, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    async def _complete(self, bodies: Sequence[dict[str, Any]]) -> list[str | BaseException]:
        return await asyncio.gather(*map(self._answer, bodies), return_exceptions=True)

    async def _answer(self, body: dict[str, Any]) -> str:
        content = json.dumps(body).encode()
        file = self._cache_file(content)
        if file is not None and file.is_file():
            self.usage.cached += 1
            return checked(read_json(file), Completion, file).text
        completion = await self._ask(content)
        self.usage.add(completion)
        if file is not None:
            write_text_atomically(file, completion.model_dump_json())
        return completion.text

    def _cache_file(self, content: bytes) -> Path | None:
        if self.config.cache is None:
            return None
        key = hashlib.sha256(self.url.encode() + b"\n" + content).hexdigest()
        return self.config.cache / key[:2] / f"{key[2:]}.json"

    async def _ask(self, content: bytes) -> Completion:
        """Return the completion, within the time-out."""
        last = ""
        try:
            async with asyncio.timeout(self.config.timeout):
                for tries in range(self.config.retries + 1):
                    try:
                        return await self._try(content)
                    except _TryError as failure:
                        last = str(failure)
                        if not failure.retry or tries == self.config.retries:
                            again = f" ({tries + 1} tries)" if tries else ""
                            raise ApiError(f"{self.url}: {last}{again}") from failure
                        wait = failure.wait or min(MAX_WAIT, 0.5 * 2**tries) * random.uniform(0.75, 1.25)
                    self.usage.retries += 1
                    await asyncio.sleep(wait)
        except TimeoutError as error:
            before = f"; the last try: {last}" if last else ""
            raise ApiError(f"{self.url}: no answer within {self.config.timeout:g} s (--timeout){before}") from error
        raise AssertionError

    async def _try(self, content: bytes) -> Completion:
        headers, answer = {"Content-Type": "application/json"}, bytearray()
        try:
            async with self._http.stream("POST", self.url, content=content, headers=headers) as response:
                async for chunk in response.aiter_bytes(2**16):
                    answer += chunk
                    if len(answer) > MAX_ANSWER_BYTES:
                        raise _TryError(f"expected an answer of at most {MAX_ANSWER_BYTES:,} bytes, got more", False)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            reason = printable(str(error)) or type(error).__name__
            raise _TryError(f"the connection failed: {reason}", True) from error
        if response.status_code != 200:
            raise _refusal(response, bytes(answer))
        return _parse(bytes(answer))


def _refusal(response: httpx2.Response, answer: bytes) -> _TryError:
    """Return the failure of a status other than 200, with what the endpoint says of it."""
    status = response.status_code
    try:
        content = parse_json(answer, "the answer")
        said = content["error"]["message"] if isinstance(content["error"], dict) else content["error"]
    except (UserError, KeyError, TypeError, IndexError):
        said = answer[:200].decode(errors="replace")
    message = f"status {status} {response.reason_phrase}: {' '.join(str(said).split())[:300]}"
    wait = response.headers.get("Retry-After", "")
    seconds = min(float(wait), 3600.0) if wait.isascii() and wait.isdecimal() and len(wait) < 6 else 0.0
    return _TryError(printable(message.rstrip(": ")), status in BUSY or status >= 500, seconds)


def _parse(answer: bytes) -> Completion:
    """Return a checked completion; a proxy's page may come in its place, so that another try may mend it."""
    try:
        return TypeAdapter(Completion).validate_python(parse_json(answer, "the answer"))
    except ValidationError as error:
        raise _TryError(f"expected a chat completion, got other JSON: {first_fault(error)}", True) from error
    except UserError as error:
        raise _TryError(f"expected a chat completion in JSON, got {printable(repr(answer[:60]))}", True) from error
