"""Points: what is read together is what each question gets alone, and a checkpoint says on which grid it was taught."""

import numpy as np
import pytest
import torch

from vlm import checkpoint
from vlm.decoding.candidate_scoring import prompt_ids
from vlm.decoding.packing import PackedTreeLayout, forward_packed_tree, pad_token_lists
from vlm.presets import build
from vlm.prompts import IMAGE, MASK_PREFIX
from vlm.segmentation import point_prediction
from vlm.segmentation.point_prediction import PointPromptFormat, interpolate, predict_points, unclear
from vlm.segmentation.referring_segmenter import POINT_GRID, load_segmenter

EXPRESSIONS = ["the red ghost", "the second duck from the left"]


@pytest.fixture(params=["tiny", "tiny-clip"])
def vlm(request):
    return build(request.param, seed=2)


def picture(vlm, count=1):
    return np.random.default_rng(0).integers(0, 256, (count, vlm.history, 70, 64, 3), dtype=np.uint8)


def plain_logits(vlm, pixels, language, words, row, column):
    """The logits of transformers' own forward behind one whole question, float32[vocabulary]."""
    before = prompt_ids(vlm, f"{IMAGE} {MASK_PREFIX}", vlm.image_ids(pixels))
    ids = [*before, *language.trunk(words), *language.leaf(row, column)]
    return vlm.model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0, -1]


def test_a_question_is_the_labs_and_its_end_one_token(vlm):
    language = PointPromptFormat.of(vlm)
    tokens = [*language.shared.tolist(), *language.trunk("The red  ghost"), *language.leaf(12, 7)]
    assert vlm.tokenizer.decode(tokens) == "[ segmentation ] the red ghost loc : [ 12 , 7 ] mask:"
    assert len(language.leaf(12, 7)) == 4
    assert vlm.tokenizer.convert_ids_to_tokens(language.answers) == ["0", "1"]


@torch.no_grad()
def test_the_whole_grid_gets_what_each_place_gets_alone(vlm):
    language, pixels = PointPromptFormat.of(vlm), vlm.preprocess(picture(vlm))
    odds = predict_points(vlm, vlm.encode_images(pixels), EXPRESSIONS, 5, spacing=1)
    assert odds.shape == (2, 5, 5)
    for number, row, column in ((0, 0, 0), (0, 4, 2), (1, 3, 4), (1, 2, 0)):
        logits = plain_logits(vlm, pixels, language, EXPRESSIONS[number], row, column)
        no, yes = logits[language.answers]
        assert float(odds[number, row, column]) == pytest.approx(float(yes - no), abs=2e-5)
    assert float((odds[0] - odds[1]).abs().max()) > 1e-4


@torch.no_grad()
def test_places_between_are_asked_where_it_is_not_clear_and_only_there(vlm, monkeypatch):
    features = vlm.encode_images(vlm.preprocess(picture(vlm)))
    truth, asked = torch.full((9, 9), -5.0), []
    truth[:3, :4] = 5.0

    def answer(_, places):
        asked.extend(places.tolist())
        return truth[tuple(places.T)]

    monkeypatch.setattr(point_prediction.PointSampler, "ask", answer)
    assert torch.equal(predict_points(vlm, features, EXPRESSIONS[:1], 9)[0], truth)
    assert len({tuple(place) for place in asked}) == len(asked) < 81
    assert [8, 7] not in asked


@torch.no_grad()
def test_of_what_is_in_doubt_as_many_again_are_asked_as_at_first_and_the_most_doubtful(vlm, monkeypatch):
    features = vlm.encode_images(vlm.preprocess(picture(vlm)))
    whole = predict_points(vlm, features, EXPRESSIONS[:1], 9, spacing=1)[0]  # untaught: all in doubt
    asked, work = [], point_prediction.PointSampler.ask

    def answer(self, places):
        asked.append(places)
        return work(self, places)

    monkeypatch.setattr(point_prediction.PointSampler, "ask", answer)
    found = predict_points(vlm, features, EXPRESSIONS[:1], 9)[0]
    assert [len(places) for places in asked] == [25, 25]
    seen = torch.zeros(9, 9, dtype=torch.bool)
    seen[tuple(torch.cat(asked).T)] = True
    assert int(seen.sum()) == 50
    assert torch.allclose(found[seen], whole[seen], atol=2e-5)
    guessed = interpolate(whole[::2, ::2], 9, 2)
    assert torch.allclose(found[~seen], guessed[~seen], atol=2e-5)
    assert float(guessed[tuple(asked[1].T)].abs().max()) <= float(guessed[~seen].abs().min()) + 2e-5


