"""Points are sampled as in the paper's code, and a model learns to answer for them."""

import numpy as np
import pytest
import torch

from common.errors import UserError
from pretrain.answer_objective import IGNORE_INDEX
from pretrain.referring.point_objective import (
    PointObjective,
    PointQuestionSampler,
    calibrate_logit_bias,
    concat_prefix_suffix,
    grid_mask,
    sample_points,
)
from pretrain.referring.referring_config import ReferringData
from pretrain.referring.scene_dataset import SceneDataset
from vlm.presets import build
from vlm.segmentation.point_prediction import PointPromptFormat, predict_points


def point_objective(vlm, data, expressions, grid, points, attention_supervision=0.0, no_target=0.0):
    source = SceneDataset(data, "train", 1, vlm.history, no_target_fraction=no_target)
    prompts = PointPromptFormat.of(vlm)
    data = ReferringData(images=2, expressions=expressions, grid=grid, points=points)
    sampler = PointQuestionSampler(prompts, source, data)
    return PointObjective(vlm, sampler, prompts, attention_supervision)


def learn(objective, batch, steps):
    """The metrics of a batch before and after so many steps on it alone."""
    optimizer = torch.optim.AdamW(objective.vlm.model.parameters(), lr=5e-3)
    first = objective.loss(objective.encode(batch), batch).metrics
    for _ in range(steps):
        losses = objective.loss(objective.encode(batch), batch)
        optimizer.zero_grad()
        losses.loss.backward()
        optimizer.step()
    return first, losses.metrics


def test_a_grid_cell_belongs_to_a_mask_that_fills_half_of_it_and_no_mask_is_lost():
    mask = np.zeros((64, 64), bool)
    mask[:16, :12] = True
    assert grid_mask(mask, 4).astype(int).tolist() == [[1, 0, 0, 0]] + [[0] * 4] * 3
    mask[:] = False
    mask[33, 50] = True
    assert np.argwhere(grid_mask(mask, 4)).tolist() == [[2, 3]]
    assert not grid_mask(np.zeros((64, 64), bool), 4).any()


def test_points_are_sampled_from_object_others_ring_and_anywhere_by_the_papers_shares():
    own, others, rng = np.zeros((32, 32), bool), np.zeros((32, 32), bool), np.random.default_rng(0)
    own[10:14, 10:14] = True
    others[24:28, 24:28] = True
    near = np.zeros_like(own)
    near[6:18, 6:18] = True

    def shares(own, others):
        rows, columns = sample_points(own, own | others, 4000, rng).T
        on, other = own[rows, columns], others[rows, columns]
        ring = near[rows, columns] & ~on
        return np.round([on.mean(), other.mean(), ring.mean(), (~on & ~other & ~ring).mean()], 2)

    assert np.abs(shares(own, others) - (0.40, 0.30, 0.24, 0.06)).max() <= 0.03
    alone = shares(own, np.zeros_like(own))
    assert np.abs(alone - (0.40, 0, 0.54, 0.06)).max() <= 0.03
    nothing = sample_points(np.zeros_like(own), others, 400, rng)
    assert 0.7 < others[nothing[:, 0], nothing[:, 1]].mean() < 0.95  # 30 to 6


def test_a_batch_asks_true_questions_and_depends_on_seed_and_step_alone(two_games):
    vlm = build("tiny")
    objective = point_objective(vlm, two_games, 3, grid=16, points=7, no_target=0.1)
    batch, again = (objective.sampler(4, objective.rng(5, 4)) for _ in range(2))
    assert all(torch.equal(getattr(batch, name), getattr(again, name)) for name in vars(batch) if name != "images")
    assert batch.input_ids.shape == batch.labels.shape
    assert batch.input_ids.shape[:3] == (2, 3, 7)
    words = vlm.tokenizer.decode(batch.prefix_ids[0, 0, : batch.prefix_lengths[0, 0]])
    assert words.startswith("the ")
    assert words.endswith("loc : [")
    answers = batch.labels[batch.labels != IGNORE_INDEX].view(-1, 2)
    assert set(vlm.tokenizer.convert_ids_to_tokens(answers[:, 1])) == {"</s>"}
    assert set(vlm.tokenizer.convert_ids_to_tokens(answers[:, 0])) == {"0", "1"}


