"""What many questions share: the image and the text around it, as embeddings and positions of the decoder.

A prefix can be shared where the decoder is causal: each of its tokens is then the same whatever comes behind it.
`require_prefix_sharing` refuses, by how a class is built, those for which that is not so; nothing goes wrong silently.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from common.errors import UserError
from vlm.hf_vlm import uses_mrope
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM


@dataclass(frozen=True)
class Prefix:
    """B prefixes of P tokens.

    embeddings: [B, P, D]; positions: int[B, P], or int[3, B, P] in models that count time, rows and columns apart
    (M-RoPE; Wang et al. 2024, "Qwen2-VL"), where an image takes fewer positions than tokens.
    """

    embeddings: Tensor
    positions: Tensor

    @property
    def length(self) -> int:
        """P."""
        return self.embeddings.shape[1]

    def position_ids_after(self, steps: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the positions of tokens that stand some `steps` behind a prefix's end.

        Text counts alike on every axis, from one above the largest position of the prefix.

        Args:
            steps: int[T], or int[R, T].
            rows: int[R], the prefix of each row; by default there is a row for each prefix.

        Returns:
            int[R, T], or int[3, R, T] as the prefix has it.
        """
        largest = self.positions.amax(-1) if self.positions.ndim == 2 else self.positions.amax((0, -1))
        own = (largest if rows is None else largest[rows])[:, None] + 1 + steps  # [R, T]
        return own.expand(*self.positions.shape[:-2], *own.shape)

    def cache(self, vlm: PixelVLM) -> DynamicCache:
        """Read the prefix; return its keys and values, with the gradient that is enabled.

        Raises:
            UserError: the decoder kept none, as it does, silently, under gradient checkpointing.
        """
        cache = DynamicCache(config=vlm.decoder.config)
        forward_with_cache(vlm, cache, self.embeddings, self.positions)
        if cache.get_seq_length() != self.length:
            raise UserError(
                f"expected {type(vlm.decoder).__name__} to keep {self.length} tokens, it kept "
                f"{cache.get_seq_length()}: gradient checkpointing forbids a cache; turn it off or pack by mask"
            )
        return cache


def encode_prefix(vlm: PixelVLM, features: ImageFeatures, shared: Tensor) -> Prefix:
    """Return the prefixes of B images: their tokens where `shared` has their placeholders.

    Args:
        vlm: the model, of any class that `require_prefix_sharing` admits.
        features: of B images.
        shared: int[S], the same for all, or int[B, S]; unpadded. Either the class's whole prompt with one
            placeholder for each image token, as its processor writes it, or, with none, what follows the image.

    Raises:
        UserError: the class cannot share a prefix, or image tokens and placeholders do not match.
    """
    require_prefix_sharing(vlm.model)
    if features.image_ids is not None:
        shared = _behind_image(vlm, features.image_ids, shared)
    ids = _with_placeholders(shared, vlm.model.config.image_token_id, features.tokens)  # [B, P]
    is_image = ids == vlm.model.config.image_token_id
    text = vlm.embed(ids.masked_fill(is_image, 0))
    tokens = features.tokens.flatten(0, 1).to(text.dtype)
    embeddings = text.masked_scatter(is_image[..., None], tokens).to(vlm.dtype)
    return Prefix(embeddings, _positions(vlm.model, ids, is_image, features.inputs))


def forward_with_cache(
    vlm: PixelVLM, cache: Cache, embeddings: Tensor, positions: Tensor, seen: Tensor | None = None, **more: Any
) -> Tensor:
    """Read tokens behind those in a cache, which takes them in.

    Args:
        vlm: the model.
        cache: of R rows of C tokens.
        embeddings: [R, T, D].
        positions: int[R, T] or int[3, R, T].
        seen: int[R, C + T], 0 at padding, or an additive mask [R, 1, T, C + T]; all are seen by default.
        more: what the decoder's attention is to be told besides.

    Returns:
        The decoder's last states, [R, T, D].
    """
    arguments = inspect.signature(vlm.decoder.forward).parameters
    name = "cache" if "cache" in arguments else "past_key_values"  # its older name in transformers 5
    return vlm.decoder(
        inputs_embeds=embeddings, position_ids=positions, attention_mask=seen, use_cache=True, **{name: cache}, **more
    ).last_hidden_state


