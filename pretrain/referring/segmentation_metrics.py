"""How well masks answer referring expressions: cumulative and mean overlap, precision, and answers to no target.

Every expression is one item and is compared at its picture's own size. With I and U the pixels of intersection and
union of an item's answer and truth, of n items:

- `ciou`: sum of I over sum of U. Large objects weigh most. 1 where every answer and truth is empty.
- `giou`: the mean of I / U, where an empty answer to an empty truth counts 1 (LISA, GSVA, GLaMM).
- `miou`: the mean of I / U, where it counts 0 (LAVT's `mean IoU`). It differs from `giou` by such items only.
- `p50` ... `p90`: the share of items whose I / U, as in `giou`, is at least 0.5 ... 0.9 (LAVT's `precision@X`).
- `n`: the items; `missing`: those of them without an answer, which count as empty masks and are never left out.
- `n_acc`: of the items without a target, the share whose answer is empty; `t_acc`: of those with a target, the share
  whose answer is not (Liu et al. 2023, GRES, arXiv 2306.00968). Each is there only where it has items.

All are shares of 1. GRES' cIoU is this one too: a target that is rightly found absent adds nothing, an answer where
there is no target adds its pixels to the union.

`compat="lisa"` follows LISA's `validate` (arXiv 2308.00692, `train_ds.py`) and agrees with it in the digits that it
prints; its sums are float32, these float64. There a truth may hold values above 1, see `pretrain.referring.coco_masks`: such a
pixel is in neither the intersection nor the truth's area, and one of 255 is left out altogether. `ciou` is
sum I / (sum U + 1e-10), `giou` is sum (I / (U + 1e-5)) / (n + 1e-5) with 1 added where U is 0. The rest is as above.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pretrain.referring.coco_masks import MaskError, check_compat

PRECISIONS = (0.5, 0.6, 0.7, 0.8, 0.9)
IGNORE_INDEX = 255  # LISA's label of pixels that are not judged


@dataclass(frozen=True)
class Confusion:
    """One item in pixels: intersection, union, the areas of truth and answer, and whether there was no answer."""

    intersection: int
    union: int
    truth: int
    answer: int
    missing: bool = False


def confusion(answer: np.ndarray | None, truth: np.ndarray, compat: str = "plain") -> Confusion:
    """Return how an answer and a truth overlap.

    Args:
        answer: bool[H, W], or None where there is no answer.
        truth: bool[H, W]; or uint8[H, W], in which "plain" takes every value but 0 for the target.
        compat: "plain" or "lisa", see the head of this file.

    Raises:
        MaskError: the two differ in shape, or are of another kind.
    """
    check_compat(compat)
    if truth.ndim != 2 or truth.dtype not in (bool, np.uint8):
        raise MaskError(f"expected a truth bool[H, W] or uint8[H, W], got {truth.dtype}{list(truth.shape)}")
    given = np.zeros(truth.shape, dtype=bool) if answer is None else answer
    if given.dtype != bool or given.shape != truth.shape:
        raise MaskError(f"expected an answer bool{list(truth.shape)}, got {given.dtype}{list(given.shape)}")
    meant = truth.astype(bool)
    if compat == "lisa":
        meant, given = truth == 1, given & (truth != IGNORE_INDEX)
    both, areas = int((meant & given).sum()), (int(meant.sum()), int(given.sum()))
    return Confusion(both, sum(areas) - both, *areas, missing=answer is None)


def segmentation_metrics(overlaps: Iterable[Confusion], compat: str = "plain") -> dict[str, float]:
    """Return the figures of a set of items, see the head of this file.

    Raises:
        MaskError: there is no item.
    """
    check_compat(compat)
    items = list(overlaps)
    if not items:
        raise MaskError("expected at least one expression to score, got none")
    both, union, truth, answer = (
        np.array([getattr(item, name) for item in items], dtype=np.float64)
        for name in ("intersection", "union", "truth", "answer")
    )
    ratio = both / np.maximum(union, 1)
    alike = np.where(union == 0, 1.0, ratio)
    return {
        **(_lisa_means(both, union) if compat == "lisa" else _means(both, union, alike)),
        "miou": float(ratio.mean()),
        **{f"p{round(100 * least)}": float((alike >= least).mean()) for least in PRECISIONS},
        "n": len(items),
        "missing": sum(item.missing for item in items),
        **_target_figures(truth, answer),
    }


def _means(both: np.ndarray, union: np.ndarray, alike: np.ndarray) -> dict[str, float]:
    total = union.sum()
    return {"ciou": float(both.sum() / total) if total else 1.0, "giou": float(alike.mean())}


def _lisa_means(both: np.ndarray, union: np.ndarray) -> dict[str, float]:
    ratio = both / (union + 1e-5) + (union == 0)
    return {"ciou": float(both.sum() / (union.sum() + 1e-10)), "giou": float(ratio.sum() / (len(union) + 1e-5))}


def _target_figures(truth: np.ndarray, answer: np.ndarray) -> dict[str, float]:
    absent, silent = truth == 0, answer == 0
    figures = {}
    if absent.any():
        figures["n_acc"] = float(silent[absent].mean())
    if not absent.all():
        figures["t_acc"] = float((~silent[~absent]).mean())
    return figures
