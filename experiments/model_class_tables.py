"""docs/model-classes.md: the tables of `experiments.model_classes`, which classes of transformers do which tasks."""

from experiments.model_classes import TOLERANCE
from experiments.statistics import Row, filter_rows
from experiments.tables import Table

IMAGE, FIGURES = "image input", ("tokens", "seen")
PLAY = ("scores", "generation", "OpenVINO", "play", "cloning")
PIXELS = ("packed loss", "PVP", "PVP, frozen encoder", "PVP, LoRA", "reconstruction", "points")
KEEP = ("resumed", "reloaded")
TEXT = (
    "A tiny checkpoint of each class, with random weights, in the layout of the hub's files, goes through every task; "
    "the tests run the same tasks and compare. *yes*: done, and right: scores and losses are within "
    f"{TOLERANCE:g} nats of the class's own generation and of its separate forward passes (the largest difference is "
    "given), frames score differently, a training that is interrupted in its last step and repeated ends with the "
    "weights of an unbroken one, and plain transformers loads what was trained without a missing and without an "
    "unexpected key. *no*: refused in one line, by its number below. *scores*: one forward pass for all actions, or a "
    "pass for each. *tokens* are of tiny images; play and training print how many a released model takes. *seen*: the "
    "share of a frame's pixels on which the input depends."
)


def model_class_tables(rows: list[Row]) -> list[Table]:
    """Return the tables of play, of pixel values, of what is kept, and the reasons of refusals."""
    reasons = list(dict.fromkeys(row["reason"] for row in rows if not row["done"]))
    groups = {
        "Input and play": (*FIGURES, *PLAY),
        "Pixel values and masks": PIXELS,
        "Resumed where they were interrupted, reloaded by plain transformers": KEEP,
    }
    tables = [
        Table(caption, columns, [_line(own, columns, reasons) for own in by_class(rows).values()])
        for caption, columns in groups.items()
    ]
    refusals = [(str(number), {"the class": reason}) for number, reason in enumerate(reasons, 1)]
    return [*tables, Table("Why not", ("the class",), refusals)]


def by_class(rows: list[Row]) -> dict[str, list[Row]]:
    """Return the rows of each tiny checkpoint."""
    return {name: filter_rows(rows, tiny_checkpoint=name) for name in dict.fromkeys(r["tiny_checkpoint"] for r in rows)}


def _line(rows: list[Row], columns: tuple[str, ...], reasons: list[str]) -> tuple[str, dict[str, str]]:
    found = {row["task"]: row for row in rows}
    cells = {task: _cell(found[task], reasons) for task in columns if task in found}
    if "image_tokens" in found[IMAGE]:
        figures = {"tokens": str(found[IMAGE]["image_tokens"]), "seen": f"{found[IMAGE]['share_seen']:.0%}"}
        cells |= {name: value for name, value in figures.items() if name in columns}
    return f"{rows[0]['model_class']} (`{rows[0]['tiny_checkpoint']}`)", cells


def _cell(row: Row, reasons: list[str]) -> str:
    if not row["done"]:
        return f"no ({reasons.index(row['reason']) + 1})"
    words = ["yes"]
    if "passes" in row:
        words.append("one pass" if row["passes"] == 1 else "a pass each")
    if "difference" in row:
        words.append(f"{row['difference']:.0e}" if row["difference"] else "0")
    return ", ".join(words)
