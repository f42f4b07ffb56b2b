"""Metrics of referring segmentation: cIoU, gIoU, mIoU, precision at IoU thresholds, and no-target accuracy.

Each expression is one item, compared at its image's own size. With I and U the pixels in the intersection and the
union of an item's prediction and target, over n items:

- `ciou`: sum of I over sum of U. Large objects weigh most. 1 if all predictions and targets are empty.
- `giou`: the mean of I / U, where an empty prediction for an empty target counts 1 (LISA, GSVA, GLaMM).
- `miou`: the mean of I / U, where it counts 0 (LAVT's `mean IoU`). It differs from `giou` by such items only.
- `p50` ... `p90`: the fraction of items whose I / U, as in `giou`, is at least 0.5 ... 0.9 (LAVT's `precision@X`).
- `n`: the number of items; `missing`: those without a prediction, which count as empty masks.
- `n_acc`: of the items without a target, the fraction predicted empty; `t_acc`: of those with a target, the fraction
  predicted not empty (Liu et al. 2023, GRES, arXiv 2306.00968). Each is present only if it has items.

GRES' cIoU is this one too: an empty prediction for no target adds nothing, another adds its pixels to the union.

`compat="lisa"` follows LISA's `validate` (arXiv 2308.00692, `train_ds.py`) and agrees with it in the digits that it
prints; its sums are float32, these float64. There a target may hold values above 1, see
`pretrain.referring.coco_masks`: such a pixel is neither in the intersection nor in the target's area, and 255 is
ignored. `ciou` is sum I / (sum U + 1e-10), `giou` is sum (I / (U + 1e-5)) / (n + 1e-5) with 1 added where U is 0.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, UInt8
from scipy.stats import bootstrap

from pretrain.referring.coco_masks import MaskError, check_compat

PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
IGNORE_LABEL = 255  # LISA's label of pixels that are not scored


@dataclass(frozen=True)
class Confusion:
    """Pixel counts of one item, and whether its prediction is missing."""

    intersection: int
    union: int
    target_area: int
    predicted_area: int
    missing: bool = False


def confusion(
    prediction: Bool[np.ndarray, "H W"] | None,
    target: Bool[np.ndarray, "H W"] | UInt8[np.ndarray, "H W"],
    compat: str = "plain",
) -> Confusion:
    """Return the pixel counts of a prediction, None if it is missing, and its target.

    Of a target uint8[H, W] "plain" counts every value but 0.

    Raises:
        MaskError: a mask has another shape or dtype.
    """
    check_compat(compat)
    if target.ndim != 2 or target.dtype not in (bool, np.uint8):
        raise MaskError(f"expected a target bool[H, W] or uint8[H, W], got {target.dtype}{list(target.shape)}")
    predicted = np.zeros(target.shape, dtype=bool) if prediction is None else prediction
    if predicted.dtype != bool or predicted.shape != target.shape:
        raise MaskError(f"expected a prediction bool{list(target.shape)}, got {predicted.dtype}{list(predicted.shape)}")
    truth = target.astype(bool)
    if compat == "lisa":
        truth, predicted = target == 1, predicted & (target != IGNORE_LABEL)
    intersection, areas = int((truth & predicted).sum()), (int(truth.sum()), int(predicted.sum()))
    return Confusion(intersection, sum(areas) - intersection, *areas, missing=prediction is None)


def segmentation_metrics(confusions: Iterable[Confusion], compat: str = "plain") -> dict[str, float]:
    """Return the metrics of a set of items, see the module's docstring; `MaskError` if it is empty."""
    check_compat(compat)
    items = list(confusions)
    if not items:
        raise MaskError("expected at least one expression to score, got none")
    intersection, union, target, predicted = (
        np.array([getattr(item, name) for item in items], dtype=np.float64)
        for name in ("intersection", "union", "target_area", "predicted_area")
    )
    ratio, no_target = intersection / np.maximum(union, 1), target == 0
    iou = np.where(union == 0, 1.0, ratio)
    if compat == "lisa":
        lisa_iou = intersection / (union + 1e-5) + (union == 0)
        ciou, giou = intersection.sum() / (union.sum() + 1e-10), lisa_iou.sum() / (len(union) + 1e-5)
    else:
        ciou, giou = intersection.sum() / union.sum() if union.any() else 1.0, iou.mean()
    metrics = {
        "ciou": float(ciou),
        "giou": float(giou),
        "miou": float(ratio.mean()),
        **{f"p{round(100 * threshold)}": float((iou >= threshold).mean()) for threshold in PRECISION_THRESHOLDS},
        "n": len(items),
        "missing": sum(item.missing for item in items),
    }
    if no_target.any():
        metrics["n_acc"] = float((predicted[no_target] == 0).mean())
    if not no_target.all():
        metrics["t_acc"] = float((predicted[~no_target] > 0).mean())
    return metrics


def ciou_interval(confusions: Iterable[Confusion], repetitions: int = 2000) -> dict[str, float]:
    """Return `ciou_low` and `ciou_high`: the 95 % interval of cIoU, bootstrapped over two or more expressions."""
    pairs = np.array([(item.intersection, item.union) for item in confusions], dtype=np.float64)

    def ciou(intersection: np.ndarray, union: np.ndarray, axis: int) -> np.ndarray:
        union = union.sum(axis)
        return np.where(union == 0, 1.0, intersection.sum(axis) / np.maximum(union, 1))

    options = {"paired": True, "method": "percentile", "vectorized": True, "batch": 100, "rng": 0}
    low, high = bootstrap(tuple(pairs.T), ciou, n_resamples=repetitions, **options).confidence_interval
    return {"ciou_low": float(low), "ciou_high": float(high)}
