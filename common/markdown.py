"""Markdown whose values may be other people's: they are shown as they are, and mark up nothing."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from common.errors import UserError
from common.text import printable


def plain(value: Any) -> str:
    """Return a value as text that marks up nothing, in one line."""
    text = printable(" ".join(str(value).split()))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#!|~$])", r"\\\1", text).replace("://", ":&#47;&#47;")


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of the same keys as a table."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([plain(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code_block(text: str, language: str = "") -> str:
    """Return a block of code, whatever the text holds."""
    text = printable(text, keep="\n")
    longest = max((len(found) for found in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def card_text(head: str, sections: Sequence[str]) -> str:
    """Return the text of a card for the hub: metadata in YAML, then sections of Markdown."""
    return "\n\n".join((f"---\n{head}\n---", *sections)) + "\n"


def require_licence(name: str | None) -> None:
    """Refuse a licence that is no name as the hub has them."""
    if name is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", name):
        raise UserError(f"expected --license as the hub names one, such as mit or cc0-1.0, got {name!r}")
