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
from transformers.models.clip.modeling_clip import CLIPEncoderLayer, CLIPVisionModel

from vlm.fused_ops import attend


def supports_fused_clip(model: PreTrainedModel) -> bool:
    """Return whether a model is a plain LLaVA around a CLIP tower that trains on a CPU: no dropout or checkpointing."""
    if type(model) is not LlavaForConditionalGeneration or not torch.is_grad_enabled() or model.device.type != "cpu":
        return False
    tower, config = model.model.vision_tower, model.config
    if type(tower) is not CLIPVisionModel or torch.jit.is_tracing():
        return False
    saves_memory = tower.training and tower.encoder.gradient_checkpointing
    selects = isinstance(config.vision_feature_layer, int) and config.vision_feature_select_strategy == "default"
    dropout = tower.training and tower.config.attention_dropout
    return selects and not dropout and not saves_memory and all(_is_plain(layer) for layer in tower.encoder.layers)


def _is_plain(layer: nn.Module) -> bool:
    leaves = [module for module in layer.modules() if any(True for _ in module.parameters(recurse=False))]
    return type(layer) is CLIPEncoderLayer and all(type(leaf) in (nn.Linear, nn.LayerNorm) for leaf in leaves)


def fused_clip_tokens(model: Any, pixel_values: Float[Tensor, "B C H W"]) -> Float[Tensor, "B N D"]:
    """Return the connector's output, as `get_image_features` does."""
    tower = model.model.vision_tower
    states = tower.pre_layrnorm(tower.embeddings(pixel_values))
    device = states.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else states.dtype
    layers = tower.encoder.layers
    read = range(len(layers) + 1)[model.config.vision_feature_layer]  # of hidden states, the first is the input
    with torch.autocast(device, enabled=False):
        for layer in layers[:read]:
            states = _layer(layer, states, dtype)
    return model.model.multi_modal_projector(states[:, 1:])


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
