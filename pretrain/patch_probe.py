"""Patch probe: whether each image token holds its own patch's color and position, by linear probes.

The images are mosaics of random colors, which no model can have memorized. The probes are fitted to the tokens of half
of them and tested on the other half.
"""

from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float

from pretrain.data.synthetic_images import mosaic
from pretrain.linear_probe import image_tokens, r_squared, ridge
from vlm.model import PixelModel
from vlm.sinusoidal_init import sinusoidal_encoding
from vlm.training.attention_supervision import patch_edges

NUM_IMAGES, HEIGHT, WIDTH, MAX_CELLS = 48, 210, 160, 8
POSITION_WAVELENGTHS = (0.25, 2.0)  # of the image's height or width
POSITION_WIDTH = 16  # of the encoding of each coordinate
SEED = 30_000


@torch.no_grad()
def measure_patch_probe(model: PixelModel) -> dict[str, float]:
    """Return what linear probes predict from single image tokens, for patches that lie inside the image.

    `color_mae`: mean absolute error, from 0 to 255, of the patch's mean color; `color_mae_baseline`: that of answering
    with the image's mean color; `position_r2`: R^2 of the sinusoidal encoding of the patch's center.
    """
    rng = np.random.default_rng(SEED)
    images = np.stack([mosaic(rng, HEIGHT, WIDTH, int(rng.integers(1, MAX_CELLS + 1))) for _ in range(NUM_IMAGES)])
    rows, columns = (edges.round().int().tolist() for edges in patch_edges(model, HEIGHT, WIDTH))
    boxes = [(top, left, bottom, right) for top, bottom in pairwise(rows) for left, right in pairwise(columns)]
    inside = [index for index, (_, _, bottom, right) in enumerate(boxes) if bottom <= HEIGHT and right <= WIDTH]
    boxes = [boxes[index] for index in inside]
    tokens = image_tokens(model, images)[:, inside].numpy()  # [N, T, D]
    patches = ((slice(top, bottom), slice(left, right)) for top, left, bottom, right in boxes)
    colors = np.stack([images[:, y, x].mean((1, 2)) for y, x in patches], axis=1)  # [N, T, 3]
    centers = [((top + bottom) / 2 / HEIGHT, (left + right) / 2 / WIDTH) for top, left, bottom, right in boxes]
    encoding = sinusoidal_encoding(torch.tensor(centers), POSITION_WIDTH, POSITION_WAVELENGTHS).flatten(1)  # [T, 32]
    positions = np.broadcast_to(encoding.numpy(), (NUM_IMAGES, *encoding.shape))
    true = colors[NUM_IMAGES // 2 :]
    image_mean = images.mean((1, 2))[NUM_IMAGES // 2 :, None]
    return {
        "color_mae": float(np.abs(_probe(tokens, colors) - true).mean()),
        "color_mae_baseline": float(np.abs(image_mean - true).mean()),
        "position_r2": r_squared(_probe(tokens, positions), positions[NUM_IMAGES // 2 :]),
    }


def _probe(x: Float[np.ndarray, "N T D"], y: Float[np.ndarray, "N T K"]) -> Float[np.ndarray, "half T K"]:
    """Return the predictions for the second half of the images by a probe fitted to the first half."""
    (x_train, x_test), (y_train, _) = np.split(x, 2), np.split(y, 2)
    x_train, flat_test, y_train = (part.reshape(-1, part.shape[-1]) for part in (x_train, x_test, y_train))
    return ridge(x_train, y_train, flat_test).reshape(*x_test.shape[:2], -1)
