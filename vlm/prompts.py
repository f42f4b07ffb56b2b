"""Every prompt and answer format; parsing is the inverse of formatting.

Actions: the task comes before the image, so that the text's keys and values can be cached across frames:

    [play] Ms. Pac-Man : noop , up , right , up right <image> action :      ->  up right

Pixel values follow the authors' code (Gou et al. 2024; Vision-CAIR's paint data), row first, image first; but the
prompt holds the answer's opening bracket:

    <image> [reconstruct] loc: [12,7] rgb: [                                ->  184,50,50]

Masks for an expression come from the decoder's states over it (`vlm.segmentation.mask_head`):

    <image> [segmentation] the red ghost :

or from text, 1 at a point of the referred object and 0 elsewhere, as in the authors' code:

    <image> [segmentation] the red ghost loc: [12,7] mask:                  ->  1

Captions are free text:

    <image> [caption]                                                       ->  a frame of pong with a ball
"""

import json
import re
from collections.abc import Sequence

IMAGE = "<image>"


def action_prompt(title: str, action_names: Sequence[str]) -> str:
    """Return the prompt for an action, given a game's title and its legal actions in words."""
    return f"[play] {title} : {' , '.join(action_names)} {IMAGE} action :"


def action_question(title: str, action_names: Sequence[str]) -> str:
    """Return the question for an action to a model that follows instructions."""
    legal = ", ".join(action_names)
    return f"You are playing the Atari game {title}. The legal actions are: {legal}. Answer with one of them only."


# an answer at the start of a sentence, as "Action: FIRE" or "So my final answer is fire."
MARKED_ANSWER = re.compile(
    r"(?:^|[.;!?]\s+)\W*(?:(?:so|then|therefore|my|the|final|next|best|chosen)\W+)*(?:action|answer|move)\b"
    r"\W*(?:is\b\W*)?([^.;!?]+)",
    re.IGNORECASE,
)
THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
MAX_LINE = 2000  # characters of a last line that may name an action; what a longer one costs grows with its square
ONE_NAME = re.compile(r"[\W_]*([a-z0-9]+(?:[ _+-]+[a-z0-9]+)*)[\W_]*", re.IGNORECASE)


def parse_action(text: str, legal: Sequence[str]) -> str | None:
    """Return the legal action that an answer names as people write it, or None where it names none or several.

    In any case and with marks around it; "Action: FIRE"; `{"action": "right fire"}`; RIGHTFIRE; or any of these as the
    last line of a longer text. What is mentioned otherwise, or within <think>, is never taken for an answer.
    """
    text = THOUGHT.sub("\n", text)
    found = [value for value in map(_json_action, re.findall(r"\{[^{}]*\}", text)) if value is not None]
    if not found:
        last = next((line for line in reversed(text.splitlines()) if line.strip("` \t")), "")
        if len(last) > MAX_LINE:
            return None
        found = [match[1] for match in MARKED_ANSWER.finditer(last)] or [last]
    names = {_legal_name(one, legal) for one in found}
    return names.pop() if len(names) == 1 else None


def _json_action(text: str) -> str | None:
    """Return what a JSON object holds as an action, or None."""
    try:
        values = {str(key).lower(): value for key, value in json.loads(text).items()}
    except (ValueError, RecursionError):  # of brackets within brackets
        return None
    return values["action"] if isinstance(values.get("action"), str) else None


def _legal_name(text: str, legal: Sequence[str]) -> str | None:
    """Return the legal action that a text is, but for case, marks around it, and what parts its words."""
    match = ONE_NAME.fullmatch(text)
    letters = re.sub(r"[ _+-]", "", match[1]).lower() if match else ""
    return next((name for name in legal if name.replace(" ", "") == letters), None)


CAPTION_PREFIX = "[caption]"
MASK_PREFIX = "[segmentation]"


def plain_words(expression: str) -> str:
    """Return an expression in lower case, without whitespace or names of special tokens, as <image>, that it holds."""
    return " ".join(re.sub(r"[<>|]", " ", expression.lower()).split())


def mask_question(expression: str) -> str:
    """Return the prompt after `MASK_PREFIX` for the mask of an expression."""
    return f"{plain_words(expression)} :"


POINT_ANSWERS = ("0", "1")
POINT_START, POINT_END = "loc: [", "] mask:"


def point_prompt(expression: str) -> str:
    """Return the prompt after `MASK_PREFIX` and before a point's coordinates."""
    return f"{plain_words(expression)} {POINT_START}"


PIXEL_PREFIX, PIXEL_MIDDLE = "[reconstruct] loc: [", "] rgb: ["
ORDERS = ("row,column", "x,y")  # of coordinates: in the authors' code, the default, and in the paper's text


def pixel_prompt(row: int, column: int, order: str = "row,column") -> str:
    """Return the prompt for the color of a grid cell; `order` is one of `ORDERS`."""
    first, second = (row, column) if order == ORDERS[0] else (column, row)
    return f"{IMAGE} {PIXEL_PREFIX}{first},{second}{PIXEL_MIDDLE}"


def pixel_answer(rgb: Sequence[int]) -> str:
    """Return the answer for a color of three integers from 0 to 255."""
    return f"{','.join(str(int(value)) for value in rgb)}]"


def parse_pixel(text: str) -> tuple[int, int, int] | None:
    """Return the color in an answer, or None."""
    match = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*]\s*", text)
    if not match or max(map(int, match.groups())) > 255:
        return None
    red, green, blue = map(int, match.groups())
    return red, green, blue
