"""A fitted gaze looks at the token that is asked about, whatever is on the image."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pretrain.gaze import FitGaze, examples
from pretrain.pixel_values import ImageDraw, PixelValues, Questions
from pretrain.questions import PixelLanguage
from vlm.codes import start_numbers, start_places
from vlm.errors import VlmError
from vlm.gaze import LOOKING, asked_tokens, fit_gaze, place_code, ridge, token_grid, token_places
from vlm.packing import read_and_watch, read_questions
from vlm.place_heads import place_heads
from vlm.presets import build


def make(preset="tiny-clip"):
    vlm = build(preset)
    start_numbers(vlm)
    if vlm.canvas:
        start_places(vlm.encoder, 210, 160, 32, amplitude=2.0)
    draw = ImageDraw([], (210, 160), vlm.history, synthetic=1.0)
    return vlm, Questions(draw, PixelLanguage.of(vlm), "32", steps=4, images=2, count=4, seed=0)


@torch.no_grad()
def attention(vlm, asked, layer):
    """[B, heads, K, L, T] of the questions' tokens."""
    found = []
    vlm.model.set_attn_implementation("eager")
    hook = vlm.decoder.layers[layer].self_attn.register_forward_hook(lambda _m, _i, out: found.append(out[1]))
    read_questions(vlm, vlm.pixels(asked.frames), asked.shared, asked.read, "mask")
    hook.remove()
    _, count, length = asked.read.shape
    return found[0][:, :, -count * length :].unflatten(2, (count, length))


def mass_at_the_asked_token(vlm, asked):
    """[heads], of the questions' ends."""
    own = token_places(vlm, 210, 160)
    right = (asked.places[:, :, None] - own.to(asked.places)).square().sum(-1).argmin(-1)  # [B, K]
    looks = attention(vlm, asked, 1)[:, :, :, asked.question - 1]  # [B, heads, K, T]
    return looks.gather(-1, right[:, None, :, None].expand(-1, looks.shape[1], -1, 1)).mean((0, 2, 3))


def test_the_questions_end_looks_at_the_token_of_the_asked_place_and_the_answer_at_the_questions_end():
    vlm, questions = make()
    asked = examples(vlm, questions)
    before = mass_at_the_asked_token(vlm, asked)[0]
    report = fit_gaze(vlm, asked)
    assert all(0 < value <= 1 for value in report.values())
    assert report["asked places"] > 0.5
    assert mass_at_the_asked_token(vlm, asked)[0] > max(3 * before, 0.1)
    shared = vlm.image_embeddings(vlm.pixels(asked.frames[:1])).shape[1] + len(asked.shared)
    later = attention(vlm, asked, 2)[:, 0, :, asked.question + 1]  # of the comma behind red
    length = asked.read.shape[2]
    ends = torch.stack(
        [later[:, k, shared + k * length + asked.question - 1] for k in range(asked.read.shape[1])], dim=1
    )
    assert ends.mean().item() > 0.2


def test_a_gaze_is_fitted_as_well_where_every_rotary_pair_turns_fast():
    vlm, questions = make("micro")  # its base is 100: unless turned back, keys meet their queries at any angle
    asked = examples(vlm, questions)
    asked = replace(asked, frames=asked.frames[:12], read=asked.read[:12], places=asked.places[:12])
    fit_gaze(vlm, asked)
    fitted = mass_at_the_asked_token(vlm, asked)[place_heads(vlm.decoder.layers[1].self_attn) : -1]
    assert fitted.min() > 4 / len(token_places(vlm, 210, 160))


@torch.no_grad()
@pytest.mark.parametrize("preset", ["tiny-clip", "micro"])
def test_what_is_watched_is_the_attention_of_the_library(preset):
    vlm, questions = make(preset)
    asked = examples(vlm, questions)
    asked = replace(asked, frames=asked.frames[:2], read=asked.read[:2, :5], places=asked.places[:2, :5])
    expected = attention(vlm, asked, LOOKING)  # [B, heads, K, L, T]
    states, looks = read_and_watch(vlm, vlm.pixels(asked.frames), asked.shared, asked.read, LOOKING)
    assert looks.shape == (
        2,
        5,
        asked.read.shape[2],
        expected.shape[1],
        len(token_places(vlm, 210, 160)) + len(asked.shared),
    )
    assert torch.allclose(looks.permute(0, 3, 1, 2, 4), expected[..., : looks.shape[-1]], atol=1e-5)
    assert torch.equal(states, read_questions(vlm, vlm.pixels(asked.frames), asked.shared, asked.read))


