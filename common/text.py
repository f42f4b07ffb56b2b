"""Text of other people's files, made fit for a terminal, a page and a picture."""

from typing import Any

from common.errors import UserError

MAX_DEPTH = 100  # of nested JSON values


def printable(text: str, keep: str = "") -> str:
    r"""Return a text with every character that does not print as an escape such as `\x1b`, except those in `keep`.

    A terminal obeys control characters: they set its title, clear the screen, or move what a reader takes for ours.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def printable_values(value: Any, depth: int = 0) -> Any:
    """Return JSON values with `printable` texts and keys; `UserError` for values nested too deep to handle."""
    if depth > MAX_DEPTH:
        raise UserError(f"expected values nested at most {MAX_DEPTH} deep, got more")
    if isinstance(value, str):
        return printable(value, keep="\n\t")
    if isinstance(value, list):
        return [printable_values(one, depth + 1) for one in value]
    if isinstance(value, dict):
        return {printable(name): printable_values(one, depth + 1) for name, one in value.items()}
    return value
