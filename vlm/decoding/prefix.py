"""The prefix that many prompts about an image share: the image and the text around it.

A prefix can be shared if the decoder is causal: then none of its states depends on what follows.
`require_prefix_sharing` refuses the classes for which this fails.
"""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from common.errors import UserError
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM, adds_deep_tokens, base_model, uses_mrope

SharedIds = Int[Tensor, " S"] | Int[Tensor, "_ S"]
Offsets = Int[Tensor, " T"] | Int[Tensor, "_ T"]
DEEP_MASK, DEEP_TOKENS = "visual_pos_masks", "deepstack_visual_embeds"  # arguments of Qwen3-VL's decoder
DEEP = re.compile("deepstack|visual|vision|image")  # in names of arguments of decoders that read more than tokens
PositionIds = Int[Tensor, "_ _"] | Int[Tensor, "3 _ _"]


@dataclass(frozen=True)
class Prefix:
    """B prefixes of P tokens.

    With M-RoPE (Wang et al. 2024, "Qwen2-VL") there are three position ids a token: time, row and column. An image then
    takes fewer positions than tokens.
    """

    embeddings: Float[Tensor, "B P D"]
    position_ids: PositionIds
    is_image: Bool[Tensor, "B P"]  # which tokens are the image's
    deep_tokens: tuple[Float[Tensor, "B N D"], ...] = ()  # of `ImageFeatures`

    @property
    def length(self) -> int:
        """P."""
        return self.embeddings.shape[1]

    def position_ids_after(self, offsets: Offsets, rows: Int[Tensor, " R"] | None = None) -> PositionIds:
        """Return the position ids of text tokens after a prefix; they start one above the prefix's largest.

        `rows` is the prefix of each row; by default there is one row for each prefix.
        """
        largest = self.position_ids.amax(-1) if self.position_ids.ndim == 2 else self.position_ids.amax((0, -1))
        position_ids = (largest if rows is None else largest[rows])[:, None] + 1 + offsets  # [R, T]
        return position_ids.expand(*self.position_ids.shape[:-2], *position_ids.shape)


def encode_prefix(vlm: PixelVLM, features: ImageFeatures, shared_ids: SharedIds) -> Prefix:
    """Return the prefixes of B images.

    `shared_ids` is the text shared by all prompts about an image, the same for all images or one for each; unpadded.
    It holds one placeholder for each image token, as the class's processor writes a prompt, or none: then it follows
    the image.

    Raises:
        UserError: the class cannot share a prefix, or image tokens and placeholders do not match.
    """
    require_prefix_sharing(vlm.model)
    ids = _ids_with_image(vlm, features, shared_ids)  # [B, P]
    is_image = ids == vlm.model.config.image_token_id
    text = vlm.embed(ids.masked_fill(is_image, 0))
    tokens = features.tokens.flatten(0, 1).to(text.dtype)
    embeddings = text.masked_scatter(is_image[..., None], tokens)
    return Prefix(embeddings, prompt_position_ids(vlm, features, ids), is_image, features.deep_tokens)


def deep_inputs(
    deep_tokens: Sequence[Float[Tensor, "B N D"]], is_image: Bool[Tensor, "_ P"], length: int
) -> dict[str, Any]:
    """Return what a decoder that reads images in its first layers too takes with `length` embeddings, else nothing.

    The first P of them hold the image where `is_image`.
    """
    if not deep_tokens:
        return {}
    mask = functional.pad(is_image.expand(len(deep_tokens[0]), -1), (0, length - is_image.shape[1]))
    return {DEEP_MASK: mask, DEEP_TOKENS: [tokens.flatten(0, 1) for tokens in deep_tokens]}


def prompt_position_ids(vlm: PixelVLM, features: ImageFeatures, ids: Int[Tensor, "B P"]) -> PositionIds:
    """Return the position ids of the tokens of a prompt about each image."""
    if not uses_mrope(vlm.model):
        return torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
    is_image = (ids == vlm.model.config.image_token_id).int()
    grids = {name: value for name, value in features.inputs.items() if name.endswith("_grid_thw")}
    return base_model(vlm.model).base_model.get_rope_index(ids, mm_token_type_ids=is_image, **grids)[0]


