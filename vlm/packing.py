"""Many questions behind one image: each sees the image and itself, none sees another.

    position   0 .. P-1      P  P+1  P+2      P  P+1  P+2      P ..
               image, text   question 0       question 1       ...

Every question restarts at position P, and the mask (additive, of floats: a boolean one is misread by eager attention)
cuts the questions off from each other, so that one pass gives what separate sequences give, in loss and gradient.
The positions jump, which the library reads as the border of a packed sample unless a 4D mask is passed: it always is.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vlm.model import PixelVLM


@dataclass(frozen=True)
class Packing:
    """A layout: `prefix` shared tokens, then `questions` runs of `length` tokens each."""

    prefix: int
    questions: int
    length: int

    @cached_property
    def positions(self) -> Tensor:
        """Return int[1, T]."""
        shared = torch.arange(self.prefix)
        own = self.prefix + torch.arange(self.length).repeat(self.questions)
        return torch.cat([shared, own])[None]

    @cached_property
    def mask(self) -> Tensor:
        """Return the additive mask float32[1, 1, T, T]."""
        total = self.prefix + self.questions * self.length
        owner = torch.cat([torch.full((self.prefix,), -1), torch.arange(self.questions).repeat_interleave(self.length)])
        sees = torch.ones(total, total, dtype=torch.bool).tril()
        sees &= (owner[None] == -1) | (owner[None] == owner[:, None])
        blind = torch.finfo(torch.float32).min / 2
        return torch.zeros(total, total).masked_fill(~sees, blind)[None, None]


def packed_hidden(vlm: PixelVLM, pixels: Tensor, shared: Tensor, questions: Tensor) -> Tensor:
    """Read K questions behind each of B images in one pass.

    Args:
        vlm: the model.
        pixels: of `PixelVLM.pixels`, B images.
        shared: int[S], the tokens between the image and every question.
        questions: int[B, K, L], the questions' tokens, all of one length.

    Returns:
        The decoder's last states, [B, 1 + K * L, D]: of the last shared token, then of the questions' tokens.
    """
    image = vlm.image_embeddings(pixels)  # [B, N, D]
    batch, count, length = questions.shape
    embeddings = torch.cat([image, vlm.embed(shared).expand(batch, -1, -1), vlm.embed(questions.flatten(1))], dim=1).to(
        vlm.dtype
    )  # [B, T, D]
    layout = Packing(image.shape[1] + len(shared), count, length)
    hidden = vlm.decoder(
        inputs_embeds=embeddings,
        position_ids=layout.positions.to(image.device).expand(batch, -1),
        attention_mask=layout.mask.to(image.device, embeddings.dtype).expand(batch, -1, -1, -1),
        use_cache=False,
    ).last_hidden_state
    return hidden[:, layout.prefix - 1 :]
