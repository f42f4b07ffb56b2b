"""Lets a decoder look where it is asked to, in place of waiting until it does: by a loss, or by least squares.

To answer for a place a decoder needs three steps, which training from nothing finds late if at all: the question's last
token reads the two coordinates before it (layer 0); its query meets the key of the image token at that place (layer
1); the later words of the answer read what it has seen (layer 2). A pretrained language model brings such heads; here
there are two ways to them.

`gaze_loss` asks in training for what layer 1 shall look at: all other weights, the encoder's included, learn beside it,
and the first two steps are found within two hundred steps of training (`experiments/LOG.md`).

`fit_gaze` fits queries and keys to what each layer is given, once, by ridge regression, for any encoder whose tokens
tell their place:

    layer 0   two heads that look back by the distance of a coordinate, from any text to any text
    layer 1   all heads but one: query = code of the asked place, key = code of the token's own place
    layer 2   two heads: query of any text, key of the question's last token

Heads that look at places go on doing so (`vlm.place_heads`); "all" and "two" are of the others. Rotary pairs that turn
fast serve distances, slow ones content; with a small base none is slow enough, but a token of the image and the
question's end stand at a fixed distance, and keys of places are fitted turned back by it.

Only queries and keys change, and all remain trainable. But the rest of the model has never met what it now looks at:
its first answers are confident and wrong, and the quickest way to a lower loss is to look away again
(`experiments/LOG.md`). So what the gaze rests on, `resting_on_gaze`, had better stand still until the rest has learnt
to use it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlm.errors import VlmError
from vlm.foreign import ForeignVLM
from vlm.model import PixelModel, PixelVLM
from vlm.packing import read_questions
from vlm.place_heads import place_heads

LOOKING = 1  # the layer in which a question's end looks at the image token that it asks about
RIDGE = 1e-2  # times the mean square of the features
KEEP = 0.3  # of a fitted head's own weights
PEAK, SHARP = 16.0, 14.0  # the scores that heads for distances, and for places and words, give to what they look for


@dataclass(frozen=True)
class Asked:
    """Examples to fit to: B images with K questions each, answers included.

    frames: uint8[B, history, H, W, 3]; shared: int[S], the tokens between image and question; read: int[B, K, L];
    places: float[B, K, 2], the asked rows and columns as shares of the image's height and width; question: the number
    of tokens of a question; back: how far its last token stands behind each of the two coordinates.
    """

    frames: Tensor
    shared: Tensor
    read: Tensor
    places: Tensor
    question: int
    back: tuple[int, int]


@torch.no_grad()
def fit_gaze(vlm: PixelVLM, asked: Asked) -> dict[str, float]:
    """Fit the gaze of a model in place.

    Returns:
        The share of variance (R squared) that a layer's input explains of: `token places`, the image tokens' own
        places; `asked places`, those asked about, at the question's last token; `last token`, being that token.

    Raises:
        VlmError: the decoder is no Llama of at least three layers.
    """
    layers = _check(vlm)
    training = vlm.model.training
    vlm.model.eval()
    own = token_places(vlm, asked.frames.shape[2], asked.frames.shape[3])
    report: dict[str, float] = {}
    _fit_distances(vlm, layers[0], _inputs(vlm, layers[0], asked), asked)
    _fit_places(vlm, layers[LOOKING], _inputs(vlm, layers[LOOKING], asked), asked, own, report)
    _fit_last_token(layers[2], _inputs(vlm, layers[2], asked), asked, report)
    vlm.model.train(training)
    return report


def resting_on_gaze(vlm: PixelVLM) -> list[nn.Parameter]:
    """Return all parameters but those that use what is seen: values, outputs and feed-forward parts from layer 1."""
    free: set[int] = set()
    decoder: Any = vlm.decoder
    for layer in _check(vlm)[1:]:
        used = (layer.self_attn.v_proj, layer.self_attn.o_proj, layer.mlp, layer.post_attention_layernorm)
        free |= {id(parameter) for module in used for parameter in module.parameters()}
    free |= {id(parameter) for parameter in decoder.norm.parameters()}
    return [parameter for parameter in vlm.model.parameters() if id(parameter) not in free]


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


def token_places(model: PixelModel, height: int, width: int) -> Tensor:
    """Return float[N, 2]: the middle of each image token's patch, as shares of an image's height and width."""
    down, along = ((borders[1:] + borders[:-1]) / 2 for borders in token_grid(model, height, width))
    return torch.cartesian_prod(down / height, along / width)


def asked_tokens(grid: tuple[Tensor, Tensor], places: Tensor, height: int, width: int) -> Tensor:
    """Return int[..., K]: the image tokens whose patches, of a `token_grid` of images of that size, cover places
    [..., K, 2], shares of height and width.
    """
    down, along = (borders.to(places) for borders in grid)
    row = torch.bucketize((places[..., 0] * height).contiguous(), down[1:-1], right=True)
    column = torch.bucketize((places[..., 1] * width).contiguous(), along[1:-1], right=True)
    return row * (len(along) - 1) + column


def check_looking(vlm: PixelVLM) -> None:
    """Refuse a model whose image tokens are not known by place, or whose decoder has no layer to look with."""
    if isinstance(vlm, ForeignVLM):
        raise VlmError(f"a gaze asks for a model of ours, whose image tokens are known by place, got {vlm.kind}")
    layers = getattr(vlm.decoder, "layers", [])
    if len(layers) <= LOOKING:
        raise VlmError(f"a gaze asks for a decoder of at least {LOOKING + 1} layers, got {len(layers)}")


def gaze_loss(vlm: PixelVLM, looks: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of -log of what the heads that may look anywhere give to the asked token, and of what they give.

    Args:
        vlm: the model.
        looks: [B, K, heads, P], what the end of each question looks at in layer `LOOKING`, image tokens first.
        tokens: int[B, K], of `asked_tokens`.
    """
    decoder: Any = vlm.decoder
    free = place_heads(decoder.layers[LOOKING].self_attn)
    heads = looks[:, :, free : max(free + 1, looks.shape[2] - 1)].float()  # the last one looks as it likes
    given = heads.gather(3, tokens[:, :, None, None].expand(-1, -1, heads.shape[2], 1))
    return -(given + 1e-6).log().mean(), given.mean()