def forward_with_cache(
    vlm: PixelVLM,
    cache: Cache,
    embeddings: Float[Tensor, "R T D"],
    position_ids: PositionIds,
    attention_mask: Shaped[Tensor, "R all"] | Float[Tensor, "_ 1 T all"] | None = None,
    **kwargs: Any,
) -> Float[Tensor, "R T D"]:
    """Return the decoder's last hidden states of tokens after those in a cache, and add their keys and values to it.

    The mask is over cached and new tokens, 0 at padding, or additive; by default all are attended to. `kwargs` reach
    the decoder's attention function.
    """
    arguments = inspect.signature(vlm.decoder.forward).parameters
    kwargs["cache" if "cache" in arguments else "past_key_values"] = cache  # the latter is the older name
    return vlm.decoder(
        inputs_embeds=embeddings, position_ids=position_ids, attention_mask=attention_mask, use_cache=True, **kwargs
    ).last_hidden_state


def forbids_cache(model: PreTrainedModel) -> bool:
    """Return whether a model in training keeps no keys and values of a layer for later passes.

    Activation checkpointing computes them anew in the backward pass; weights that processes share (FSDP) are whole only
    where a layer's own output is differentiated.
    """
    return model.training and any(
        getattr(module, "gradient_checkpointing", False) or isinstance(module, FSDPModule) for module in model.modules()
    )


def additive_mask(visible: Bool[Tensor, "..."], dtype: torch.dtype = torch.float32) -> Float[Tensor, "..."]:
    """Return 0 where visible, else half of the type's minimum, so that adding scores stays finite.

    Eager attention in transformers silently misreads boolean masks.
    """
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min / 2)


def causal_mask(valid: Bool[Tensor, "R S"], dtype: torch.dtype) -> Float[Tensor, "R 1 S S"]:
    """Return the additive causal mask of rows whose tokens are `valid` or padding."""
    size = valid.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool, device=valid.device).tril()
    return additive_mask(causal & valid[:, None], dtype)[:, None]


def embed_text(vlm: PixelVLM, ids: Int[Tensor, "..."]) -> Float[Tensor, "... D"]:
    """Return the embeddings of text tokens; `UserError` if there is an image placeholder among them."""
    if (ids == vlm.model.config.image_token_id).any():
        raise UserError("expected suffixes of text only, got an image placeholder: images belong in the shared prefix")
    return vlm.embed(ids)


def require_prefix_sharing(model: PreTrainedModel) -> None:
    """Raise `UserError`, with the class and the reason, if sharing a prefix would change the model's output."""
    if reason := reason_against_sharing(model):
        raise UserError(f"{type(base_model(model)).__name__} cannot share a prefix among prompts: {reason}")


def reason_against_sharing(model: PreTrainedModel) -> str | None:
    """Return why sharing a prefix would change the model's output, None where it does not."""
    base = base_model(model)
    decoder = base.get_decoder()
    if "token_type_ids" in inspect.signature(base.forward).parameters or _builds_masks(base):
        return "its image and prompt attend in both directions, so that a prefix depends on what follows"
    if not adds_deep_tokens(base) and any(DEEP.search(name) for name in inspect.signature(decoder.forward).parameters):
        return "its decoder reads the image in deeper layers too, not as tokens only"
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=decoder.config).layers):
        return "not every layer of its decoder attends to all earlier tokens"
    if getattr(base.config, "image_token_id", None) is None or not hasattr(base, "get_image_features"):
        return "its image is not read as tokens with a placeholder"
    return None


def _builds_masks(model: PreTrainedModel) -> bool:
    """Return whether a class builds attention masks of its own instead of causal ones."""
    usual = getattr(GenerationMixin, "create_masks_for_generate", None)
    return getattr(model, "create_masks_for_generate", usual) is not usual


def _ids_with_image(vlm: PixelVLM, features: ImageFeatures, shared_ids: Tensor) -> Int[Tensor, "B P"]:
    """Return the ids of each prefix, after the image's if they have none; placeholders must match its tokens."""
    image_token, (batch, count) = vlm.model.config.image_token_id, features.tokens.shape[:2]
    if not (shared_ids == image_token).any():
        if features.image_ids is None:
            image = torch.full((count,), image_token, device=shared_ids.device)
        else:
            image = torch.cat([features.image_ids.new_tensor(vlm.bos_ids), features.image_ids])
        shared_ids = torch.cat([image.expand(*shared_ids.shape[:-1], -1), shared_ids.to(image.device)], dim=-1)
    if shared_ids.ndim == 2 and len(shared_ids) != batch:
        raise UserError(f"expected a shared text for each of {batch} images, got {len(shared_ids)}")
    ids = shared_ids.expand(batch, -1)
    placeholders = int((ids == image_token).sum())
    if placeholders != batch * count:
        raise UserError(f"expected {batch * count} image placeholders in {batch} shared texts, got {placeholders}")
    return ids
