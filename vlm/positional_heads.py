"""Heads that begin by looking at places: half of each layer's, each a fixed distance back in the text.

The answer's token has to tell what lies where, but a decoder with random weights looks at the mean over all image
tokens, which holds no place, and finds others hundreds of steps later. A head whose query and key have fitting constant
parts (the biases of its projections) looks one distance back whatever it reads, since rotary positions turn a constant
by its distance. With distances that together span the image, the last token of a prompt reads the image place by
place, as a plain net behind all features does, from the first step on. The biases learn like all other weights, and
the other half of the heads begins as it always did. That learning is faster so was seen in a prototype whose heads all
began so and which differed in more than that; of `micro` as it is no difference has been shown (`experiments/LOG.md`).
"""

import math
from typing import Any

import torch
from torch import Tensor

from vlm.model import PixelVLM

PEAK = 10.0  # the score that a head gives to the distance it looks for
KEEP = 0.3  # of such a head's own weights
TAIL = 2  # the last token of a prompt for an action stands so far behind the image's last one


@torch.no_grad()
def init_positional_heads(vlm: PixelVLM, image_tokens: int) -> None:
    """Let half of a decoder's heads begin by looking back by distances that span `image_tokens`, in place.

    The decoder is a Llama with biases in its attention.
    """
    decoder: Any = vlm.decoder
    speeds, layers = decoder.rotary_emb.inv_freq.float().cpu(), decoder.layers
    count = num_positional_heads(layers[0].self_attn)
    distances = torch.linspace(TAIL, TAIL + image_tokens - 1, count * len(layers)).round()
    for index, layer in enumerate(layers):
        _look_back(layer.self_attn, distances[index :: len(layers)], speeds)


def num_positional_heads(attention: Any) -> int:
    """Return how many of a layer's heads, the first ones, begin by looking at places: none without Llama's biases."""
    biased = getattr(attention.config, "attention_bias", False)  # a Qwen's queries have biases that are no such option
    return attention.config.num_attention_heads // 2 if biased else 0


def _look_back(attention: Any, distances: Tensor, speeds: Tensor) -> None:
    """Let the first heads of a layer look back by a distance each."""
    width, count = attention.head_dim, len(distances)
    half = width // 2
    turns = distances[:, None] * speeds  # [heads, width / 2]
    strength = math.sqrt(PEAK * math.sqrt(width) / half)
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[: count * width].mul_(KEEP)
        projection.bias.zero_()
    queries, keys = (p.bias[: count * width].view(count, width) for p in (attention.q_proj, attention.k_proj))
    queries[:, :half] = strength
    keys[:, :half], keys[:, half:] = strength * turns.cos(), strength * turns.sin()
