"""Passes of a Llama decoder for training on a CPU: the states and gradients of its class, to rounding.

Other than the class's own forward pass they

    cast each weight once a step, with the weights of the norms multiplied in
    project queries, keys and values by one product, and gate and up by one
    end what is shared, a prefix or a text, at the last layer's keys and values: nothing else of it is read
    compute the last layer only for the tokens whose states are read
    keep attention weights only where they are read, without gradients full of zeros

Classes and settings that they do not know take the class's own pass, with the same result.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaModel,
    LlamaRMSNorm,
)

from vlm.decoding.prefix import Prefix, additive_mask
from vlm.fused_ops import attend, rms_normalize, split_heads, swiglu, trains_on_cpu
from vlm.model import PixelVLM

Reads = Mapping[int, Int[Tensor, "B K L M"]]  # by layer: for each token, the tokens whose attention weights are read
PLAIN_MODULES = {LlamaDecoderLayer, LlamaAttention, LlamaMLP, LlamaRMSNorm, SiLUActivation, nn.SiLU, nn.Linear}


def supports_fused_llama(decoder: Any) -> bool:
    """Return whether a decoder is a plain Llama that trains on a CPU: no adapters, dropout or checkpointing."""
    if type(decoder) is not LlamaModel or not trains_on_cpu(decoder):
        return False
    config = decoder.config
    return (
        config.num_key_value_heads == config.num_attention_heads
        and not config.attention_dropout
        and not decoder.gradient_checkpointing
        and all(_is_plain(layer) for layer in decoder.layers)
    )


def _is_plain(layer: nn.Module) -> bool:
    return {type(module) for module in layer.modules()} <= PLAIN_MODULES  # adapters are modules of other classes


@dataclass(frozen=True)
class _Layer:
    """A layer's weights in the type of the computation, the scale of the scores and the norms multiplied in."""

    index: int
    qkv: Float[Tensor, "three_H D"]
    qkv_bias: Float[Tensor, " three_H"] | None
    output: Float[Tensor, "D H"]
    output_bias: Float[Tensor, " D"] | None
    gate_up: Float[Tensor, "two_F D"]
    down: Float[Tensor, "D F"]
    heads: int
    eps: float

    @classmethod
    def of(cls, index: int, layer: Any, dtype: torch.dtype) -> "_Layer":
        attention, mlp = layer.self_attn, layer.mlp
        first, second = layer.input_layernorm, layer.post_attention_layernorm
        scale, bias = attention.scaling, attention.q_proj.bias is not None
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        qkv = torch.cat([parts[0].weight * scale, parts[1].weight, parts[2].weight]) * first.weight
        qkv_bias = torch.cat([parts[0].bias * scale, parts[1].bias, parts[2].bias]).to(dtype) if bias else None
        gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]) * second.weight
        return cls(
            index,
            qkv.to(dtype),
            qkv_bias,
            attention.o_proj.weight.to(dtype),
            attention.o_proj.bias.to(dtype) if bias else None,
            gate_up.to(dtype),
            mlp.down_proj.weight.to(dtype),
            attention.config.num_attention_heads,
            first.variance_epsilon,
        )

    def project(self, states: Float[Tensor, "N D"], rows: tuple[int, int, int], rotary: Any, parts: int = 3) -> Any:
        """Return queries, keys and values [B, heads, C, T, width] of states of B x C x T tokens, or the last parts."""
        first = (3 - parts) * self.output.shape[1]
        bias = None if self.qkv_bias is None else self.qkv_bias[first:]
        normalized = rms_normalize(states, self.eps, self.qkv.dtype)
        projected = functional.linear(normalized, self.qkv[first:], bias)
        width = self.output.shape[1] // self.heads  # not -1: there may be no tokens
        return split_heads(projected.view(*rows, parts, self.heads, width), *rotary)

    def finish(self, states: Float[Tensor, "N D"], attended: Float[Tensor, "N H"]) -> Float[Tensor, "N D"]:
        """Return the layer's output, given its input and the output of its heads."""
        states = states + functional.linear(attended, self.output, self.output_bias)
        normalized = rms_normalize(states, self.eps, self.qkv.dtype)
        return states + functional.linear(swiglu(functional.linear(normalized, self.gate_up)), self.down)


def fused_answer_states(
    vlm: PixelVLM,
    prefix: Prefix,
    embeddings: Float[Tensor, "B K L D"],
    labelled: Bool[Tensor, "B K L"],
    reads: Reads,
) -> tuple[Float[Tensor, "A D"], dict[int, Float[Tensor, "B K L heads M"]]]:
    """Return the last hidden states of the labelled tokens, and the attention weights that are read.

    In the last layer, weights before the first labelled token are 0.
    """
    decoder: Any = vlm.decoder
    dtype = _computed_dtype(prefix.embeddings)
    with torch.autocast(embeddings.device.type, enabled=False):
        states, weights = _Pass(decoder, _layers(decoder, dtype), prefix, dtype).suffixes(embeddings, labelled, reads)
        return decoder.norm(states), weights


