"""Attention supervision: a loss that names the tokens which question and answer tokens should attend to.

    [image tokens] [reconstruct] loc: [   12 , 7 ] rgb: [   184 , 50 , 50 ]
                                          |    |    |         |
    layer 0   the question's last token attends to its two coordinates
    layer 1   it attends to the image token of that place; the answer's tokens attend to it
    layer 2   the answer's tokens attend to that image token

A pretrained language model has heads for each of these steps. One with random weights forms them late if at all; with
this loss they form within some hundred steps (docs/log, November 2026). It is for training alone and adds nothing to
the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from vlm.hf_vlm import PretrainedVLM
from vlm.model import PixelModel, PixelVLM
from vlm.positional_heads import num_positional_heads

COORDINATE_LAYER, PATCH_LAYER, ANSWER_LAYER = 0, 1, 2
SUPERVISED_LAYERS = (COORDINATE_LAYER, PATCH_LAYER, ANSWER_LAYER)


@torch.no_grad()
def patch_edges(model: PixelModel, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the edges of the image tokens' patches in pixels: float[rows + 1] and float[columns + 1].

    They cover the padded size that the encoder reads.
    """
    pixels = model.preprocess(torch.zeros(1, model.history, height, width, 3, dtype=torch.uint8))
    encoder: Any = model.encoder
    if patch := getattr(encoder.config, "patch_size", None):
        rows, columns = (int(size) // int(patch) for size in pixels.shape[2:])
    else:
        rows, columns = encoder(pixels).last_hidden_state.shape[2:]
    row_edges, column_edges = (
        torch.linspace(0, size, n + 1) for n, size in zip((rows, columns), pixels.shape[2:], strict=True)
    )
    return row_edges, column_edges


def target_patch_index(edges: tuple[Tensor, Tensor], coordinates: Tensor, height: int, width: int) -> Tensor:
    """Return int[...]: the image token whose patch covers each coordinate.

    Args:
        edges: of `patch_edges`, for images of that size.
        coordinates: float[..., 2], fractions of height and width.
        height: of the images, in pixels.
        width: of the images, in pixels.
    """
    row_edges, column_edges = (one.to(coordinates) for one in edges)
    row = torch.bucketize((coordinates[..., 0] * height).contiguous(), row_edges[1:-1], right=True)
    column = torch.bucketize((coordinates[..., 1] * width).contiguous(), column_edges[1:-1], right=True)
    return row * (len(column_edges) - 1) + column


def require_attention_access(vlm: PixelVLM) -> None:
    """Raise `UserError` for a model whose image tokens have no known place, or whose decoder has too few layers."""
    if isinstance(vlm, PretrainedVLM):
        raise UserError(f"attention supervision needs a model of ours, whose patches are known, got {vlm.kind}")
    layers = getattr(vlm.decoder, "layers", [])
    if len(layers) <= ANSWER_LAYER:
        raise UserError(
            f"attention supervision needs a decoder of {ANSWER_LAYER + 1} layers or more, got {len(layers)}"
        )


@dataclass(frozen=True)
class AttentionTargets:
    """What the tokens of B x K questions and their answers should attend to.

    coordinates: int[B, K, 2], the positions of the two coordinates in each question; question_ends: int[B, K], of its
    last token; answer_mask: bool[B, K, L], the answer's tokens; image_tokens: int[B, K], of `target_patch_index`.
    """

    coordinates: Tensor
    question_ends: Tensor
    answer_mask: Tensor
    image_tokens: Tensor


def attention_supervision_loss(
    vlm: PixelVLM, attention: Mapping[int, Tensor], targets: AttentionTargets
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean -log attention weight on the targets, and the mean weights as metrics.

    `attn/coordinates`: from the question's end to its coordinates, a quarter of the heads to each;
    `attn/question_to_patch`: from it to the image token, all heads but one; `attn/answer_to_question`: from the
    answer's tokens to the question's end, half of the heads; `attn/answer_to_patch`: from them to the image token, all
    heads but one. Positional heads (`vlm.positional_heads`) are left alone.

    Args:
        vlm: the model.
        attention: by layer, [B, K, L, heads, P + L], of `forward_packed_with_attention`.
        targets: what to attend to.
    """
    decoder: Any = vlm.decoder
    free = num_positional_heads(decoder.layers[PATCH_LAYER].self_attn)
    attention = {layer: weights[:, :, :, free:] for layer, weights in attention.items()}
    heads, prefix = attention[PATCH_LAYER].shape[3], attention[PATCH_LAYER].shape[4] - targets.answer_mask.shape[2]
    quarter, half, most = max(1, heads // 4), max(1, heads // 2), max(1, heads - 1)
    end, row, column = prefix + targets.question_ends, *(prefix + targets.coordinates).unbind(-1)
    at_end = {layer: _at(attention[layer], targets.question_ends) for layer in (COORDINATE_LAYER, PATCH_LAYER)}
    answers = {
        layer: attention[layer][targets.answer_mask] for layer in (PATCH_LAYER, ANSWER_LAYER)
    }  # [N, heads, P + L]
    repeats = targets.answer_mask.sum(-1).flatten()
    weights = {
        "attn/coordinates": torch.cat(
            [
                _weight_on(at_end[COORDINATE_LAYER][:, :, :quarter], row),
                _weight_on(at_end[COORDINATE_LAYER][:, :, quarter : 2 * quarter], column),
            ]
        ),
        "attn/question_to_patch": _weight_on(at_end[PATCH_LAYER][:, :, :most], targets.image_tokens),
        "attn/answer_to_question": _weight_on(answers[PATCH_LAYER][:, :half], end.flatten().repeat_interleave(repeats)),
        "attn/answer_to_patch": _weight_on(
            answers[ANSWER_LAYER][:, :most], targets.image_tokens.flatten().repeat_interleave(repeats)
        ),
    }
    loss = torch.stack([-(part + 1e-6).log().mean() for part in weights.values()]).sum()
    return loss, {name: part.detach().mean() for name, part in weights.items()}


def _at(attention: Tensor, positions: Tensor) -> Tensor:
    """Return the weights [B, K, heads, tokens] of one position int[B, K] of attention [B, K, L, heads, tokens]."""
    return attention.gather(2, positions[:, :, None, None, None].expand(-1, -1, 1, *attention.shape[3:]))[:, :, 0]


def _weight_on(attention: Tensor, tokens: Tensor) -> Tensor:
    """Return the weights [..., heads] of attention [..., heads, tokens] on one token int[...] each."""
    return attention.float().gather(-1, tokens[..., None, None].expand(*attention.shape[:-1], 1))[..., 0]
