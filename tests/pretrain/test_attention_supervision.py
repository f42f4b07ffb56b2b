"""The attention that is supervised is the library's, and supervision finds its targets in a few steps."""

import numpy as np
import pytest
import torch

from common.errors import UserError
from pretrain.answer_objective import pad_answers
from pretrain.pvp_config import PvpData
from pretrain.pvp_objective import ImageSampler, PvpBatch, PvpObjective, PvpSampler
from pretrain.pvp_questions import PixelPromptFormat
from vlm.decoding.packing import forward_packed, forward_packed_with_attention
from vlm.positional_heads import num_positional_heads
from vlm.presets import build
from vlm.sinusoidal_init import init_number_embeddings, init_position_embeddings
from vlm.training.attention_supervision import (
    ANSWER_LAYER,
    COORDINATE_LAYER,
    PATCH_LAYER,
    AttentionTargets,
    attention_supervision_loss,
    patch_edges,
    target_patch_index,
)

NAMES = ("attn/coordinates", "attn/question_to_patch", "attn/answer_to_question", "attn/answer_to_patch")
LAYERS = (COORDINATE_LAYER, PATCH_LAYER, ANSWER_LAYER)


def make(preset="tiny-clip", steps=4, images=2, questions=4):
    vlm = build(preset)
    init_number_embeddings(vlm)
    if vlm.image_config.square_size:
        init_position_embeddings(vlm.encoder, (210 / 32, 160 / 32), amplitude=2.0)
    prompts = PixelPromptFormat.from_model(vlm)
    data = PvpData(size=(210, 160), synthetic=1.0, grid="32", images=images, questions=questions)
    return vlm, PvpSampler(ImageSampler([], data, vlm.history), prompts, data, steps), prompts


def batch_of(sampler, step):
    return sampler(step, np.random.default_rng([0, step]))


@torch.no_grad()
@pytest.mark.parametrize("preset", ["tiny-clip", "micro"])
def test_the_attention_that_is_returned_is_that_of_the_library(preset):
    vlm, sampler, prompts = make(preset)
    batch, found = batch_of(sampler, 0), {}
    features, (images, count, length) = vlm.encode_images(vlm.preprocess(batch.frames)), batch.input_ids.shape
    vlm.model.set_attn_implementation("eager")
    hooks = [
        vlm.decoder.layers[layer].self_attn.register_forward_hook(
            lambda _m, _i, out, layer=layer: found.update({layer: out[1]})
        )
        for layer in LAYERS
    ]
    forward_packed(vlm, features, prompts.prefix_ids, batch.input_ids, "mask")
    for hook in hooks:
        hook.remove()
    states, attention = forward_packed_with_attention(vlm, features, prompts.prefix_ids, batch.input_ids, LAYERS)
    assert torch.equal(states, forward_packed(vlm, features, prompts.prefix_ids, batch.input_ids))
    for layer in LAYERS:
        all_of_it = found[layer][:, :, -count * length :].unflatten(2, (count, length))  # [B, heads, K, L, P + K * L]
        prefix = all_of_it.shape[-1] - count * length
        own = all_of_it[..., prefix:].unflatten(-1, (count, length)).diagonal(dim1=2, dim2=4)  # [B, heads, L, L, K]
        assert attention[layer].shape == (images, count, length, all_of_it.shape[1], prefix + length)
        seen = attention[layer].permute(0, 3, 1, 2, 4)
        assert torch.allclose(seen[..., :prefix], all_of_it[..., :prefix], atol=1e-5)
        assert torch.allclose(seen[..., prefix:], own.permute(0, 1, 4, 2, 3), atol=1e-5)