def test_a_model_overfits_one_batch_and_predicts_its_points(two_games):
    vlm = build("tiny", seed=1)
    objective = point_objective(vlm, two_games, 1, grid=8, points=64)
    batch = objective.sampler(0, objective.rng(0, 0))
    first, last = learn(objective, batch, 150)
    assert first["accuracy"] < 0.8
    assert last["accuracy"] > 0.95
    drawn = objective.sampler.source.draw(objective.rng(0, 0), 1)
    features = vlm.encode_images(vlm.preprocess(drawn.frames[None]))
    logits = predict_points(vlm, features, drawn.expressions, 8, stride=1)[0].numpy()
    texts = vlm.tokenizer.batch_decode(batch.input_ids[0, 0])
    points = np.array([[int(part) for part in text.split("]")[0].split(",")] for text in texts])
    truth = grid_mask(drawn.masks[0], 8)[points[:, 0], points[:, 1]]
    assert 0 < truth.mean() < 1
    assert ((logits[points[:, 0], points[:, 1]] > 0) == truth).mean() > 0.9


def test_calibrated_logits_predict_1_as_often_as_it_is_true_of_an_image(two_games):
    vlm = build("tiny", seed=1)
    source = SceneDataset(two_games, "train", 1, vlm.history, no_target_fraction=0)
    bias = calibrate_logit_bias(vlm, source, 16, seed=0, images=24, points=32)
    rng, predicted, true = np.random.default_rng(5), [], []
    for _ in range(24):
        drawn = source.draw(rng, 1)
        features = vlm.encode_images(vlm.preprocess(drawn.frames[None]))
        logits = predict_points(vlm, features, drawn.expressions, 16, logit_bias=bias)
        predicted.append(logits.sigmoid().mean().item())
        true.append(grid_mask(drawn.masks[0], 16).mean())
    assert 0 < np.mean(true) < 0.1
    assert np.mean(predicted) == pytest.approx(np.mean(true), rel=0.5)


@pytest.fixture
def supervised(two_games):
    """An objective with attention supervision and a batch of questions whose expressions have different lengths."""
    objective = point_objective(build("tiny-clip", seed=1), two_games, 3, 64, 5, attention_supervision=1.0)
    batches = (objective.sampler(step, objective.rng(0, step)) for step in range(20))
    return objective, next(batch for batch in batches if len(batch.prefix_lengths.unique()) > 1)


def test_attention_supervision_trains_on_the_same_questions(supervised):
    objective, batch = supervised
    plain, with_supervision = (
        PointObjective(objective.vlm, objective.sampler, objective.prompts, weight) for weight in (0.0, 1e-9)
    )
    plain, with_supervision = (one.loss(one.encode(batch), batch) for one in (plain, with_supervision))
    assert with_supervision.loss.item() == pytest.approx(plain.loss.item(), abs=1e-5)
    assert with_supervision.metrics["accuracy"] == plain.metrics["accuracy"]
    assert set(with_supervision.metrics) - set(plain.metrics) == {
        "attn/coordinates", "attn/question_to_patch", "attn/answer_to_question", "attn/answer_to_patch",
    }  # fmt: skip


def test_attention_targets_are_the_coordinates_and_the_patch_of_a_point(supervised):
    objective, batch = supervised
    tokenizer = objective.vlm.tokenizer
    input_ids, labels = concat_prefix_suffix(batch.prefix_ids, batch.prefix_lengths, batch.input_ids, batch.labels)
    targets = objective.attention_targets(batch, labels)
    for image in range(2):
        for number in range(15):
            tokens, end = input_ids[image, number], targets.question_ends[image, number]
            numbers = [int(tokenizer.decode(tokens[at])) for at in targets.coordinates[image, number]]
            place = batch.coordinates.flatten(1, 2)[image, number] * torch.tensor(batch.frames.shape[2:4])
            height = 210  # of the games' frames; 64 places along each side
            assert (place * 64 / torch.tensor([height, 160])).int().tolist() == numbers
            assert targets.image_tokens[image, number] == int(place[0]) // 36 * 6 + int(place[1]) // 36
            assert tokenizer.decode(tokens[: end + 1]).endswith("] mask:")
            assert tokenizer.decode(tokens[end + 1]) in ("0", "1")
            assert targets.answer_mask[image, number].nonzero().flatten().tolist() == [int(end) + 1]


def test_supervised_attention_rises_in_training(supervised):
    first, last = learn(*supervised, 90)
    for name in ("attn/coordinates", "attn/question_to_patch", "attn/answer_to_patch"):
        assert first[name] < 0.3
        assert last[name] > 0.6


def test_supervision_is_refused_where_a_decoder_has_too_few_layers(two_games):
    with pytest.raises(UserError, match="3 layers or more"):
        point_objective(build("tiny"), two_games, 3, 16, 5, attention_supervision=1.0)
