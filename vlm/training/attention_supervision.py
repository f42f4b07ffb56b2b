"""Attention supervision: a loss that names the tokens which question and answer tokens should attend to.

    [image tokens] [reconstruct] loc: [   12 , 7 ] rgb: [   184 , 50 , 50 ]
                                          |    |    |         |
    layer 0   the question's last token attends to its two coordinates
    layer 1   it attends to the image token of that place; the answer's tokens attend to it
    layer 2   the answer's tokens attend to that image token

A pretrained language model has heads for each of these steps. One with random weights forms them late if at all; with
this loss they form within some hundred steps (`docs/log/`). It adds nothing to the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from common.errors import UserError
from vlm.decoding.packing import weights_on
from vlm.hf_vlm import PretrainedVLM
from vlm.model import PixelModel, PixelVLM
from vlm.positional_heads import num_positional_heads

Edges = tuple[Float[Tensor, " rows_and_1"], Float[Tensor, " columns_and_1"]]
SUPERVISED_LAYERS = COORDINATE_LAYER, PATCH_LAYER, ANSWER_LAYER = 0, 1, 2


def patch_edges(model: PixelModel, height: int, width: int, cells: bool = False) -> Edges:
    """Return the edges of the image tokens' rows and columns in pixels, over the padded size that the encoder reads.

    With `cells`, those of the tokens of `PixelVLM.encode_cells`.
    """
    size = model.image_config.padded_size(height, width)
    rows, columns = model.cell_grid(*size) if cells and isinstance(model, PixelVLM) else model.token_grid(*size)
    return torch.linspace(0, size[0], rows + 1), torch.linspace(0, size[1], columns + 1)


def target_patch_index(edges: Edges, coordinates: Float[Tensor, "*K 2"], height: int, width: int) -> Int[Tensor, "*K"]:
    """Return the image token whose patch covers each coordinate, a fraction of height and width.

    `edges` are those of `patch_edges` for images of that size, in pixels.
    """
    row_edges, column_edges = (one.to(coordinates) for one in edges)
    row = torch.bucketize((coordinates[..., 0] * height).contiguous(), row_edges[1:-1], right=True)
    column = torch.bucketize((coordinates[..., 1] * width).contiguous(), column_edges[1:-1], right=True)
    return row * (len(column_edges) - 1) + column


def require_attention_access(vlm: PixelVLM) -> None:
    """Raise `UserError` for a model whose patches are unknown or whose decoder has too few layers."""
    if isinstance(vlm, PretrainedVLM):
        raise UserError(f"attention supervision needs a model of ours, whose patches are known, got {vlm.kind}")
    if (layers := len(getattr(vlm.decoder, "layers", []))) <= ANSWER_LAYER:
        raise UserError(f"attention supervision needs a decoder of {ANSWER_LAYER + 1} layers or more, got {layers}")


@dataclass(frozen=True)
class AttentionTargets:
    """What the tokens of B x K questions and their answers should attend to."""

    coordinates: Int[Tensor, "B K 2"]  # the positions of the two coordinates in each question
    question_ends: Int[Tensor, "B K"]  # the position of its last token
    answer_mask: Bool[Tensor, "B K L"]  # the answer's tokens
    image_tokens: Int[Tensor, "B K"]  # of `target_patch_index`
    numbers: Int[Tensor, "B K L"] | None = None  # which number follows an answer's token: 1, the second, 2 or 0, none

    def reads(self, prefix_length: int) -> dict[int, Int[Tensor, "B K L M"]]:
        """Return the tokens, counted from the prefix's first, whose weights the loss reads at each token, by layer."""
        shape, length = self.answer_mask.shape, self.answer_mask.shape[2]
        patch = self.image_tokens[:, :, None].expand(shape)
        ends = (prefix_length + self.question_ends)[:, :, None].expand(shape)
        is_end = torch.arange(length, device=ends.device) == self.question_ends[:, :, None]
        return {
            COORDINATE_LAYER: (prefix_length + self.coordinates)[:, :, None].expand(-1, -1, length, -1),
            PATCH_LAYER: torch.where(is_end, patch, ends)[..., None],
            ANSWER_LAYER: patch[..., None] if self.numbers is None else torch.stack([patch, ends], dim=-1),
        }


def attention_supervision_loss(
    vlm: PixelVLM, attention: Mapping[int, Float[Tensor, "B K L heads all"]], targets: AttentionTargets
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return `supervised_weights_loss` of the whole attention, that of `forward_packed_with_attention`."""
    prefix_length = attention[PATCH_LAYER].shape[4] - targets.answer_mask.shape[2]
    reads = targets.reads(prefix_length)
    return supervised_weights_loss(vlm, {i: weights_on(attention[i], reads[i]) for i in SUPERVISED_LAYERS}, targets)


def supervised_weights_loss(
    vlm: PixelVLM, weights: Mapping[int, Float[Tensor, "B K L heads M"]], targets: AttentionTargets
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Return the mean -log attention weight on the targets, and the mean weights as metrics.

    `attn/coordinates`: from the question's end to its coordinates, a quarter of the heads to each;
    `attn/question_to_patch`: from it to the image token, all heads but one; `attn/answer_to_question`: from the
    answer's tokens to the question's end, half of the heads; `attn/answer_to_patch`: from them to the image token, all
    heads but one; with `targets.numbers`, half of the heads for the second number and the others for the third, where
    each half attends to the question's end for the other's number. Positional heads (`vlm.positional_heads`) are left
    alone. `weights` are those of `AttentionTargets.reads`.
    """
    decoder: Any = vlm.decoder
    free = num_positional_heads(decoder.layers[PATCH_LAYER].self_attn)
    weights = {layer: part[:, :, :, free:].float() for layer, part in weights.items()}
    heads = weights[PATCH_LAYER].shape[3]
    quarter, half, most = max(1, heads // 4), max(1, heads // 2), max(1, heads - 1)
    coordinates = _at(weights[COORDINATE_LAYER], targets.question_ends)  # [B, K, heads, 2]
    rows, columns = coordinates[:, :, :quarter, 0], coordinates[:, :, quarter : 2 * quarter, 1]
    found = {
        "attn/coordinates": torch.cat([rows, columns]),
        "attn/question_to_patch": _at(weights[PATCH_LAYER], targets.question_ends)[:, :, :most, 0],
        "attn/answer_to_question": weights[PATCH_LAYER][targets.answer_mask][:, :half, 0],
        "attn/answer_to_patch": weights[ANSWER_LAYER][targets.answer_mask][:, :most, 0],
    }
    if targets.numbers is not None:
        found["attn/answer_to_patch"] = _own_heads(weights[ANSWER_LAYER], targets.numbers, half)
    loss = torch.stack([-(part + 1e-6).log().mean() for part in found.values()]).sum()
    return loss, {name: part.detach().mean() for name, part in found.items()}


def _own_heads(weights: Float[Tensor, "B K L heads 2"], numbers: Int[Tensor, "B K L"], half: int) -> Tensor:
    """Return the weights of the first heads on the patch for number 1 and on the end for number 2; others reversed."""
    parts = []
    for number in (1, 2):
        own = weights[numbers == number]
        first, second = own[:, :half, number - 1], own[:, half:, 2 - number]
        parts += [first, second]
    return torch.cat([part.flatten() for part in parts])


def _at(weights: Tensor, positions: Tensor) -> Tensor:
    """Return the weights [B, K, heads, M] of one position int[B, K] of weights [B, K, L, heads, M]."""
    return weights.gather(2, positions[:, :, None, None, None].expand(-1, -1, 1, *weights.shape[3:]))[:, :, 0]
