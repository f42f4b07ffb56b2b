"""Points predicted together equal those predicted alone; a checkpoint stores the grid of its training."""

import numpy as np
import pytest
import torch

from vlm import checkpoint
from vlm.decoding.candidate_scoring import prompt_ids
from vlm.decoding.packing import PackedTreeLayout, forward_packed_tree, pad_token_lists
from vlm.presets import build
from vlm.prompts import IMAGE, MASK_PREFIX
from vlm.segmentation import point_prediction
from vlm.segmentation.point_prediction import PointPromptFormat, interpolate, predict_points, uncertain
from vlm.segmentation.referring_segmenter import POINT_GRID, load_segmenter

EXPRESSIONS = ["the red ghost", "the second duck from the left"]


@pytest.fixture(params=["tiny", "tiny-clip"])
def vlm(request):
    return build(request.param, seed=2)


def frames(vlm, count=1):
    return np.random.default_rng(0).integers(0, 256, (count, vlm.history, 70, 64, 3), dtype=np.uint8)


def plain_logits(vlm, pixels, prompts, words, row, column):
    """The logits of transformers' own forward behind one whole question, float32[vocabulary]."""
    before = prompt_ids(vlm, f"{IMAGE} {MASK_PREFIX}", vlm.image_ids(pixels))
    ids = [*before, *prompts.expression_tokens(words), *prompts.point_tokens(row, column)]
    return vlm.model(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0, -1]


def test_the_prompt_is_the_labs_and_its_end_one_token(vlm):
    prompts = PointPromptFormat.of(vlm)
    tokens = [*prompts.shared.tolist(), *prompts.expression_tokens("The red  ghost"), *prompts.point_tokens(12, 7)]
    assert vlm.tokenizer.decode(tokens) == "[ segmentation ] the red ghost loc : [ 12 , 7 ] mask:"
    assert len(prompts.point_tokens(12, 7)) == 4
    assert vlm.tokenizer.convert_ids_to_tokens(prompts.answers) == ["0", "1"]


@torch.no_grad()
def test_a_grid_gets_the_logits_that_each_point_gets_alone(vlm):
    prompts, pixels = PointPromptFormat.of(vlm), vlm.preprocess(frames(vlm))
    grid = predict_points(vlm, vlm.encode_images(pixels), EXPRESSIONS, 5, stride=1)
    assert grid.shape == (2, 5, 5)
    for number, row, column in ((0, 0, 0), (0, 4, 2), (1, 3, 4), (1, 2, 0)):
        logits = plain_logits(vlm, pixels, prompts, EXPRESSIONS[number], row, column)
        no, yes = logits[prompts.answers]
        assert float(grid[number, row, column]) == pytest.approx(float(yes - no), abs=2e-5)
    assert float((grid[0] - grid[1]).abs().max()) > 1e-4


@torch.no_grad()
def test_points_between_are_predicted_only_where_the_coarse_grid_is_uncertain(vlm, monkeypatch):
    features = vlm.encode_images(vlm.preprocess(frames(vlm)))
    truth, predicted = torch.full((9, 9), -5.0), []
    truth[:3, :4] = 5.0

    def answer(_, points):
        predicted.extend(points.tolist())
        return truth[tuple(points.T)]

    monkeypatch.setattr(point_prediction.PointSampler, "point_logits", answer)
    assert torch.equal(predict_points(vlm, features, EXPRESSIONS[:1], 9)[0], truth)
    assert len({tuple(point) for point in predicted}) == len(predicted) < 81
    assert [8, 7] not in predicted


@torch.no_grad()
def test_the_second_step_has_at_most_as_many_points_the_most_uncertain_ones(vlm, monkeypatch):
    features = vlm.encode_images(vlm.preprocess(frames(vlm)))
    whole = predict_points(vlm, features, EXPRESSIONS[:1], 9, stride=1)[0]  # untrained: all uncertain
    predicted, work = [], point_prediction.PointSampler.point_logits

    def answer(self, points):
        predicted.append(points)
        return work(self, points)

    monkeypatch.setattr(point_prediction.PointSampler, "point_logits", answer)
    found = predict_points(vlm, features, EXPRESSIONS[:1], 9)[0]
    assert [len(points) for points in predicted] == [25, 25]
    seen = torch.zeros(9, 9, dtype=torch.bool)
    seen[tuple(torch.cat(predicted).T)] = True
    assert int(seen.sum()) == 50
    assert torch.allclose(found[seen], whole[seen], atol=2e-5)
    guessed = interpolate(whole[::2, ::2], 9, 2)
    assert torch.allclose(found[~seen], guessed[~seen], atol=2e-5)
    assert float(guessed[tuple(predicted[1].T)].abs().max()) <= float(guessed[~seen].abs().min()) + 2e-5


