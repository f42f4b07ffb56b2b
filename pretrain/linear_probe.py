"""Linear probes: ridge regression from a frozen encoder's image tokens."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vlm.model import PixelModel, PixelVLM

FeatureFunction = Callable[[np.ndarray], np.ndarray]  # uint8[N, H, W, 3] -> float[N, D]
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)  # per 1,000 training rows
BATCH_SIZE = 64


def ridge(
    x_train: Float[np.ndarray, "N D"], y_train: Float[np.ndarray, "N K"], x_test: Float[np.ndarray, "M D"]
) -> Float[np.ndarray, "M K"]:
    """Return the predictions of ridge regression on standardized features.

    The penalty is the one of `PENALTIES` with the least error on a fifth of the training rows.
    """
    mean, std = x_train.mean(0), x_train.std(0) + 1e-6 * (x_train.std() + 1e-12)
    x_train, x_test = ((x - mean) / std for x in (x_train.astype(np.float64), x_test.astype(np.float64)))
    order = np.random.default_rng(0).permutation(len(x_train))
    val, fit = order[: len(order) // 5], order[len(order) // 5 :]
    errors = [
        ((_solve(x_train[fit], y_train[fit], x_train[val], penalty) - y_train[val]) ** 2).mean()
        for penalty in PENALTIES
    ]
    return _solve(x_train, y_train, x_test, PENALTIES[int(np.argmin(errors))])


def _solve(x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray, penalty: float) -> np.ndarray:
    intercept = y_train.mean(0)
    gram = x_train.T @ x_train + penalty * len(x_train) / 1000 * np.eye(x_train.shape[1])
    return x_test @ np.linalg.solve(gram, x_train.T @ (y_train - intercept)) + intercept


def r_squared(predicted: np.ndarray, true: np.ndarray) -> float:
    """Return the share of the variance of `true` that `predicted` explains; negative where its mean explains more."""
    return float(1 - ((predicted - true) ** 2).sum() / ((true - true.mean()) ** 2).sum())


def batches(values: Any) -> list:
    """Return a sequence in slices of `BATCH_SIZE`."""
    return [values[start : start + BATCH_SIZE] for start in range(0, len(values), BATCH_SIZE)]


@torch.no_grad()
def image_tokens(model: PixelModel, frames: UInt8[np.ndarray, "N H W 3"]) -> Float[Tensor, "N T D"]:
    """Return a model's image tokens before the connector, on the CPU; a model with a history sees still frames.

    A CLIP gives the patches of its last layer but one, as in LLaVA.
    """
    layer, select_strategy = -2, "default"
    if isinstance(model, PixelVLM):
        config = model.model.config
        layer, select_strategy = config.vision_feature_layer, config.vision_feature_select_strategy
    pixels = model.preprocess(np.repeat(frames[:, None], model.history, axis=1))
    states = model.encoder(pixels, output_hidden_states=True).hidden_states[layer]  # [N, T, D] or [N, D, h, w]
    tokens = states.flatten(2).transpose(1, 2) if states.ndim == 4 else states
    return (tokens[:, 1:] if select_strategy == "default" else tokens).float().cpu()


def mean_token_features(model: PixelModel) -> FeatureFunction:
    """Return a function from frames to the mean of a model's image tokens."""

    def features(frames: np.ndarray) -> np.ndarray:
        return torch.cat([image_tokens(model, part).mean(1) for part in batches(frames)]).numpy()

    return features
