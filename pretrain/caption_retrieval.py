"""Caption retrieval: whether a captioner finds a frame's own caption among those of other frames.

A caption's score is its pointwise mutual information with the frame: its log-likelihood given the frame, less that
given any frame of the set, so that short and frequent captions have no advantage (Lin et al. 2024, "Revisiting the Role
of Language Priors in Vision-Language Models"). A CLIP has a text tower, and is measured by `pretrain.semantic_probe`.
"""

import copy
import math

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor, nn

from pretrain.answer_objective import IGNORE_INDEX, pad_answers
from pretrain.semantic_probe import rank_captions
from vlm.decoding.packing import forward_packed_answers
from vlm.image_features import ImageFeatures
from vlm.model import PixelVLM
from vlm.prompts import CAPTION_PREFIX
from vlm.training.objective import encode_frames

BATCH_FRAMES, BATCH_CAPTIONS = 4, 64


def with_encoder(captioner: PixelVLM, encoder: nn.Module) -> PixelVLM:
    """Return a copy of a captioner that sees through another encoder of the same shape."""
    changed = copy.deepcopy(captioner)
    changed.encoder.load_state_dict(encoder.state_dict())
    return changed


@torch.no_grad()
def measure_caption_retrieval(
    captioner: PixelVLM, frames: UInt8[np.ndarray, "N H W 3"], captions: Shaped[np.ndarray, " N"]
) -> dict[str, float]:
    """Return `top1`, `top5` and `different` of retrieving captions by frame; equal captions count as one."""
    distinct = np.array(sorted(set(captions.tolist()), key=len))  # a batch has captions of about one length
    target, parts = np.array([distinct.tolist().index(one) for one in captions.tolist()]), []
    for start in range(0, len(frames), BATCH_FRAMES):
        batch = np.repeat(frames[start : start + BATCH_FRAMES, None], captioner.history, 1)
        features = encode_frames(captioner, torch.from_numpy(batch))
        batches = (distinct[i : i + BATCH_CAPTIONS] for i in range(0, len(distinct), BATCH_CAPTIONS))
        parts.append(torch.cat([caption_log_likelihoods(captioner, features, some) for some in batches], 1))
    scores = torch.cat(parts)
    scores -= scores.logsumexp(0) - math.log(len(scores))
    return rank_captions(scores.numpy(), target)


def caption_log_likelihoods(
    captioner: PixelVLM, features: ImageFeatures, captions: Shaped[np.ndarray, " K"]
) -> Float[Tensor, "B K"]:
    """Return the log-likelihood of each caption given the features of each of B frames, in nats."""
    tokenizer, count = captioner.tokenizer, features.tokens.shape[0]
    prompt, *tokens = tokenizer([CAPTION_PREFIX, *map(str, captions)], add_special_tokens=False)["input_ids"]
    rows = [(prompt[-1:], [*caption, tokenizer.eos_token_id]) for caption in tokens]
    input_ids, labels = (one.repeat(count, 1, 1) for one in pad_answers([rows], tokenizer.eos_token_id))
    labelled = labels != IGNORE_INDEX
    states, _ = forward_packed_answers(captioner, features, torch.tensor(prompt[:-1]), input_ids, labelled)
    logits = captioner.model.get_output_embeddings()(states).float()
    log_likelihoods = logits.log_softmax(-1).gather(1, labels[labelled][:, None])[:, 0]
    return torch.zeros(labels.shape).masked_scatter(labelled, log_likelihoods).sum(-1)