@pytest.mark.parametrize("preset", ["tiny-clip", "micro"])
def test_the_loss_is_of_the_attention_of_each_step_on_its_targets(preset):
    vlm, *_ = make(preset)
    heads, free = vlm.decoder.config.num_attention_heads, num_positional_heads(vlm.decoder.layers[1].self_attn)
    first, length = 30, 6  # of 30 tokens of a prefix, and a question of 4 whose answer has 2 words more
    attention = {layer: torch.full((1, 1, length, heads, first + length), 0.001) for layer in LAYERS}
    row, column = (free + index * max(1, (heads - free) // 4) for index in range(2))
    attention[COORDINATE_LAYER][0, 0, 3, row : row + max(1, (heads - free) // 4), first + 0] = 0.5
    attention[COORDINATE_LAYER][0, 0, 3, column : column + max(1, (heads - free) // 4), first + 2] = 0.7
    attention[PATCH_LAYER][0, 0, 3, free : max(free + 1, heads - 1), 17] = 0.25
    attention[PATCH_LAYER][0, 0, 4:, free : free + max(1, (heads - free) // 2), first + 3] = 0.8
    attention[ANSWER_LAYER][0, 0, 4:, free : max(free + 1, heads - 1), 17] = 0.4
    targets = AttentionTargets(
        coordinates=torch.tensor([[[0, 2]]]),
        question_ends=torch.tensor([[3]]),
        answer_mask=torch.tensor([[[False] * 4 + [True] * 2]]),
        image_tokens=torch.tensor([[17]]),
    )
    loss, metrics = attention_supervision_loss(vlm, attention, targets)
    assert metrics == {name: pytest.approx(w, abs=1e-4) for name, w in zip(NAMES, (0.6, 0.25, 0.8, 0.4), strict=True)}
    expected = -(np.log(0.5) + np.log(0.7)) / 2 - np.log(0.25) - np.log(0.8) - np.log(0.4)
    assert float(loss) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("preset", ["tiny-clip", "micro"])
def test_the_target_patch_covers_the_coordinate(preset):
    vlm, *_ = make(preset)
    down, along = grid = patch_edges(vlm, 210, 160)
    found = target_patch_index(
        grid, torch.tensor([[0.0, 0.0], [0.999, 0.999], [100.5 / 210, 3.5 / 160]]), 210, 160
    ).tolist()
    columns = len(along) - 1
    covering = [
        int(((down <= row).sum() - 1) * columns + (along <= column).sum() - 1)
        for row, column in [(0, 0), (209.79, 159.84), (100.5, 3.5)]
    ]
    assert found == covering


@pytest.mark.slow
def test_supervised_attention_finds_its_targets_within_a_few_steps():
    vlm, sampler, prompts = make(steps=90, images=8, questions=16)  # the last step cannot begin before the others
    objective = PvpObjective(vlm, sampler, prompts, label_std=6.0, attention_supervision=1.0)
    optimizer = torch.optim.AdamW(vlm.model.parameters(), lr=3e-3)
    weights = []
    for step in range(90):
        batch = batch_of(sampler, step)
        losses = objective.loss(objective.encode(batch), batch)
        losses.loss.backward()
        torch.nn.utils.clip_grad_norm_(vlm.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        weights.append([float(losses.metrics[name]) for name in NAMES])
    first, last = np.mean(weights[:3], 0), np.mean(weights[-5:], 0)
    assert first.max() < 0.3
    assert first[[1, 3]].max() < 0.1  # of an image token, by the question's end and by the answer
    assert last.min() > 0.6


def test_coordinates_are_found_in_both_orders_and_where_both_are_one_number():
    vlm, sampler, prompts = make()
    objective = PvpObjective(vlm, sampler, prompts, attention_supervision=1.0)
    places = np.array([[5, 5], [31, 0]])
    input_ids, labels = pad_answers([prompts.questions_with_answers(places, np.full((2, 3), 5, np.uint8))], 0)
    fractions = torch.tensor(places / 32 + 1 / 64)[None]
    frames = torch.zeros(1, 1, 210, 160, 3, dtype=torch.uint8)
    targets = objective.attention_targets(PvpBatch(frames, input_ids, labels, fractions))
    tokens = [[input_ids[0, k, index] for index in targets.coordinates[0, k].tolist()] for k in range(2)]
    numbers = prompts.number_token_ids.tolist()
    assert tokens == [[numbers[5], numbers[5]], [numbers[31], numbers[0]]]
    assert targets.coordinates[0, 0, 0] != targets.coordinates[0, 0, 1]
    end = len(prompts.question_ids(places)[0]) - 1
    assert targets.question_ends.tolist() == [[end] * 2]
    assert targets.answer_mask[0, 0].nonzero().flatten().tolist() == list(range(end + 1, input_ids.shape[2]))


def test_each_later_number_of_an_answer_has_heads_of_its_own():
    vlm, sampler, prompts = make("tiny-clip")
    objective = PvpObjective(vlm, sampler, prompts, attention_supervision=1.0, heads_by_number=True)
    places = np.array([[5, 5], [31, 0]])
    input_ids, labels = pad_answers([prompts.questions_with_answers(places, np.full((2, 3), 7, np.uint8))], 0)
    frames = torch.zeros(1, 1, 210, 160, 3, dtype=torch.uint8)
    targets = objective.attention_targets(PvpBatch(frames, input_ids, labels, torch.rand(1, 2, 2)))
    end = len(prompts.question_ids(places)[0]) - 1
    commas = [end + 2, end + 4]  # after red and after green: the tokens that are followed by green and by blue
    assert targets.numbers[0, 0].tolist() == [
        {commas[0]: 1, commas[1]: 2}.get(position, 0) for position in range(input_ids.shape[2])
    ]
    assert targets.answer_mask.equal(targets.numbers > 0)
    heads, first = vlm.decoder.config.num_attention_heads, 40  # after all image tokens
    attention = {layer: torch.ones(1, 2, input_ids.shape[2], heads, first + input_ids.shape[2]) for layer in LAYERS}
    patch, question_end = targets.image_tokens[0, :, None, None], first + end
    half = heads // 2
    for number, position in enumerate(commas):
        own, other = (slice(0, half), slice(half, None)) if number == 0 else (slice(half, None), slice(0, half))
        attention[ANSWER_LAYER][0, :, position] = 0.001
        for k in range(2):
            attention[ANSWER_LAYER][0, k, position, own, patch[k, 0, 0]] = 1.0
            attention[ANSWER_LAYER][0, k, position, other, question_end] = 1.0
    _, metrics = attention_supervision_loss(vlm, attention, targets)
    assert float(metrics["attn/answer_to_patch"]) == 1
    attention[ANSWER_LAYER] = attention[ANSWER_LAYER].flip(3)  # the heads change places
    _, swapped = attention_supervision_loss(vlm, attention, targets)
    assert float(swapped["attn/answer_to_patch"]) < 0.01


def test_supervision_is_refused_where_a_decoder_has_too_few_layers():
    vlm, sampler, prompts = make("tiny")
    with pytest.raises(UserError, match="3 layers or more, got 1"):
        PvpObjective(vlm, sampler, prompts, attention_supervision=1.0)
