"""The action that an endpoint's answer names, as chat models write it; an answer that leaves a doubt names none."""

import json
import re
from collections.abc import Sequence

THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
LABEL = re.compile(r"(?:the )?(?:final |next |best |chosen )?(?:answer|action)(?: is)?\s*[:=]?\s+(.*)", re.IGNORECASE)
FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)


def answered_action(text: str, legal: Sequence[str]) -> str | None:
    """Return the legal action that an answer, or its last line, consists of; None if there is none.

    Case, quotes, emphasis and a full stop do not matter, nor do "Action:" before it and {"action": ...} around it.
    """
    names = {_key(name): name for name in legal}
    text = THOUGHT.sub("", text).strip()
    for candidate in (text, text.rpartition("\n")[2]):
        if (name := names.get(_key(_unwrapped(candidate)))) is not None:
            return name
    return None


def _unwrapped(text: str) -> str:
    """Return the action in a JSON object or behind a label, else the text."""
    if fenced := FENCE.fullmatch(text):
        text = fenced[1]
    if text.startswith("{") and len(text) < 10_000:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return text
        return found["action"] if isinstance(found, dict) and isinstance(found.get("action"), str) else text
    labelled = LABEL.fullmatch(text.replace("*", "").strip())
    return labelled[1] if labelled else text


def _key(text: str) -> str:
    return " ".join(re.sub(r"[_\-]", " ", text.casefold()).strip(" \t\r\n\"'`*.!()[]").split())