def fused_last_states(
    vlm: PixelVLM,
    text: Float[Tensor, "S D"],
    embeddings: Float[Tensor, "B T D"],
    position_ids: Int[Tensor, " S_and_T"],
    mask: Float[Tensor, "T S_and_T"],
    last: int,
) -> Float[Tensor, "B last D"]:
    """Return the last hidden states of the last tokens of B sequences that begin with one text.

    `mask` is additive, over the text's tokens, which are read once, and a sequence's own.
    """
    decoder: Any = vlm.decoder
    dtype = _computed_dtype(embeddings)
    with torch.autocast(embeddings.device.type, enabled=False):
        layers, cos_sin = _layers(decoder, dtype), decoder.rotary_emb(decoder.norm.weight, position_ids[None])
        cos, sin = (part[0].to(dtype) for part in cos_sin)
        shared = _shared_kv(layers, text, (cos[: len(text)], sin[: len(text)]), dtype)
        rotary, mask = (cos[len(text) :], sin[len(text) :]), mask.to(dtype)
        batch, length, width = embeddings.shape
        states = embeddings.flatten(0, 1)
        for layer, common in zip(layers, shared, strict=True):
            first = length - last if layer is layers[-1] else 0
            query, *own = (part[:, :, 0] for part in layer.project(states, (batch, 1, length), rotary))
            key, value = (
                torch.cat([before.expand(batch, -1, -1, -1), after], dim=2).flatten(0, 1)
                for before, after in zip(common, own, strict=True)
            )
            if first:
                states = states.view(batch, length, width)[:, first:].flatten(0, 1)
            attended, _ = attend(query[:, :, first:].flatten(0, 1), key, value, mask=mask[first:])
            states = layer.finish(states, _merge(attended, batch))
        return decoder.norm(states).view(batch, last, width)


def _shared_kv(
    layers: list[_Layer], text: Float[Tensor, "S D"], rotary: tuple[Tensor, Tensor], dtype: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    """Return the keys and values [heads, S, width] of a text in each layer."""
    length, found = len(text), []
    mask = additive_mask(torch.ones(length, length, dtype=torch.bool, device=text.device).tril(), dtype)
    for layer in layers:
        query, key, value = (part[0, :, 0] for part in layer.project(text, (1, 1, length), rotary))
        found.append((key, value))
        if length and layer is not layers[-1]:
            attended, _ = attend(query, key, value, mask=mask)
            text = layer.finish(text, _merge(attended, 1))
    return found


def _computed_dtype(states: Tensor) -> torch.dtype:
    """Return the type to compute in: autocast's where it is on."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


def _layers(decoder: Any, dtype: torch.dtype) -> list[_Layer]:
    return [_Layer.of(index, layer, dtype) for index, layer in enumerate(decoder.layers)]


def _merge(attended: Float[Tensor, "G N width"], batch: int) -> Float[Tensor, "BN H"]:
    """Return the heads' outputs of each token side by side."""
    return attended.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2).flatten(0, 1)


class _Pass:
    """One pass over prefixes, whose keys and values it holds, and their suffixes."""

    def __init__(self, decoder: Any, layers: list[_Layer], prefix: Prefix, dtype: torch.dtype):
        self.layers, self.dtype, self.decoder = layers, dtype, decoder
        self.batch, self.length, _ = prefix.embeddings.shape
        self.cached: list[tuple[Tensor, Tensor]] = []  # keys and values [B * heads, P, width] of each layer
        rows, rotary = (self.batch, 1, self.length), self._rotary(0, self.length)
        visible = torch.ones(self.length, self.length, dtype=torch.bool, device=prefix.embeddings.device).tril()
        states, mask = prefix.embeddings.flatten(0, 1), additive_mask(visible, dtype)
        for layer in layers[:-1]:
            query, key, value = (part.flatten(0, 1)[:, 0] for part in layer.project(states, rows, rotary))
            self.cached.append((key, value))
            attended, _ = attend(query, key, value, mask=mask)
            states = layer.finish(states, _merge(attended, self.batch))
        key, value = layers[-1].project(states, rows, rotary, parts=2)
        self.cached.append((key.flatten(0, 1)[:, 0], value.flatten(0, 1)[:, 0]))

    def suffixes(self, embeddings: Tensor, labelled: Tensor, reads: Reads) -> tuple[Tensor, dict[int, Tensor]]:
        """Return the states [A, D] of labelled tokens before the last norm, and the weights that are read."""
        count, length, width = embeddings.shape[1:]
        rotary = self._rotary(self.length, self.length + length)
        visible = torch.ones(length, length, dtype=torch.bool, device=embeddings.device).tril()
        mask = additive_mask(visible, self.dtype)
        states, found = embeddings.flatten(0, 2), {}
        for layer in self.layers:
            last = layer is self.layers[-1]
            first = int(labelled.flatten(0, 1).any(0).int().argmax()) if last else 0
            query, key, value = layer.project(states, (self.batch, count, length), rotary)
            if first:
                query, states = query[:, :, :, first:].contiguous(), states.view(-1, length, width)[:, first:]
                states = states.flatten(0, 1)
            index = self._index(reads[layer.index], first, layer.heads) if layer.index in reads else None
            own_key, own_value = (part.flatten(0, 2) for part in (key, value))
            common_key, common_value = self.cached[layer.index]
            query = query.flatten(0, 1).flatten(1, 2)
            attended, read = attend(query, common_key, common_value, own_key, own_value, mask[first:], index)
            if read is not None:
                read = read.view(self.batch, layer.heads, count, length - first, -1).permute(0, 2, 3, 1, 4)
                found[layer.index] = functional.pad(read, (0, 0, 0, 0, first, 0))
            states = layer.finish(states, _merge(attended, self.batch))
        return states[labelled[:, :, first:].flatten()], found

    def _rotary(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(start, end, device=self.decoder.device)[None]
        cos, sin = self.decoder.rotary_emb(self.decoder.norm.weight, positions)
        return cos[0].to(self.dtype), sin[0].to(self.dtype)

    def _index(self, tokens: Int[Tensor, "B K L M"], first: int, heads: int) -> Int[Tensor, "G N M"]:
        rows = tokens[:, :, first:].flatten(1, 2)[:, None]
        return rows.expand(-1, heads, -1, -1).flatten(0, 1)
