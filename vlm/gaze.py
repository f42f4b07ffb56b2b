"""What a decoder shall look at to answer for a place, as a loss beside that of the answers.

    [image tokens] [reconstruct] loc: [   12 , 7 ] rgb: [   184 , 50 , 50 ]
                                          |    |    |         |
    layer 0   the question's end looks at its two coordinates: it knows the place
    layer 1   it looks at the image token of that place: it has seen
    layer 2   the words of the answer look at the question's end: they know what it has seen

A pretrained language model brings heads for each of these steps. One with random weights finds them late if at all: at
first a coordinate gets one part in 150 of what the question's end looks at, and while it does not know where to look,
its answers teach the encoder nothing. With this loss all three steps are found within a hundred steps of training
(`experiments/LOG.md`). It is an aid of training alone, and nothing in the model is made for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlm.errors import VlmError
from vlm.foreign import ForeignVLM
from vlm.model import PixelModel, PixelVLM
from vlm.place_heads import place_heads

FETCHING, LOOKING, TELLING = 0, 1, 2  # the layers of the three steps


@torch.no_grad()
def token_grid(model: PixelModel, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the borders of the image tokens' patches in pixels of an image: float[rows + 1] and float[columns + 1].

    What lies beyond the image fills it up to the size that the encoder reads.
    """
    pixels = model.pixels(torch.zeros(1, model.history, height, width, 3, dtype=torch.uint8))
    encoder: Any = model.encoder
    if patch := getattr(encoder.config, "patch_size", None):
        rows, columns = (int(size) // int(patch) for size in pixels.shape[2:])
    else:
        rows, columns = encoder(pixels).last_hidden_state.shape[2:]
    down, along = (torch.linspace(0, size, n + 1) for n, size in zip((rows, columns), pixels.shape[2:], strict=True))
    return down, along


def asked_tokens(grid: tuple[Tensor, Tensor], places: Tensor, height: int, width: int) -> Tensor:
    """Return int[..., K]: the image tokens whose patches, of a `token_grid` of images of that size, cover places
    [..., K, 2], shares of height and width.
    """
    down, along = (borders.to(places) for borders in grid)
    row = torch.bucketize((places[..., 0] * height).contiguous(), down[1:-1], right=True)
    column = torch.bucketize((places[..., 1] * width).contiguous(), along[1:-1], right=True)
    return row * (len(along) - 1) + column


def check_looking(vlm: PixelVLM) -> None:
    """Refuse a model whose image tokens are not known by place, or whose decoder has no layers to look with."""
    if isinstance(vlm, ForeignVLM):
        raise VlmError(f"a gaze asks for a model of ours, whose image tokens are known by place, got {vlm.kind}")
    layers = getattr(vlm.decoder, "layers", [])
    if len(layers) <= TELLING:
        raise VlmError(f"a gaze asks for a decoder of at least {TELLING + 1} layers, got {len(layers)}")


@dataclass(frozen=True)
class Sights:
    """What the tokens of B x K questions and their answers shall look at.

    coordinates: int[B, K, 2], where in each question its two coordinates stand; ends: int[B, K], where it ends;
    later: bool[B, K, L], the words of its answer; tokens: int[B, K], the image tokens that are asked about, of
    `asked_tokens`.
    """

    coordinates: Tensor
    ends: Tensor
    later: Tensor
    tokens: Tensor


def gaze_loss(vlm: PixelVLM, looks: Mapping[int, Tensor], sights: Sights) -> dict[str, Tensor]:
    """Return the mean of -log of what heads give to what they shall look at, as `loss`, and of what they give.

    `fetched` is given in layer `FETCHING` by a question's end to its coordinates, by a quarter of the heads to each;
    `looked` in layer `LOOKING` by the end to the image token that is asked about, by all heads but the last; `told` in
    layer `TELLING` by the words of the answer to the end, by half of the heads. Heads that look at places
    (`vlm.place_heads`) go on doing so.

    Args:
        vlm: the model.
        looks: of `read_and_watch`, of the three layers, [B, K, L, heads, P + L].
        sights: what is to be looked at.
    """
    decoder: Any = vlm.decoder
    free = place_heads(decoder.layers[LOOKING].self_attn)
    count, first = looks[LOOKING].shape[3] - free, looks[LOOKING].shape[4] - sights.later.shape[2]
    fetching, looking = (
        looks[layer].gather(2, sights.ends[:, :, None, None, None].expand(-1, -1, 1, *looks[layer].shape[3:]))[:, :, 0]
        for layer in (FETCHING, LOOKING)
    )  # [B, K, heads, P + L]
    quarter, half = max(1, count // 4), max(1, count // 2)
    fetched = torch.stack(
        [
            _given(fetching[:, :, free + index * quarter : free + (index + 1) * quarter], first + where)
            for index, where in enumerate(sights.coordinates.unbind(-1))
        ]
    )
    looked = _given(looking[:, :, free : free + max(1, count - 1)], sights.tokens)
    words = looks[TELLING][:, :, :, free : free + half][sights.later]  # [N, heads, P + L]
    told = _given(words, (first + sights.ends)[:, :, None].expand(sights.later.shape)[sights.later])
    given = {"fetched": fetched, "looked": looked, "told": told}
    loss = torch.stack([-(part + 1e-6).log().mean() for part in given.values()]).sum()
    return {"loss": loss, **{name: part.detach().mean() for name, part in given.items()}}


def _given(looks: Tensor, to: Tensor) -> Tensor:
    """Return what heads give, [..., heads], of looks [..., heads, tokens], to a token int[...] each."""
    return looks.float().gather(-1, to[..., None, None].expand(*looks.shape[:-1], 1))[..., 0]
