"""What objectives with answers in text share: labels, the loss's tokens, and supervised attention."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from vlm.decoding.packing import forward_packed_answers, pad_token_lists
from vlm.decoding.prefix import require_prefix_sharing
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM
from vlm.training.attention_supervision import (
    AttentionTargets,
    patch_edges,
    require_attention_access,
    supervised_weights_loss,
    target_patch_index,
)
from vlm.training.objective import Batch, Objective, Sampler, images_of

IGNORE_INDEX = -100  # label of a token without loss


@dataclass(frozen=True)
class AnswerBatch(Batch):
    """Frames with K questions each and their answers."""

    frames: UInt8[Tensor, "B history H W 3"]
    input_ids: Int[Tensor, "B *K L"]  # questions and answers
    labels: Int[Tensor, "B *K L"]  # the next token of each, `IGNORE_INDEX` within the question


AnyAnswerBatch = TypeVar("AnyAnswerBatch", bound=AnswerBatch)


def pad_answers(rows: Sequence[Sequence[tuple[list[int], list[int]]]], pad: int) -> tuple[Tensor, Tensor]:
    """Return `input_ids` and `labels` int[B, K, L] of the tokens of K questions and their answers for B frames."""
    input_ids = [[question + answer[:-1] for question, answer in row] for row in rows]
    labels = [[[IGNORE_INDEX] * (len(question) - 1) + answer for question, answer in row] for row in rows]
    return pad_token_lists(input_ids, pad)[0], pad_token_lists(labels, IGNORE_INDEX)[0]


class AnswerObjective(Objective[PixelVLM, AnyAnswerBatch], Generic[AnyAnswerBatch]):
    """A loss on the tokens of answers about frames; `attention_supervision` weighs the supervised attention.

    `UserError` for a model whose questions about an image cannot share a prefix.

    reads_cells: whether `encode` returns the features of `PixelVLM.encode_cells`.
    """

    reads_cells = False

    def __init__(self, vlm: PixelVLM, sampler: Sampler[AnyAnswerBatch], attention_supervision: float = 0.0):
        require_prefix_sharing(vlm.model)
        super().__init__(vlm, sampler)
        self.attention_supervision = attention_supervision
        self._edges: dict[torch.Size, tuple[Tensor, Tensor]] = {}  # of patches, by the size of frames
        if attention_supervision:
            require_attention_access(vlm)

    def encode(self, batch: AnyAnswerBatch) -> ImageFeatures:
        """Return the features of the frames."""
        return self.vlm.encode_images(images_of(self.vlm, batch))

    def answer_logits(self, states: Float[Tensor, "A D"]) -> Float[Tensor, "A V"]:
        """Return the float32 logits of the hidden states of tokens that have a label."""
        return self.vlm.model.get_output_embeddings()(states).float()

    def answer_states(
        self,
        features: ImageFeatures,
        shared: Tensor,
        input_ids: Int[Tensor, "B K L"],
        labels: Int[Tensor, "B K L"],
        targets: AttentionTargets | None = None,
    ) -> tuple[Float[Tensor, "A D"], Tensor | float, dict[str, Tensor]]:
        """Return the hidden states of the tokens with a label, the weighted attention loss and its metrics."""
        prefix_length = features.tokens.shape[1] + len(shared)
        reads = targets.reads(prefix_length) if targets else None
        states, weights = forward_packed_answers(self.vlm, features, shared, input_ids, labels != IGNORE_INDEX, reads)
        if targets is None:
            return states, 0.0, {}
        loss, metrics = supervised_weights_loss(self.vlm, weights, targets)
        return states, self.attention_supervision * loss, metrics

    def answer_targets(
        self,
        frames: Tensor,
        labels: Int[Tensor, "B K L"],
        coordinate_tokens: Int[Tensor, "B K 2"],
        places: Float[Tensor, "B K 2"],
    ) -> AttentionTargets:
        """Return what questions and their answers should attend to.

        `coordinate_tokens` are the positions of the coordinates in each question, `places` are fractions of frames.
        """
        height, width = size = frames.shape[2:4]
        if size not in self._edges:
            self._edges[size] = patch_edges(self.vlm, height, width, self.reads_cells)
        has_label = labels != IGNORE_INDEX
        return AttentionTargets(
            coordinates=coordinate_tokens,
            question_ends=has_label.int().argmax(-1),
            answer_mask=has_label & (has_label.cumsum(-1) > 1),
            image_tokens=target_patch_index(self._edges[size], places, height, width),
        )
