"""Attention heads that start as fixed relative offsets: half of each layer's heads.

A decoder with random weights attends to the mean over all image tokens, which carries no position. A head whose query
and key have constant parts (the biases of its projections) attends at one offset whatever its input, since rotary
positions rotate a constant by the offset. With offsets that span the image, the last token of a prompt reads the image
position by position from the first step on. The biases stay trainable, and the other half of the heads starts as usual.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from vlm.model import PixelVLM

PEAK_SCORE = 10.0  # the attention score at a head's own offset
WEIGHT_SCALE = 0.3  # factor on the initial weights of such a head
FIRST_OFFSET = 2  # from the last token of an action prompt back to the image's last token


@torch.no_grad()
def init_positional_heads(vlm: PixelVLM, image_tokens: int) -> None:
    """Set half of a Llama's heads, which have biases, to relative offsets that span `image_tokens`, in place."""
    decoder: Any = vlm.decoder
    frequencies, layers = decoder.rotary_emb.inv_freq.float().cpu(), decoder.layers
    count = num_positional_heads(layers[0].self_attn)
    offsets = torch.linspace(FIRST_OFFSET, FIRST_OFFSET + image_tokens - 1, count * len(layers)).round()
    for index, layer in enumerate(layers):
        set_relative_offset(layer.self_attn, offsets[index :: len(layers)], frequencies)


def num_positional_heads(attention: Any) -> int:
    """Return how many heads of a layer, the first ones, are positional: half of them with Llama's biases, else none."""
    biased = getattr(attention.config, "attention_bias", False)  # Qwen's query biases are not this option
    return attention.config.num_attention_heads // 2 if biased else 0


def set_relative_offset(attention: Any, offsets: Float[Tensor, " heads"], frequencies: Float[Tensor, " half"]) -> None:
    """Make the first heads of a layer attend at one offset back each."""
    width, count = attention.head_dim, len(offsets)
    half = width // 2
    angles = offsets[:, None] * frequencies  # [heads, width / 2]
    magnitude = math.sqrt(PEAK_SCORE * math.sqrt(width) / half)
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight[: count * width].mul_(WEIGHT_SCALE)
        projection.bias.zero_()
    queries, keys = (p.bias[: count * width].view(count, width) for p in (attention.q_proj, attention.k_proj))
    queries[:, :half] = magnitude
    keys[:, :half], keys[:, half:] = magnitude * angles.cos(), magnitude * angles.sin()
