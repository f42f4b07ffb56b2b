"""Places to ask about lie where the paper's lab asks, and a model learns to answer for them."""

import numpy as np
import pytest
import torch

from common.errors import UserError
from pretrain.pvp_prompts import IGNORE_INDEX
from pretrain.referring.point_objective import (
    PointObjective,
    PointQADataset,
    calibrate_logit_bias,
    concat_prefix_suffix,
    draw_points,
    grid_mask,
)
from pretrain.referring.recorded_games import GameReferringDataset
from vlm.presets import build
from vlm.segmentation.point_prediction import predict_points


def test_a_grids_places_belong_to_what_fills_half_of_them_and_nothing_is_lost():
    mask = np.zeros((64, 64), bool)
    mask[:16, :12] = True
    assert grid_mask(mask, 4).astype(int).tolist() == [[1, 0, 0, 0]] + [[0] * 4] * 3
    mask[:] = False
    mask[33, 50] = True
    assert np.argwhere(grid_mask(mask, 4)).tolist() == [[2, 3]]
    assert not grid_mask(np.zeros((64, 64), bool), 4).any()


def test_places_are_drawn_from_object_others_ring_and_anywhere_by_the_labs_shares():
    own, others, rng = np.zeros((32, 32), bool), np.zeros((32, 32), bool), np.random.default_rng(0)
    own[10:14, 10:14] = True
    others[24:28, 24:28] = True
    near = np.zeros_like(own)
    near[6:18, 6:18] = True

    def shares(own, others):
        rows, columns = draw_points(own, own | others, 4000, rng).T
        on, other = own[rows, columns], others[rows, columns]
        ring = near[rows, columns] & ~on
        return np.round([on.mean(), other.mean(), ring.mean(), (~on & ~other & ~ring).mean()], 2)

    assert np.abs(shares(own, others) - (0.40, 0.30, 0.24, 0.06)).max() <= 0.03
    alone = shares(own, np.zeros_like(own))
    assert np.abs(alone - (0.40, 0, 0.54, 0.06)).max() <= 0.03
    nothing = draw_points(np.zeros_like(own), others, 400, rng)
    assert 0.7 < others[nothing[:, 0], nothing[:, 1]].mean() < 0.95  # 30 to 6


def test_a_batch_asks_true_questions_and_depends_on_seed_and_step_alone(two_games):
    vlm = build("tiny")
    source = GameReferringDataset(two_games, "train", 1, vlm.history)
    batch, again = (PointQADataset(vlm, source, 9, 2, 3, seed=5, grid=16, points=7)[4] for _ in range(2))
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert batch["read"].shape == batch["said"].shape
    assert batch["read"].shape[:3] == (2, 3, 7)
    words = vlm.tokenizer.decode(batch["trunks"][0, 0, : batch["lengths"][0, 0]])
    assert words.startswith("the ")
    assert words.endswith("loc : [")
    answers = batch["said"][batch["said"] != IGNORE_INDEX].view(-1, 2)
    assert set(vlm.tokenizer.convert_ids_to_tokens(answers[:, 1])) == {"</s>"}
    assert set(vlm.tokenizer.convert_ids_to_tokens(answers[:, 0])) == {"0", "1"}


def test_one_batch_is_learnt_and_then_found_by_asking_every_place(two_games):
    vlm = build("tiny", seed=1)
    source = GameReferringDataset(two_games, "train", 1, vlm.history, no_target_fraction=0)
    batch = PointQADataset(vlm, source, 1, 2, 1, seed=0, grid=8, points=64)[0]
    lesson = PointObjective(vlm, bf16=False)
    optimizer = torch.optim.AdamW(vlm.model.parameters(), lr=5e-3)
    first = lesson(**batch)
    for _ in range(150):
        out = lesson(**batch)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    assert first["right"] < 0.8
    assert out["right"] > 0.95
    drawn = source.draw(np.random.default_rng([0, 0, 0x901]), 1)
    features = vlm.encode_images(vlm.preprocess(drawn.frames[None]))
    odds = predict_points(vlm, features, drawn.expressions, 8, spacing=1)[0].numpy()
    texts = vlm.tokenizer.batch_decode(batch["read"][0, 0])
    asked = np.array([[int(part) for part in text.split("]")[0].split(",")] for text in texts])
    truth = grid_mask(drawn.masks[0], 8)[asked[:, 0], asked[:, 1]]
    assert 0 < truth.mean() < 1
    assert ((odds[asked[:, 0], asked[:, 1]] > 0) == truth).mean() > 0.9