@pytest.mark.parametrize("preset", ["tiny-clip", "micro"])
def test_the_asked_token_is_the_one_whose_patch_covers_the_place(preset):
    vlm, _ = make(preset)
    down, along = grid = token_grid(vlm, 210, 160)
    found = asked_tokens(grid, torch.tensor([[0.0, 0.0], [0.999, 0.999], [100.5 / 210, 3.5 / 160]]), 210, 160).tolist()
    columns = len(along) - 1
    covering = [
        int(((down <= row).sum() - 1) * columns + (along <= column).sum() - 1)
        for row, column in [(0, 0), (209.79, 159.84), (100.5, 3.5)]
    ]
    assert found == covering


def test_training_with_a_gaze_finds_the_asked_places_within_a_few_steps():
    vlm, questions = make()
    questions = Questions(questions.draw, questions.language, "32", steps=80, images=8, count=16, seed=0)
    lesson = PixelValues(vlm, False, questions.language, soft=6.0, gaze=1.0)
    optimizer = torch.optim.AdamW(vlm.model.parameters(), lr=3e-3)
    looked = []
    for step in range(len(questions)):
        out = lesson(**questions[step])
        out["loss"].backward()
        torch.nn.utils.clip_grad_norm_(vlm.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        looked.append(float(out["looked"]))
    assert np.mean(looked[:10]) < 0.1
    assert np.mean(looked[-10:]) > 0.5


def test_a_gaze_is_refused_where_no_layer_can_have_it():
    vlm, questions = make("tiny")
    with pytest.raises(VlmError, match="at least 2 layers, got 1"):
        PixelValues(vlm, False, questions.language, gaze=1.0)


def test_ridge_finds_a_linear_map_and_owns_up_where_there_is_none():
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(500, 6))).float()
    mapping = torch.tensor([[1.0, -2.0, 0, 0, 0.5, 0]])
    found, explained = ridge(x, x @ mapping.T)
    assert torch.allclose(found, mapping, atol=0.05)
    assert explained > 0.99
    assert ridge(x, torch.from_numpy(rng.normal(size=(500, 1))).float())[1] < 0.1


def test_codes_of_places_are_alike_where_places_are_near():
    here, near, far = place_code(torch.tensor([[0.5, 0.5], [0.52, 0.5], [0.9, 0.1]]), 8)
    assert here @ here == pytest.approx(16)
    assert here @ near > 14
    assert here @ far < 10


def test_heads_that_look_at_places_are_left_alone_and_others_fitted():
    vlm, questions = make("micro")
    before = [layer.self_attn.q_proj.weight.clone() for layer in vlm.decoder.layers]
    fit_gaze(vlm, examples(vlm, questions))
    for layer, was in zip(vlm.decoder.layers, before, strict=True):
        half = place_heads(layer.self_attn) * layer.self_attn.head_dim
        now = layer.self_attn.q_proj.weight
        assert half == len(was) // 2
        assert torch.equal(now[:half], was[:half])
        assert not torch.equal(now[half:], was[half:])


def test_tokens_beyond_the_image_have_shares_above_one():
    places = token_places(build("tiny-clip"), 210, 160)  # a canvas of 216 in patches of 36
    assert places.shape == (36, 2)
    assert places[0].tolist() == pytest.approx([18 / 210, 18 / 160])
    assert places[5].tolist() == pytest.approx([18 / 210, 198 / 160])


def test_models_that_cannot_be_fitted_are_refused():
    vlm, questions = make("tiny")
    with pytest.raises(VlmError, match=r"at least 3 layers|square canvas"):
        fit_gaze(vlm, examples(vlm, questions))


def test_the_gaze_is_fitted_once_where_flat_images_end_and_held_for_its_steps(capsys):
    vlm, questions = make()
    tower, layers = vlm.encoder.embeddings.position_embedding.weight, vlm.decoder.layers
    vlm.connector.requires_grad_(False)  # as a plan may have it
    callback = FitGaze(vlm, questions, flat=0.3, hold=0.25, settled=0.1)

    class State:
        global_step = 0

    learns, rates = [], []
    optimizer = torch.optim.SGD(vlm.encoder.parameters(), lr=1.0)
    for State.global_step in range(4):
        optimizer.param_groups[0]["lr"] = 1.0  # as a schedule does
        callback.on_step_begin(None, State, None, optimizer=optimizer)
        rates.append(optimizer.param_groups[0]["lr"])
        watched = (tower, layers[1].self_attn.q_proj.weight, layers[1].self_attn.v_proj.weight)
        learns.append([parameter.requires_grad for parameter in watched])
    assert capsys.readouterr().out.count("gaze fitted at step 2") == 1
    assert learns == [[True, True, True]] * 2 + [[False, False, True], [True, True, True]]
    assert rates == [1.0, 1.0, 1.0, 0.1]
    assert not any(parameter.requires_grad for parameter in vlm.connector.parameters())
