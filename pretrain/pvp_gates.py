"""Gates of pixel value prediction: the stages that it is learned in, each with a figure and a limit.

A patch's color reaches an answer by several links, and the mean error alone does not tell which one fails:

    tokens      a linear probe reads the cells' colors off the image tokens
    patches     the answers, averaged over each patch, are right
    within      what is answered within a patch varies with what is there
    channels    red, green and blue are read alike
    objects     small objects are told from their surroundings
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from pretrain.linear_probe import ridge
from pretrain.pvp_prediction import grid_coordinates
from pretrain.pvp_questions import cell_centers, downsample_grid, parse_grid
from pretrain.reconstruction_metrics import Metrics
from vlm.model import PixelVLM
from vlm.training.attention_supervision import patch_edges, target_patch_index

CHANNELS = ("red", "green", "blue")


@dataclass(frozen=True)
class Gate:
    """A stage that is passed where a metric is at most, or for `at_least` at least, a limit."""

    name: str
    metric: str
    limit: float
    at_least: bool = False

    def passes(self, metrics: Metrics) -> bool:
        """Return whether it is passed; an unknown metric is no failure."""
        value = metrics.get(self.metric)
        return value is None or (value >= self.limit if self.at_least else value <= self.limit)


GATES = (
    Gate("tokens", "token_probe_mae", 8.0),
    Gate("patches", "mae_of_patch_means", 6.0),
    Gate("within", "within_patch_correlation", 0.9, at_least=True),
    Gate("channels", "channel_ratio", 1.5),
    Gate("objects", "mae_small_objects", 12.0),
)


def failing_gate(metrics: Metrics) -> str | None:
    """Return the name of the first gate that metrics do not pass, None if they pass all."""
    return next((gate.name for gate in GATES if not gate.passes(metrics)), None)


def patch_of_cells(
    vlm: PixelVLM, height: int, width: int, grid: str, expanded: bool = False
) -> Int[np.ndarray, " cells"]:
    """Return the image token that covers the center of each cell of a grid, row by row.

    It is counted before patch expansion, or after it with `expanded`.
    """
    cells = grid_coordinates(*parse_grid(grid).shape_of(height, width))
    centers = torch.from_numpy(cell_centers(cells, grid, height, width))
    return target_patch_index(patch_edges(vlm, height, width, expanded), centers, height, width).numpy()


def patch_metrics(
    predicted: Float[np.ndarray, "rows columns 3"], true: np.ndarray, patches: Int[np.ndarray, " cells"]
) -> Metrics:
    """Return the error of predictions averaged over each patch, and their correlation with the truth within patches.

    The correlation is that of deviations from each patch's mean, over all cells and channels; None where nothing
    varies within patches.
    """
    predicted, true = (part.reshape(-1, 3).astype(float) for part in (predicted, true))
    counts = np.bincount(patches)[:, None].clip(1)
    means = [
        np.stack([np.bincount(patches, part[:, channel]) for channel in range(3)], axis=1) / counts
        for part in (predicted, true)
    ]
    covered = np.bincount(patches) > 0
    deviations = [part - mean[patches] for part, mean in zip((predicted, true), means, strict=True)]
    norms = [float(np.sqrt((part**2).sum())) for part in deviations]
    product = float((deviations[0] * deviations[1]).sum())
    return {
        "mae_of_patch_means": float(np.abs(means[0] - means[1])[covered].mean()),
        "within_patch_correlation": product / (norms[0] * norms[1]) if min(norms) > 1e-6 else None,
        "mae_of_true_patch_means": float(np.abs(deviations[1]).mean()),
    }


def channel_ratio(metrics: Metrics) -> float:
    """Return the error of the worst channel by that of the best."""
    errors = [metrics[f"mae_{name}"] for name in CHANNELS]
    return max(errors) / max(min(errors), 1e-9)


@torch.no_grad()
def token_probe_mae(vlm: PixelVLM, images: Sequence[UInt8[np.ndarray, "H W 3"]], grid: str) -> float | None:
    """Return the error, of 255, of a linear probe that reads each cell's color off the token that the decoder reads.

    It is fitted to the cells of all images but every fourth and tested on those. None for fewer than four images, and
    where a token has more than one cell: then nothing tells the cells of a token apart.
    """
    height, width = images[0].shape[:2]
    index = patch_of_cells(vlm, height, width, grid, expanded=True)
    if len(images) < 4 or len(np.unique(index)) < len(index):
        return None
    tokens = np.stack([_tokens(vlm, image)[index].numpy() for image in images])
    colors = np.stack([downsample_grid(image, grid).reshape(-1, 3) for image in images]).astype(float)
    is_test = np.arange(len(images)) % 4 == 3
    x_train, x_test, y_train, y_test = (
        part[mask].reshape(-1, part.shape[-1]) for part in (tokens, colors) for mask in (~is_test, is_test)
    )
    return float(np.abs(ridge(x_train, y_train, x_test).clip(0, 255) - y_test).mean())


def _tokens(vlm: PixelVLM, image: np.ndarray) -> torch.Tensor:
    frames = np.repeat(image[None, None], vlm.history, axis=1)
    return vlm.encode_cells(vlm.preprocess(frames)).tokens[0].float().cpu()


def mean_of_known(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are known, None if none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def summary(name: str, metrics: Metrics) -> str:
    """Return one line: the error, its parts and the first gate that fails."""

    def show(metric: str, digits: int = 1) -> str:
        value = metrics.get(metric)
        return "-" if value is None else f"{value:.{digits}f}"

    channels = " ".join(f"{channel[0]} {show(f'mae_{channel}')}" for channel in CHANNELS)
    return (
        f"{name}: {show('mae')} of 255 off (patch mean {show('mae_patch_mean')}, image mean {show('mae_image_mean')}), "
        f"{channels}, patches {show('mae_of_patch_means')}, within {show('within_patch_correlation', 2)}, "
        f"objects {show('mae_small_objects')}, tokens {show('token_probe_mae')}; "
        f"{'all gates passed' if (failed := failing_gate(metrics)) is None else f'fails at {failed}'}"
    )
