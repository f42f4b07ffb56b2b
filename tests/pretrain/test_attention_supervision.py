"""What a decoder looks at is what the library's attention is, and a gaze finds the asked places in a few steps."""

import numpy as np
import pytest
import torch

from common.errors import UserError
from pretrain.pvp_objective import ImageSampler, PixelQADataset, PvpObjective
from pretrain.pvp_prompts import PixelPromptFormat
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

NAMES = ("fetched", "looked", "told", "followed")
LAYERS = (COORDINATE_LAYER, PATCH_LAYER, ANSWER_LAYER)


def make(preset="tiny-clip", **more):
    vlm = build(preset)
    init_number_embeddings(vlm)
    if vlm.square_size:
        init_position_embeddings(vlm.encoder, 210, 160, 32, amplitude=2.0)
    draw = ImageSampler([], (210, 160), vlm.history, synthetic=1.0)
    sizes = {"steps": 4, "images": 2, "count": 4, "seed": 0} | more
    return vlm, PixelQADataset(draw, PixelPromptFormat.of(vlm), "32", **sizes)


@torch.no_grad()
@pytest.mark.parametrize("preset", ["tiny-clip", "micro"])
def test_what_is_watched_is_the_attention_of_the_library(preset):
    vlm, questions = make(preset)
    batch, shared, found = questions[0], questions.language.shared, {}
    features, (images, count, length) = vlm.encode_images(vlm.preprocess(batch["frames"])), batch["read"].shape
    vlm.model.set_attn_implementation("eager")
    hooks = [
        vlm.decoder.layers[layer].self_attn.register_forward_hook(
            lambda _m, _i, out, layer=layer: found.update({layer: out[1]})
        )
        for layer in LAYERS
    ]
    forward_packed(vlm, features, shared, batch["read"], "mask")
    for hook in hooks:
        hook.remove()
    states, looks = forward_packed_with_attention(vlm, features, shared, batch["read"], LAYERS)
    assert torch.equal(states, forward_packed(vlm, features, shared, batch["read"]))
    for layer in LAYERS:
        all_of_it = found[layer][:, :, -count * length :].unflatten(2, (count, length))  # [B, heads, K, L, P + K * L]
        prefix = all_of_it.shape[-1] - count * length
        own = all_of_it[..., prefix:].unflatten(-1, (count, length)).diagonal(dim1=2, dim2=4)  # [B, heads, L, L, K]
        assert looks[layer].shape == (images, count, length, all_of_it.shape[1], prefix + length)
        seen = looks[layer].permute(0, 3, 1, 2, 4)
        assert torch.allclose(seen[..., :prefix], all_of_it[..., :prefix], atol=1e-5)
        assert torch.allclose(seen[..., prefix:], own.permute(0, 1, 4, 2, 3), atol=1e-5)


@pytest.mark.parametrize("preset", ["tiny-clip", "micro"])
def test_the_loss_is_of_what_each_step_gives_to_what_it_shall_look_at(preset):
    vlm, _ = make(preset)
    heads, free = vlm.decoder.config.num_attention_heads, num_positional_heads(vlm.decoder.layers[1].self_attn)
    first, length = 30, 6  # of 30 tokens of a prefix, and a question of 4 whose answer has 2 words more
    looks = {layer: torch.full((1, 1, length, heads, first + length), 0.001) for layer in LAYERS}
    row, column = (free + index * max(1, (heads - free) // 4) for index in range(2))
    looks[COORDINATE_LAYER][0, 0, 3, row : row + max(1, (heads - free) // 4), first + 0] = 0.5
    looks[COORDINATE_LAYER][0, 0, 3, column : column + max(1, (heads - free) // 4), first + 2] = 0.7
    looks[PATCH_LAYER][0, 0, 3, free : max(free + 1, heads - 1), 17] = 0.25
    looks[PATCH_LAYER][0, 0, 4:, free : free + max(1, (heads - free) // 2), first + 3] = 0.8
    looks[ANSWER_LAYER][0, 0, 4:, free : max(free + 1, heads - 1), 17] = 0.4
    sights = AttentionTargets(
        coordinates=torch.tensor([[[0, 2]]]),
        ends=torch.tensor([[3]]),
        later=torch.tensor([[[False] * 4 + [True] * 2]]),
        tokens=torch.tensor([[17]]),
    )
    out = attention_supervision_loss(vlm, looks, sights)
    assert {name: pytest.approx(float(out[name]), abs=1e-4) for name in NAMES} == {
        "fetched": 0.6, "looked": 0.25, "told": 0.8, "followed": 0.4,
    }  # fmt: skip
    expected = -(np.log(0.5) + np.log(0.7)) / 2 - np.log(0.25) - np.log(0.8) - np.log(0.4)
    assert float(out["loss"]) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("preset", ["tiny-clip", "micro"])
def test_the_asked_token_is_the_one_whose_patch_covers_the_place(preset):
    vlm, _ = make(preset)
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


def test_training_with_a_gaze_finds_the_asked_places_within_a_few_steps():
    vlm, questions = make(steps=90, images=8, count=16)  # the last step cannot begin before the others
    lesson = PvpObjective(vlm, False, questions.language, soft=6.0, gaze=1.0)
    optimizer = torch.optim.AdamW(vlm.model.parameters(), lr=3e-3)
    given = []
    for step in range(len(questions)):
        out = lesson(**questions[step])
        out["loss"].backward()
        torch.nn.utils.clip_grad_norm_(vlm.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        given.append([float(out[name]) for name in NAMES])
    first, last = np.mean(given[:3], 0), np.mean(given[-5:], 0)
    assert first.max() < 0.3
    assert first[[1, 3]].max() < 0.1  # of an image token, by the question's end and by the answer
    assert last.min() > 0.6


def test_coordinates_are_found_in_both_orders_and_where_both_are_one_number():
    vlm, questions = make()
    lesson = PvpObjective(vlm, False, questions.language, gaze=1.0)
    places = np.array([[5, 5], [31, 0]])
    read, said = questions.language.lesson(places, np.full((2, 3), 5, np.uint8))
    shares = torch.tensor(places / 32 + 1 / 64)[None]
    frames = torch.zeros(1, 1, 210, 160, 3, dtype=torch.uint8)
    sights = lesson.sights(torch.tensor([read]), torch.tensor([said]), shares, frames)
    tokens = [[read[k][index] for index in sights.coordinates[0, k].tolist()] for k in range(2)]
    numbers = questions.language.numbers.tolist()
    assert tokens == [[numbers[5], numbers[5]], [numbers[31], numbers[0]]]
    assert sights.coordinates[0, 0, 0] != sights.coordinates[0, 0, 1]
    assert sights.ends.tolist() == [[len(questions.language.questions(places)[0]) - 1] * 2]
    assert sights.later[0, 0].nonzero().flatten().tolist() == list(range(int(sights.ends[0, 0]) + 1, len(read[0])))


def test_a_gaze_is_refused_where_no_layer_can_have_it():
    vlm, questions = make("tiny")
    with pytest.raises(UserError, match="at least 3 layers, got 1"):
        PvpObjective(vlm, False, questions.language, gaze=1.0)