def place_code(places: Tensor, waves: int) -> Tensor:
    """Return sines and cosines [..., 4 * waves] of places [..., 2]: sines of rows, of columns, then cosines."""
    lengths = torch.tensor(np.geomspace(0.25, 2.0, waves), dtype=torch.float32)
    angles = (2 * math.pi * places.float()[..., None] / lengths).flatten(-2)  # [..., 2 * waves]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def ridge(features: Tensor, wanted: Tensor) -> tuple[Tensor, float]:
    """Return the map [targets, D] from features [N, D] to wanted [N, targets], and its R squared.

    There is no constant term, since a query or key has none.
    """
    x, y = features.double(), wanted.double()
    gram = x.T @ x
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    solved = torch.linalg.solve(gram, x.T @ y)
    rest = ((x @ solved - y) ** 2).sum() / ((y - y.mean(0)) ** 2).sum().clamp_min(1e-12)
    return solved.T.float(), float(1 - rest)


@dataclass(frozen=True)
class _Seen:
    """What a layer is given. images: [B, N, D]; questions: [B, K, L, D]; shared: [B, S, D]."""

    images: Tensor
    shared: Tensor
    questions: Tensor

    def told_apart(self, mark: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Return features [M, D] and marks [M, 1] of all tokens; those of images are 0, text's as `mark` says."""
        images, text = self.images.flatten(0, 1), self.questions.flatten(0, 1)  # [.., D], [B * K, L, D]
        marks = mark(torch.zeros(text.shape[:2]))
        shared = self.shared.flatten(0, 1)
        features = torch.cat([images, shared, text.flatten(0, 1)])
        first = mark(torch.zeros(1, text.shape[1]))[0, 0]
        return features, torch.cat([torch.zeros(len(images)), first.expand(len(shared)), marks.flatten()])[:, None]


def _check(vlm: PixelVLM) -> list[Any]:
    """Return the decoder's layers."""
    layers = list(getattr(vlm.decoder, "layers", []))
    fits = len(layers) >= 3 and hasattr(layers[0], "input_layernorm")
    if not fits or not hasattr(vlm.decoder, "rotary_emb"):
        raise VlmError(f"expected a Llama decoder of at least 3 layers, got {type(vlm.decoder).__name__}")
    return layers


def _inputs(vlm: PixelVLM, layer: Any, asked: Asked) -> _Seen:
    found: list[Tensor] = []
    hook = layer.input_layernorm.register_forward_hook(lambda _m, _i, output: found.append(output.float().cpu()))
    try:
        for frames, read in zip(asked.frames.split(8), asked.read.split(8), strict=True):
            pixels = vlm.pixels(frames)
            read_questions(vlm, pixels, asked.shared.to(vlm.device), read.to(vlm.device), "mask")
    finally:
        hook.remove()
    states, (_, count, length) = torch.cat(found), asked.read.shape
    behind = states.shape[1] - count * length
    images = behind - len(asked.shared)
    return _Seen(states[:, :images], states[:, images:behind], states[:, behind:].unflatten(1, (count, length)))


def _heads(attention: Any) -> tuple[Tensor, Tensor, int]:
    """Return views of the weights of queries and keys, [heads, width, D], of the free heads, and a head's width."""
    width = attention.head_dim
    free = place_heads(attention)  # those that look at places go on doing so
    queries, keys = (p.weight.unflatten(0, (-1, width))[free:] for p in (attention.q_proj, attention.k_proj))
    return queries, keys, width


def _slow(width: int) -> Tensor:
    """Return the indices of a head's slow rotary pairs, first members then second."""
    half = width // 2
    return torch.cat([torch.arange(half // 2, half), torch.arange(half + half // 2, width)])


def _fit_distances(vlm: PixelVLM, layer: Any, seen: _Seen, asked: Asked) -> None:
    """Let the heads of a layer look back by each distance in turn, from text to text."""
    text, _ = ridge(*seen.told_apart(torch.ones_like))
    queries, keys, width = _heads(layer.self_attn)
    half, fast = width // 2, 3 * width // 16
    decoder: Any = vlm.decoder
    speeds = decoder.rotary_emb.inv_freq.float().cpu()[:fast]
    strength = math.sqrt(PEAK * math.sqrt(width) / (2 * fast))
    for head in range(len(queries)):
        turn = asked.back[head % 2] * speeds
        query, key = torch.zeros(width), torch.zeros(width)
        query[:fast] = query[half : half + fast] = strength
        key[:fast], key[half : half + fast] = strength * (turn.cos() - turn.sin()), strength * (turn.cos() + turn.sin())
        _put(queries[head], query[:, None] * text)
        _put(keys[head], key[:, None] * text)


def _turned_back(code: Tensor, distances: Tensor, speeds: Tensor) -> Tensor:
    """Return codes [N, 2 * pairs], first members of pairs and then second ones, as keys that meet their queries as they
    are when rotary positions turn them by `distances` [N] at `speeds` [pairs].
    """
    first, second = code.chunk(2, dim=-1)
    turns = distances[:, None] * speeds
    cos, sin = turns.cos(), turns.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def _fit_places(vlm: PixelVLM, layer: Any, seen: _Seen, asked: Asked, own: Tensor, report: dict[str, float]) -> None:
    """Let all heads of a layer but the last look from a question's last token to the image token it asks about."""
    queries, keys, width = _heads(layer.self_attn)
    waves, inside = width // 8, (own < 1).all(-1)
    decoder: Any = vlm.decoder
    speeds = decoder.rotary_emb.inv_freq.float().cpu()[width // 4 : width // 2]  # of the slow pairs
    back = len(own) + len(asked.shared) + asked.question - 1 - torch.arange(len(own))  # from the question's last token
    code = _turned_back(place_code(own[inside], waves), back[inside], speeds)  # [tokens inside, 4 * waves]
    key, report["token places"] = ridge(seen.images[:, inside].flatten(0, 1), code.repeat(len(seen.images), 1))
    last = seen.questions[:, :, asked.question - 1].flatten(0, 1)
    query, report["asked places"] = ridge(last, place_code(asked.places, waves).flatten(0, 1))
    strength = math.sqrt(SHARP * math.sqrt(width) / (2 * waves))
    for head in range(max(1, len(queries) - 1)):
        for weights, fitted in ((queries[head], query), (keys[head], key)):
            placed = torch.zeros(width, fitted.shape[1])
            placed[_slow(width)] = strength * fitted
            _put(weights, placed)


def _fit_last_token(layer: Any, seen: _Seen, asked: Asked, report: dict[str, float]) -> None:
    """Let half of the heads of a layer look from any text to the last token of the question."""

    def mark(zeros: Tensor) -> Tensor:
        zeros[:, asked.question - 1] = 1
        return zeros

    query, _ = ridge(*seen.told_apart(torch.ones_like))
    key, report["last token"] = ridge(*seen.told_apart(mark))
    queries, keys, width = _heads(layer.self_attn)
    slots = _slow(width)
    direction = torch.zeros(width, 1)
    direction[slots] = math.sqrt(SHARP * math.sqrt(width) / len(slots))
    for head in range(max(1, len(queries) // 2)):
        _put(queries[head], direction * query)
        _put(keys[head], direction * key)


def _put(weights: Tensor, fitted: Tensor) -> None:
    weights.mul_(KEEP).add_(fitted.to(weights))
