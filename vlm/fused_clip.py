"""The image tokens of a LLaVA around a CLIP tower, for training on a CPU: the values and gradients of its class.

One product gives queries, keys and values, attention is three plain products (backward through torch's own kernel takes
several times as long over a few hundred tokens), and layers behind the one that the connector reads are left out.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration, PreTrainedModel
from transformers.models.clip.modeling_clip import (
    CLIPMLP,
    CLIPAttention,
    CLIPEncoderLayer,
    CLIPVisionEmbeddings,
    CLIPVisionModel,
)

from vlm.fused_ops import attend, trains_on_cpu


def supports_fused_clip(model: PreTrainedModel) -> bool:
    """Return whether a model is a plain LLaVA around a CLIP tower that trains on a CPU: no dropout or checkpointing."""
    if type(model) is not LlavaForConditionalGeneration or not trains_on_cpu(model):
        return False
    tower, config = model.model.vision_tower, model.config
    if (type(tower), type(tower.embeddings)) != (CLIPVisionModel, CLIPVisionEmbeddings):
        return False
    selects = isinstance(config.vision_feature_layer, int) and config.vision_feature_select_strategy == "default"
    varies = tower.config.attention_dropout or tower.encoder.gradient_checkpointing
    return selects and not varies and all(_is_plain(layer) for layer in tower.encoder.layers)


def _is_plain(layer: Any) -> bool:
    if type(layer) is not CLIPEncoderLayer:
        return False
    plain = {CLIPEncoderLayer, CLIPAttention, CLIPMLP, nn.Linear, nn.LayerNorm, type(layer.mlp.activation_fn)}
    return {type(module) for module in layer.modules()} <= plain  # adapters are modules of other classes


def fused_clip_tokens(model: Any, pixel_values: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
    """Return the connector's output, as `get_image_features` does."""
    tower = model.model.vision_tower
    device = pixel_values.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else tower.embeddings.class_embedding.dtype
    layers = tower.encoder.layers
    read = range(len(layers) + 1)[model.config.vision_feature_layer]  # of hidden states, the first is the input
    with torch.autocast(device, enabled=False):
        states = tower.pre_layrnorm(_embed(tower.embeddings, pixel_values.to(dtype)))
        for layer in layers[:read]:
            states = _layer(layer, states, dtype)
    return model.model.multi_modal_projector(states[:, 1:])


def _embed(embeddings: Any, pixels: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
    """Return the patches' embeddings with positions, the class's first; one product beats a convolution."""
    side, weight = embeddings.patch_size, embeddings.patch_embedding.weight
    cells = pixels.permute(0, 2, 3, 1).unflatten(2, (-1, side)).unflatten(1, (-1, side))  # [B, rows, p, columns, p, C]
    patches = cells.transpose(2, 3).flatten(3).flatten(1, 2)
    embedded = functional.linear(patches, weight.permute(0, 2, 3, 1).flatten(1).to(patches.dtype))
    first = embeddings.class_embedding.expand(len(pixels), 1, -1)
    return torch.cat([first, embedded.to(first.dtype)], dim=1) + embeddings.position_embedding.weight


def _layer(layer: Any, states: Float[Tensor, "B N D"], dtype: torch.dtype) -> Float[Tensor, "B N D"]:
    attended = _attention(layer.self_attn, layer.layer_norm1(states).to(dtype))
    states = states + _linear(layer.self_attn.out_proj, attended)
    hidden = layer.mlp.activation_fn(_linear(layer.mlp.fc1, layer.layer_norm2(states).to(dtype)))
    return states + _linear(layer.mlp.fc2, hidden)


def _attention(attention: Any, states: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    scales = (attention.scale, 1.0, 1.0)
    weight = torch.cat([part.weight * scale for part, scale in zip(projections, scales, strict=True)])
    bias = torch.cat([part.bias * scale for part, scale in zip(projections, scales, strict=True)])
    projected = functional.linear(states, weight.to(states.dtype), bias.to(states.dtype))
    by_head = projected.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [3, B, heads, N, width]
    attended, _ = attend(*by_head.flatten(1, 2).unbind())
    return attended.unflatten(0, (len(states), -1)).transpose(1, 2).flatten(2)


def _linear(module: nn.Linear, states: Tensor) -> Tensor:
    return functional.linear(states, module.weight.to(states.dtype), module.bias.to(states.dtype))