def test_logits_are_interpolated_between_points_and_constant_beyond():
    logits = interpolate(torch.tensor([[0.0, 4.0], [8.0, 12.0]]), 4, 2)
    assert logits.tolist() == [[0, 2, 4, 4], [4, 6, 8, 8], [8, 10, 12, 12], [8, 10, 12, 12]]
    assert torch.equal(interpolate(torch.eye(3), 3, 1), torch.eye(3))
    assert interpolate(torch.ones(1, 1), 2, 2).tolist() == [[1, 1], [1, 1]]


def test_a_point_is_uncertain_by_itself_or_beside_another_answer():
    logits = torch.full((5, 6), -4.0)
    logits[0, 0] = -1.0
    logits[4, 4:] = 4.0
    near = uncertain(logits)
    assert near[:2, :2].all()
    assert near[3:, 3:].all()
    assert int(near.sum()) == 4 + 6
    assert not uncertain(torch.full((2, 2), 4.0)).any()


@torch.no_grad()
def test_points_behind_expressions_of_several_lengths_get_the_logits_that_each_gets_alone(vlm):
    prompts, pixels = PointPromptFormat.of(vlm), vlm.preprocess(frames(vlm, 2))
    points = [(0, 1), (3, 2), (31, 30)]
    trunks, lengths = pad_token_lists([[prompts.expression_tokens(words) for words in EXPRESSIONS]] * 2, prompts.pad)
    assert lengths[0, 0] < lengths[0, 1]
    leaves = torch.tensor([[[prompts.point_tokens(*point) for point in points]] * 2] * 2)
    states = forward_packed_tree(vlm, vlm.encode_images(pixels), prompts.shared, trunks, lengths, leaves)
    assert states.shape[:4] == leaves.shape
    head = vlm.model.get_output_embeddings()
    for image, number, point in ((0, 0, 0), (0, 1, 2), (1, 0, 2), (1, 1, 1)):
        alone = plain_logits(vlm, pixels[image : image + 1], prompts, EXPRESSIONS[number], *points[point])
        assert torch.allclose(head(states[image, number, point, -1]), alone, atol=2e-5)


def test_gradients_of_a_packed_tree_are_those_of_separate_sequences(vlm):
    prompts, pixels = PointPromptFormat.of(vlm), vlm.preprocess(frames(vlm))
    points, head = [(0, 1), (3, 2)], vlm.model.get_output_embeddings()
    trunks, lengths = pad_token_lists([[prompts.expression_tokens(words) for words in EXPRESSIONS]], prompts.pad)
    leaves = torch.tensor([[[prompts.point_tokens(*point) for point in points]] * 2])
    states = forward_packed_tree(vlm, vlm.encode_images(pixels), prompts.shared, trunks, lengths, leaves)
    head(states[..., -1, :]).log_softmax(-1)[..., 7].sum().backward()
    packed = {name: p.grad.clone() for name, p in vlm.model.named_parameters() if p.grad is not None}
    vlm.model.zero_grad()
    for words in EXPRESSIONS:
        for point in points:
            plain_logits(vlm, pixels, prompts, words, *point).log_softmax(-1)[7].backward()
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


def test_a_checkpoint_trained_on_points_predicts_points(vlm, tmp_path):
    checkpoint.save(vlm, tmp_path / "run", {POINT_GRID: 4})
    segmenter = load_segmenter(tmp_path / "run")
    assert segmenter.method.startswith("points of a grid of 4")
    found = segmenter.predict(frames(vlm)[0], EXPRESSIONS)
    logits = predict_points(vlm, vlm.encode_images(vlm.preprocess(frames(vlm))), EXPRESSIONS, 4)
    assert found.shape == (2, 70, 64)
    assert found[0, 0, 0] == pytest.approx(float(logits[0, 0, 0].sigmoid()), abs=1e-5)
    assert found.max() <= float(logits.max().sigmoid()) + 1e-6