def embed_text(vlm: PixelVLM, tokens: Tensor) -> Tensor:
    """Return the embeddings of questions, int[...] to [..., D]; `UserError` if there is an image among them."""
    if (tokens == vlm.model.config.image_token_id).any():
        raise UserError(
            "expected questions of words alone, got one with an image's placeholder: it belongs in `shared`"
        )
    return vlm.embed(tokens)


def gather_cache_rows(cache: DynamicCache, rows: Tensor, into: Cache) -> Cache:
    """Put rows int[R] of a cache, each as often as it is named, into an empty one; the gradient flows back."""
    for index, layer in enumerate(cache.layers):
        into.update(layer.keys.index_select(0, rows), layer.values.index_select(0, rows), index)
    return into


def require_prefix_sharing(model: PreTrainedModel) -> None:
    """Raise `UserError`, with the class and the reason, where questions cannot share a prefix exactly."""
    plain = getattr(model, "get_base_model", lambda: model)()  # without peft's wrapper
    decoder = plain.get_decoder()
    reason = None
    if "token_type_ids" in inspect.signature(plain.forward).parameters:
        reason = "its image and prompt attend both ways, so that what is shared would change with the question"
    elif {"deepstack_visual_embeds", "visual_pos_masks"} & set(inspect.signature(decoder.forward).parameters):
        reason = "its decoder reads the image in deeper layers too, not as tokens alone"
    elif any(type(layer) is not DynamicLayer for layer in DynamicCache(config=decoder.config).layers):
        reason = "not every layer of its decoder attends to all that came before"
    elif getattr(plain.config, "image_token_id", None) is None or not hasattr(plain, "get_image_features"):
        reason = "its image is not read as tokens with a placeholder"
    if reason:
        raise UserError(f"{type(plain).__name__} cannot read many questions behind one image: {reason}")


def _behind_image(vlm: PixelVLM, image_ids: Tensor, shared: Tensor) -> Tensor:
    """Return `shared` with what its model writes for an image in front, if it has no image in it."""
    if (shared == vlm.model.config.image_token_id).any():
        return shared
    front = torch.cat([torch.tensor(vlm.bos_ids, dtype=torch.long, device=image_ids.device), image_ids])
    return torch.cat([front.expand(*shared.shape[:-1], -1), shared.to(front.device)], dim=-1)


def _with_placeholders(shared: Tensor, image_token: int, tokens: Tensor) -> Tensor:
    """Return int[B, P], with an image in front of what has no placeholder; the counts must match `tokens` [B, N, D]."""
    batch, count = tokens.shape[:2]
    if not (shared == image_token).any():
        front = torch.full((count,), image_token, device=shared.device)
        shared = torch.cat([front.expand(*shared.shape[:-1], -1), shared], dim=-1)
    if shared.ndim == 2 and len(shared) != batch:
        raise UserError(f"expected a shared text for each of {batch} images, got {len(shared)}")
    ids = shared.expand(batch, -1)
    places = int((ids == image_token).sum())
    if places != batch * count:
        raise UserError(f"expected {batch * count} image placeholders in {batch} shared texts, got {places}")
    return ids


def _positions(model: PreTrainedModel, ids: Tensor, place: Tensor, images: Mapping[str, Tensor]) -> Tensor:
    """Return the positions that the class's own forward would give to prefixes int[B, P]."""
    if uses_mrope(model):
        plain = getattr(model, "get_base_model", lambda: model)()
        extra = {name: value for name, value in images.items() if name != "pixel_values"}
        return plain.base_model.get_rope_index(ids, mm_token_type_ids=place.int(), **extra)[0]
    return torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
