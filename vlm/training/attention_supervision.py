"""What a decoder shall look at to answer for a place, as a loss beside that of the answers.

    [image tokens] [reconstruct] loc: [   12 , 7 ] rgb: [   184 , 50 , 50 ]
                                          |    |    |         |
    layer 0   the question's end looks at its two coordinates: it knows the place
    layer 1   it looks at the image token of that place; the words of the answer look at it and know the place, too
    layer 2   the words of the answer look at that image token as well

A pretrained language model brings heads for each of these steps. One with random weights finds them late if at all: at
first a coordinate gets one part in 150 of what the question's end looks at, and while it does not know where to look,
its answers teach the encoder nothing. With this loss the place is found within a hundred steps of training, and by the
words of the answer some fifty later (`experiments/LOG.md`). It is an aid of training alone, and nothing in the model is
made for it.
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

COORDINATE_LAYER, PATCH_LAYER, ANSWER_LAYER = 0, 1, 2  # the layers of the three steps


@torch.no_grad()
def patch_edges(model: PixelModel, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the borders of the image tokens' patches in pixels of an image: float[rows + 1] and float[columns + 1].

    What lies beyond the image fills it up to the size that the encoder reads.
    """
    pixels = model.preprocess(torch.zeros(1, model.history, height, width, 3, dtype=torch.uint8))
    encoder: Any = model.encoder
    if patch := getattr(encoder.config, "patch_size", None):
        rows, columns = (int(size) // int(patch) for size in pixels.shape[2:])
    else:
        rows, columns = encoder(pixels).last_hidden_state.shape[2:]
    down, along = (torch.linspace(0, size, n + 1) for n, size in zip((rows, columns), pixels.shape[2:], strict=True))
    return down, along


def target_patch_index(grid: tuple[Tensor, Tensor], places: Tensor, height: int, width: int) -> Tensor:
    """Return int[..., K]: the image tokens whose patches, of a `patch_edges` of images of that size, cover places
    [..., K, 2], shares of height and width.
    """
    down, along = (borders.to(places) for borders in grid)
    row = torch.bucketize((places[..., 0] * height).contiguous(), down[1:-1], right=True)
    column = torch.bucketize((places[..., 1] * width).contiguous(), along[1:-1], right=True)
    return row * (len(along) - 1) + column


def require_attention_access(vlm: PixelVLM) -> None:
    """Refuse a model whose image tokens are not known by place, or whose decoder has no layers to look with."""
    if isinstance(vlm, PretrainedVLM):
        raise UserError(f"a gaze asks for a model of ours, whose image tokens are known by place, got {vlm.kind}")
    layers = getattr(vlm.decoder, "layers", [])
    if len(layers) <= ANSWER_LAYER:
        raise UserError(f"a gaze asks for a decoder of at least {ANSWER_LAYER + 1} layers, got {len(layers)}")


@dataclass(frozen=True)
class AttentionTargets:
    """What the tokens of B x K questions and their answers shall look at.

    coordinates: int[B, K, 2], where in each question its two coordinates stand; ends: int[B, K], where it ends;
    later: bool[B, K, L], the words of its answer; tokens: int[B, K], the image tokens that are asked about, of
    `target_patch_index`.
    """

    coordinates: Tensor
    ends: Tensor
    later: Tensor
    tokens: Tensor


def attention_supervision_loss(
    vlm: PixelVLM, looks: Mapping[int, Tensor], sights: AttentionTargets
) -> dict[str, Tensor]:
    """Return the mean of -log of what heads give to what they shall look at, as `loss`, and of what they give.

    `fetched` is given in layer `COORDINATE_LAYER` by a question's end to its coordinates, by a quarter of the heads to each;
    `looked` in layer `PATCH_LAYER` by the end to the image token that is asked about, by all heads but the last; `told` in
    the same layer by the words of the answer to the end, by half of the heads; `followed` in layer `ANSWER_LAYER` by them
    to the image token, by all heads but the last. Heads that look at places (`vlm.positional_heads`) go on doing so.

    Args:
        vlm: the model.
        looks: of `forward_packed_with_attention`, of the three layers, [B, K, L, heads, P + L].
        sights: what is to be looked at.
    """
    decoder: Any = vlm.decoder
    free = num_positional_heads(decoder.layers[PATCH_LAYER].self_attn)
    looks = {layer: found[:, :, :, free:] for layer, found in looks.items()}
    count, first = looks[PATCH_LAYER].shape[3], looks[PATCH_LAYER].shape[4] - sights.later.shape[2]
    quarter, half, most = max(1, count // 4), max(1, count // 2), max(1, count - 1)
    at_end, row, column = first + sights.ends, *(first + sights.coordinates).unbind(-1)
    fetching, looking = (_of_ends(looks[layer], sights.ends) for layer in (COORDINATE_LAYER, PATCH_LAYER))
    words = {layer: looks[layer][sights.later] for layer in (PATCH_LAYER, ANSWER_LAYER)}  # [N, heads, P + L]
    behind = sights.later.sum(-1)  # the words of each answer
    given = {
        "fetched": torch.cat(
            [_given(fetching[:, :, :quarter], row), _given(fetching[:, :, quarter:][:, :, :quarter], column)]
        ),
        "looked": _given(looking[:, :, :most], sights.tokens),
        "told": _given(words[PATCH_LAYER][:, :half], at_end.flatten().repeat_interleave(behind.flatten())),
        "followed": _given(words[ANSWER_LAYER][:, :most], sights.tokens.flatten().repeat_interleave(behind.flatten())),
    }
    loss = torch.stack([-(part + 1e-6).log().mean() for part in given.values()]).sum()
    return {"loss": loss, **{name: part.detach().mean() for name, part in given.items()}}


def _of_ends(looks: Tensor, ends: Tensor) -> Tensor:
    """Return what the questions' ends look at, [B, K, heads, tokens], of looks [B, K, L, heads, tokens]."""
    return looks.gather(2, ends[:, :, None, None, None].expand(-1, -1, 1, *looks.shape[3:]))[:, :, 0]


def _given(looks: Tensor, to: Tensor) -> Tensor:
    """Return what heads give, [..., heads], of looks [..., heads, tokens], to a token int[...] each."""
    return looks.float().gather(-1, to[..., None, None].expand(*looks.shape[:-1], 1))[..., 0]
