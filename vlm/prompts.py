"""Every prompt and every answer, in one place; parsing undoes formatting.

Actions: the task comes before the image, so that the image tokens are read in its light and the text's share of the
decoder's work can be kept over the frames of a game:

    [play] Ms. Pac-Man : noop , up , right , up right <image> action :      ->  up right

Pixel values follow the paper's lab (Gou et al. 2024; Vision-CAIR's paint data), row first, image first; only the
opening bracket of the answer has moved to the prompt, and the question's fixed parts are one token each:

    <image> [reconstruct] loc: [12,7] rgb: [                                ->  184,50,50]

Masks are asked for by an expression, and the answer is no text but the state behind it (`vlm.segmentation.mask_head`):

    <image> [segmentation] the red ghost :

or it is text, 1 where a place belongs to what is meant and 0 where it does not, as the paper's lab asks for it:

    <image> [segmentation] the red ghost loc: [12,7] mask:                  ->  1

Captions are any text:

    <image> [caption]                                                       ->  a frame of pong with a ball
"""

from collections.abc import Sequence

IMAGE = "<image>"


def action_prompt(title: str, action_names: Sequence[str]) -> str:
    """Return the prompt that asks for an action of a game, given its title and its legal actions in words."""
    return f"[play] {title} : {' , '.join(action_names)} {IMAGE} action :"


def action_answer(name: str) -> str:
    """Return the answer that means an action."""
    return name


def parse_action(text: str, legal: Sequence[str]) -> str | None:
    """Return the legal action that an answer names, or None; nothing is guessed from prose."""
    said = " ".join(text.split())
    return said if said in legal else None


CAPTION_PREFIX = "[caption]"
MASK_PREFIX = "[segmentation]"


def mask_question(expression: str) -> str:
    """Return what stands behind `MASK_PREFIX` to ask for the mask of an expression."""
    return f"{' '.join(expression.lower().split())} :"


POINT_ANSWERS = ("0", "1")
POINT_START, POINT_END = "loc: [", "] mask:"


def point_prompt(expression: str) -> str:
    """Return what stands behind `MASK_PREFIX` before the coordinates of the place that is asked about."""
    return f"{' '.join(expression.lower().split())} {POINT_START}"


PIXEL_PREFIX, PIXEL_MIDDLE = "[reconstruct] loc: [", "] rgb: ["
ORDERS = ("row,column", "x,y")  # the lab's code, which is the default, and the paper's text


def pixel_prompt(row: int, column: int, order: str = "row,column") -> str:
    """Return the prompt that asks for the colour at a place of the grid; `order` is one of `ORDERS`."""
    first, second = (row, column) if order == ORDERS[0] else (column, row)
    return f"{IMAGE} {PIXEL_PREFIX}{first},{second}{PIXEL_MIDDLE}"


def pixel_answer(rgb: Sequence[int]) -> str:
    """Return the answer that means a colour of three integers from 0 to 255."""
    red, green, blue = (int(value) for value in rgb)
    return f"{red},{green},{blue}]"


def parse_pixel(text: str) -> tuple[int, int, int] | None:
    """Return the colour that an answer names, or None."""
    said = text.strip()
    parts = [part.strip() for part in said.removesuffix("]").split(",")]
    if not said.endswith("]") or len(parts) != 3:
        return None
    if not all(part.isdecimal() and int(part) < 256 for part in parts):
        return None
    red, green, blue = (int(part) for part in parts)
    return red, green, blue
