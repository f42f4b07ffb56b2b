"""How `--agent api:MODEL` asks an OpenAI-compatible endpoint: the flags that play, score and record share."""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agents.model_limits import NO_LIMITS, ModelLimits
from common.command import require_at_least
from common.errors import UserError

KEY_VARIABLE = "OPENAI_API_KEY"
MAX_NEW_TOKENS = 64  # of an answer, where --max-new-tokens does not tell
PAUSED, FEW_SHOT = "paused", "few_shot"  # what a result's protocol tells of such agents beside the emulator's rules


class ApiError(UserError):
    """An endpoint that gives no answer, or no action for long. It is never taken for an action."""


@dataclass(frozen=True)
class ApiConfig:
    """An endpoint of --agent api:MODEL, and how it is asked."""

    base_url: str | None = None
    """The endpoint of --agent api:MODEL, as http://127.0.0.1:8000/v1; its key is taken from OPENAI_API_KEY."""
    few_shot: int = 0
    """Examples before a question to an endpoint, from --examples."""
    examples: Path | None = None
    """A dataset of the game (`agents.record`) with the examples of --few-shot."""
    timeout: float = 120.0
    """Seconds in which an endpoint answers a question, retries included; then the play ends with an error."""
    retries: int = 3
    """How often a question is repeated where an endpoint refuses the connection, fails or is busy."""
    max_invalid: int = 50
    """Answers in a row that name no legal action, after which the play ends with an error."""
    cache: Path | None = None
    """A directory that keeps an endpoint's answers: the same question is not asked, nor paid, again."""
    price: tuple[float, float] | None = None
    """Dollars per million tokens of questions and of answers; the result then tells the cost."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "max_invalid")
        require_at_least(self, 0, "few_shot", "retries")
        if not 0 < self.timeout <= 86_400:
            raise UserError(f"--timeout must be above 0 and at most 86400, got {self.timeout:g}")
        if self.price and min(self.price) < 0:
            raise UserError(f"--price must be at least 0, got {list(self.price)}")
        if bool(self.few_shot) != bool(self.examples):
            raise UserError("expected --few-shot N and --examples DATASET together, got one of them")
        if self.base_url is not None:
            _check_url(self.base_url)

    def check_agents(self, types: Collection[str], limits: ModelLimits = NO_LIMITS) -> None:
        """Refuse an endpoint's agent without an endpoint, an endpoint without an agent, and limits that it ignores."""
        if "api" in types and self.base_url is None:
            raise UserError("expected --base-url URL for the agent api:MODEL, as http://127.0.0.1:8000/v1, got none")
        if "api" not in types and self != ApiConfig():
            raise UserError("--base-url and the other settings of an endpoint need --agent api:MODEL")
        if limits.image_tokens is not None and set(types) == {"api"}:
            raise UserError("--image-tokens is for a model loaded here; an endpoint takes what tokens its model needs")

    def row_key(self, temperature: float | None, limits: ModelLimits) -> dict[str, Any]:
        """Return the settings that a result row tells; None is the endpoint's own temperature."""
        asked = {"history": limits.history or 1, FEW_SHOT: self.few_shot}
        written = {"max_new_tokens": limits.max_new_tokens or MAX_NEW_TOKENS}
        return {"decode": "generate", "temperature": temperature, **asked, **written}

    def played(self) -> dict[str, Any]:
        """Return the settings that decide what is played, as JSON values; the others may change when one resumes."""
        examples = None if self.examples is None else str(self.examples)
        return {"base_url": self.base_url, FEW_SHOT: self.few_shot, "examples": examples}

    def rules(self) -> dict[str, Any]:
        """Return what a result's protocol tells: the game waits for every answer, and how many examples there are."""
        return {PAUSED: True, FEW_SHOT: self.few_shot}


NO_ENDPOINT = ApiConfig()


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        raise UserError(f"expected --base-url as http://127.0.0.1:8000/v1, got {url!r}")
    if parts.username is not None or parts.query or parts.fragment:
        raise UserError(f"expected --base-url without a password, query or fragment; a key belongs into {KEY_VARIABLE}")


def read_key() -> str | None:
    """Return the endpoint's key of the environment, if any; `UserError` if no header can hold it."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"expected printable ASCII in {KEY_VARIABLE}, got something else")
    return key or None