def test_shifted_odds_say_1_as_often_as_it_is_true_of_a_picture(two_games):
    vlm = build("tiny", seed=1)
    source = GameReferringDataset(two_games, "train", 1, vlm.history, no_target_fraction=0)
    shift = calibrate_logit_bias(vlm, source, 16, seed=0, pictures=24, places=32)
    rng, said, true = np.random.default_rng(5), [], []
    for _ in range(24):
        drawn = source.draw(rng, 1)
        features = vlm.encode_images(vlm.preprocess(drawn.frames[None]))
        odds = predict_points(vlm, features, drawn.expressions, 16, shift=shift)
        said.append(odds.sigmoid().mean().item())
        true.append(grid_mask(drawn.masks[0], 16).mean())
    assert 0 < np.mean(true) < 0.1
    assert np.mean(said) == pytest.approx(np.mean(true), rel=0.5)


@pytest.fixture
def watched(two_games):
    """A model of three layers and a batch of questions to it, whose expressions have different lengths."""
    vlm = build("tiny-clip", seed=1)
    source = GameReferringDataset(two_games, "train", 1, vlm.history, no_target_fraction=0)
    batches = PointQADataset(vlm, source, 20, 2, 3, seed=0, grid=64, points=5)
    return vlm, next(batch for batch in map(batches.__getitem__, range(20)) if len(batch["lengths"].unique()) > 1)


def test_told_where_to_look_or_not_the_same_questions_are_asked(watched):
    vlm, batch = watched
    plain, told = (PointObjective(vlm, bf16=False, gaze=gaze).eval()(**batch) for gaze in (0.0, 1e-9))
    assert told["loss"].item() == pytest.approx(plain["loss"].item(), abs=1e-5)
    assert told["right"] == plain["right"]
    assert set(told) - set(plain) == {"fetched", "looked", "told", "followed"}


def test_what_is_to_be_looked_at_are_the_places_own_numbers_and_patch(watched):
    vlm, batch = watched
    lesson = PointObjective(vlm, bf16=False, gaze=1.0)
    read, said = concat_prefix_suffix(batch["trunks"], batch["lengths"], batch["read"], batch["said"])
    sights = lesson._sights(batch["lengths"], said, batch["places"], batch["frames"])
    for image in range(2):
        for number in range(15):
            tokens, (row, column), end = (
                read[image, number],
                sights.coordinates[image, number],
                sights.ends[image, number],
            )
            numbers = [int(vlm.tokenizer.decode(tokens[at])) for at in (row, column)]
            place = batch["places"].flatten(1, 2)[image, number] * torch.tensor(batch["frames"].shape[2:4])
            height = 210  # of the games' frames; 64 places along each side
            assert (place * 64 / torch.tensor([height, 160])).int().tolist() == numbers
            assert sights.tokens[image, number] == int(place[0]) // 36 * 6 + int(place[1]) // 36
            assert vlm.tokenizer.decode(tokens[: end + 1]).endswith("] mask:")
            assert vlm.tokenizer.decode(tokens[end + 1]) in ("0", "1")
            assert sights.later[image, number].nonzero().flatten().tolist() == [int(end) + 1]


def test_the_gaze_is_learnt(watched):
    vlm, batch = watched
    lesson = PointObjective(vlm, bf16=False, gaze=1.0)
    optimizer = torch.optim.AdamW(vlm.model.parameters(), lr=5e-3)
    first = lesson(**batch)
    for _ in range(90):
        out = lesson(**batch)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    for name in ("fetched", "looked", "followed"):
        assert first[name] < 0.3
        assert out[name] > 0.6


def test_a_gaze_is_refused_where_there_are_no_layers_to_look_with():
    with pytest.raises(UserError, match="at least 3 layers"):
        PointObjective(build("tiny"), bf16=False, gaze=1.0)