def test_between_places_log_odds_are_interpolated_and_beyond_the_last_level():
    odds = interpolate(torch.tensor([[0.0, 4.0], [8.0, 12.0]]), 4, 2)
    assert odds.tolist() == [[0, 2, 4, 4], [4, 6, 8, 8], [8, 10, 12, 12], [8, 10, 12, 12]]
    assert torch.equal(interpolate(torch.eye(3), 3, 1), torch.eye(3))
    assert interpolate(torch.ones(1, 1), 2, 2).tolist() == [[1, 1], [1, 1]]


def test_what_is_unclear_has_a_doubt_or_the_other_answer_near():
    odds = torch.full((5, 6), -4.0)
    odds[0, 0] = -1.0
    odds[4, 4:] = 4.0
    near = unclear(odds)
    assert near[:2, :2].all()
    assert near[3:, 3:].all()
    assert int(near.sum()) == 4 + 6
    assert not unclear(torch.full((2, 2), 4.0)).any()


@torch.no_grad()
def test_leaves_behind_trunks_of_several_lengths_get_what_each_path_gets_alone(vlm):
    language, pixels = PointPromptFormat.of(vlm), vlm.preprocess(picture(vlm, 2))
    places = [(0, 1), (3, 2), (31, 30)]
    trunks, lengths = pad_token_lists([[language.trunk(words) for words in EXPRESSIONS]] * 2, language.pad)
    assert lengths[0, 0] < lengths[0, 1]
    leaves = torch.tensor([[[language.leaf(*place) for place in places]] * 2] * 2)
    states = forward_packed_tree(vlm, vlm.encode_images(pixels), language.shared, trunks, lengths, leaves)
    assert states.shape[:4] == leaves.shape
    head = vlm.model.get_output_embeddings()
    for image, number, place in ((0, 0, 0), (0, 1, 2), (1, 0, 2), (1, 1, 1)):
        alone = plain_logits(vlm, pixels[image : image + 1], language, EXPRESSIONS[number], *places[place])
        assert torch.allclose(head(states[image, number, place, -1]), alone, atol=2e-5)


def test_gradients_of_branches_are_those_of_separate_sequences(vlm):
    language, pixels = PointPromptFormat.of(vlm), vlm.preprocess(picture(vlm))
    places, head = [(0, 1), (3, 2)], vlm.model.get_output_embeddings()
    trunks, lengths = pad_token_lists([[language.trunk(words) for words in EXPRESSIONS]], language.pad)
    leaves = torch.tensor([[[language.leaf(*place) for place in places]] * 2])
    states = forward_packed_tree(vlm, vlm.encode_images(pixels), language.shared, trunks, lengths, leaves)
    head(states[..., -1, :]).log_softmax(-1)[..., 7].sum().backward()
    packed = {name: p.grad.clone() for name, p in vlm.model.named_parameters() if p.grad is not None}
    vlm.model.zero_grad()
    for words in EXPRESSIONS:
        for place in places:
            plain_logits(vlm, pixels, language, words, *place).log_softmax(-1)[7].backward()
    for name, parameter in vlm.model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(packed[name], parameter.grad, rtol=1e-4, atol=1e-5), name


def test_a_leaf_sees_prefix_its_own_trunk_without_padding_and_itself():
    sees = PackedTreeLayout(1, torch.tensor([[1, 2]]), 2, 2, 1).mask()[0, 0] == 0
    assert sees.int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 0],  # padding
        [1, 0, 0, 1, 0, 0, 0, 0, 0],
        [1, 0, 0, 1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 1, 0, 0],
        [1, 0, 0, 1, 1, 0, 0, 1, 0],
        [1, 0, 0, 1, 1, 0, 0, 0, 1],
    ]


def test_a_checkpoint_that_was_taught_points_is_asked_for_points(vlm, tmp_path):
    checkpoint.save(vlm, tmp_path / "run", {POINT_GRID: 4})
    segmenter = load_segmenter(tmp_path / "run")
    assert segmenter.way.startswith("points of a grid of 4")
    found = segmenter.find(picture(vlm)[0], EXPRESSIONS)
    odds = predict_points(vlm, vlm.encode_images(vlm.preprocess(picture(vlm))), EXPRESSIONS, 4)
    assert found.shape == (2, 70, 64)
    assert found[0, 0, 0] == pytest.approx(float(odds[0, 0, 0].sigmoid()), abs=1e-5)
    assert found.max() <= float(odds.max().sigmoid()) + 1e-6
