"""What objectives with answers in text share: labels, the loss's tokens, and supervised attention."""

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import UInt8
from torch import Tensor

from vlm.decoding.packing import forward_packed_with_attention
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM
from vlm.training.attention_supervision import (
    SUPERVISED_LAYERS,
    AttentionTargets,
    attention_supervision_loss,
    patch_edges,
    require_attention_access,
    target_patch_index,
)
from vlm.training.objective import Batch, Objective, Sampler, encode_frames

IGNORE_INDEX = -100  # label of a token without loss


@dataclass(frozen=True)
class FrameBatch(Batch):
    """Frames, and what subclasses add about them."""

    frames: UInt8[Tensor, "B history H W 3"]


AnyFrameBatch = TypeVar("AnyFrameBatch", bound=FrameBatch)


def training_sequence(question: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
    """Return the `input_ids` and `labels` of a question with its answer; labels are shifted to the next token."""
    return question + answer[:-1], [IGNORE_INDEX] * (len(question) - 1) + answer


class AnswerObjective(Objective[PixelVLM, AnyFrameBatch], Generic[AnyFrameBatch]):
    """A loss on the tokens of answers about frames; `attention_supervision` weighs the supervised attention."""

    def __init__(self, vlm: PixelVLM, sampler: Sampler[AnyFrameBatch], attention_supervision: float = 0.0):
        super().__init__(vlm, sampler)
        self.attention_supervision = attention_supervision
        self._edges: dict[torch.Size, tuple[Tensor, Tensor]] = {}  # of patches, by the shape of frames
        if attention_supervision:
            require_attention_access(vlm)

    def encode(self, batch: AnyFrameBatch) -> ImageFeatures:
        """Return the features of the frames."""
        return encode_frames(self.vlm, batch.frames)

    def answer_logits(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the float32 logits [A, V] of the A tokens that have a label, and their labels [A]."""
        has_label = labels != IGNORE_INDEX
        return self.vlm.model.get_output_embeddings()(hidden[has_label]).float(), labels[has_label]

    def supervised_states(
        self, features: ImageFeatures, shared: Tensor, input_ids: Tensor, targets: AttentionTargets
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the hidden states [B, K, L, D], the weighted attention loss and its metrics."""
        hidden, weights = forward_packed_with_attention(self.vlm, features, shared, input_ids, SUPERVISED_LAYERS)
        loss, metrics = attention_supervision_loss(self.vlm, weights, targets)
        return hidden, self.attention_supervision * loss, metrics

    def answer_targets(
        self, frames: Tensor, labels: Tensor, coordinate_tokens: Tensor, places: Tensor
    ) -> AttentionTargets:
        """Return what questions and their answers should attend to.

        Args:
            frames: of the batch.
            labels: int[B, K, L]; the first label of each question is at its end.
            coordinate_tokens: int[B, K, 2], the positions of the two coordinates in each question.
            places: float[B, K, 2], the places asked about, as fractions of the frames' height and width.
        """
        height, width = size = frames.shape[2:4]
        if size not in self._edges:
            self._edges[size] = patch_edges(self.vlm, height, width)
        has_label = labels != IGNORE_INDEX
        return AttentionTargets(
            coordinates=coordinate_tokens,
            question_ends=has_label.int().argmax(-1),
            answer_mask=has_label & (has_label.cumsum(-1) > 1),
            image_tokens=target_patch_index(self._edges[size], places, height, width),
        )
