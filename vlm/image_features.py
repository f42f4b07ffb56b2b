"""The encoder's view of images: computed once, then passed to every function that reads it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from common.errors import UserError


@dataclass(frozen=True)
class ImageFeatures:
    """Encoder and connector output for B images of one size."""

    tokens: Float[Tensor, "B N D"]  # the connector's output, which the decoder reads at an image's placeholders
    inputs: Mapping[str, Tensor]  # of the class, by name; M-RoPE positions and dense patch embeddings need them
    hidden_states: tuple[Tensor, ...] = ()  # of the encoder, if they were requested
    # what the decoder adds at the placeholders after each of its first layers (DeepStack, Meng et al. 2024)
    deep_tokens: tuple[Float[Tensor, "B N D"], ...] = ()
    image_ids: Int[Tensor, " P"] | None = None  # one image in a prompt, markers included; None: N placeholders

    def with_markers(self, embed: Callable[[Tensor], Tensor], image_token_id: int) -> Float[Tensor, "B P D"]:
        """Return the embeddings of each image in a prompt, those of the markers around its tokens included."""
        if self.image_ids is None:
            return self.tokens
        is_image = self.image_ids == image_token_id
        text = embed(self.image_ids.masked_fill(is_image, 0)).expand(len(self.tokens), -1, -1)
        return text.masked_scatter(is_image[:, None], self.tokens.flatten(0, 1).to(text.dtype))


def stack_image_tokens(outputs: Sequence[Float[Tensor, "... D"]] | Tensor, batch: int) -> Float[Tensor, "B N D"]:
    """Return the tokens of B images, given those of each image, or of each tile in the images' order."""
    rows = [output.flatten(0, -2) for output in outputs]
    total = sum(len(row) for row in rows)
    if total % batch or (len(rows) == batch and any(len(row) != total // batch for row in rows)):
        raise UserError(f"expected the same number of image tokens for each of {batch} images, got {total} in all")
    return torch.stack(rows) if len(rows) == batch else torch.cat(rows).unflatten(0, (batch, -1))
