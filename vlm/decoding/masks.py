"""Additive attention masks; eager attention in transformers silently misreads boolean ones."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def additive_mask(visible: Bool[Tensor, "..."], dtype: torch.dtype = torch.float32) -> Float[Tensor, "..."]:
    """Return 0 where visible, else half of the type's minimum, so that adding scores stays finite."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill(~visible, torch.finfo(dtype).min / 2)


def causal_mask(valid: Bool[Tensor, "R S"], dtype: torch.dtype) -> Float[Tensor, "R 1 S S"]:
    """Return the additive causal mask of rows whose tokens are `valid` or padding."""
    size = valid.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool, device=valid.device).tril()
    return additive_mask(causal & valid[:, None], dtype)[:, None]
