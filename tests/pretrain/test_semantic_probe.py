"""Semantic probe metrics agree with values worked out by hand, and work for every kind of encoder."""

import json

import numpy as np
import pytest
import torch

from common.errors import UserError
from envs.episodes import EpisodeDataset
from pretrain.data.frame_captions import caption_tokenizer
from pretrain.data.splits import split_rows
from pretrain.linear_probe import mean_token_features, r_squared, ridge
from pretrain.semantic_probe import (
    Args,
    downsampled_pixels,
    main,
    measure_probes,
    retrieval_accuracy,
    sample_frames,
    with_vision_tower,
)
from vlm import checkpoint
from vlm.clip import build_clip, load_vision_tower
from vlm.presets import build


def test_retrieval_accuracy_counts_equal_captions_as_one():
    images = np.eye(3)
    texts = np.array([[1, 0, 0], [0, 1, 0], [0.9, 0, 0.4]])
    assert retrieval_accuracy(images, texts, ["one", "two", "three"]) == {"top1": 1.0, "top5": 1.0, "different": 3}
    texts[2] = [0.9, 0, -0.1]
    assert retrieval_accuracy(images, texts, ["one", "two", "three"])["top1"] == pytest.approx(2 / 3)
    duplicates = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 1]])
    found = retrieval_accuracy(np.array([[1, 0, 0], [1, 0, 0], [0, 0, 1]]), duplicates, ["same", "same", "other"])
    assert found == {"top1": 1.0, "top5": 1.0, "different": 2}


def test_r_squared_is_1_for_the_truth_and_0_for_its_mean():
    truth = np.array([1.0, 2.0, 3.0])
    assert r_squared(truth, truth) == 1
    assert r_squared(np.full(3, 2.0), truth) == 0
    assert r_squared(np.array([1.0, 2.0, 4.0]), truth) == 0.5


def test_ridge_finds_a_linear_relation_and_invents_none():
    rng = np.random.default_rng(0)
    x_train, x_test, weights = rng.normal(size=(300, 5)), rng.normal(size=(100, 5)), rng.normal(size=(5, 1))
    assert r_squared(ridge(x_train, x_train @ weights, x_test), x_test @ weights) > 0.99
    noise = rng.normal(size=(300, 1))
    assert r_squared(ridge(x_train, noise, x_test), rng.normal(size=(100, 1))) < 0.1


def test_downsampled_pixels_are_the_mean_colors_of_blocks():
    frames = np.zeros((1, 36, 36, 3), dtype=np.uint8)
    frames[0, :18, 18:] = (10, 20, 30)
    assert downsampled_pixels(frames).tolist() == [[0, 0, 0, 10, 20, 30, 0, 0, 0, 0, 0, 0]]


def test_probes_distinguish_games_and_count_objects_within_them(two_games):
    sets = [EpisodeDataset(path) for path in two_games]
    train, test = (
        sample_frames(sets, [split_rows(data, split, 1) for data in sets], count, 216, seed)
        for split, count, seed in (("train", 30, 0), ("val", 10, 1))
    )
    backgrounds = {(0, 0, 0): 0, (0, 28, 136): 136}

    def objects(frames):  # an encoder that sees the background and how many objects there are
        background = np.array([backgrounds[tuple(frame[0, 0])] for frame in frames])
        counts = (frames[:, :210, :160] != frames[:, :1, :1]).any(-1).sum((1, 2)) / 80
        return np.stack([background, np.log1p(counts)], axis=1).astype(np.float32)

    assert train.counts.min() >= 1
    metrics = measure_probes(objects, train, test)
    assert metrics["game"] == 1
    assert metrics["count"] > 0.9
    assert metrics["count_within"] > 0.9
    blind = measure_probes(lambda frames: objects(frames)[:, :1], train, test)
    assert blind["game"] == 1
    assert abs(blind["count_within"]) < 0.2


@pytest.mark.parametrize("model", [build("tiny"), build("tiny-clip"), build_clip("tiny-clip", caption_tokenizer())])
def test_features_are_the_mean_of_any_models_image_tokens(model):
    frames = np.random.default_rng(0).integers(0, 256, (3, 216, 216, 3), dtype=np.uint8)
    assert mean_token_features(model)(frames).shape == (3, 32)


def test_a_clip_with_its_own_vision_tower_is_unchanged_and_with_another_is_not():
    clip, vlm = build_clip("tiny-clip", caption_tokenizer(), seed=1), build("tiny-clip", seed=2)
    frames = np.random.default_rng(0).integers(0, 256, (2, 1, 210, 160, 3), dtype=np.uint8)
    own = clip.image_vectors(frames)
    assert not torch.equal(with_vision_tower(clip, vlm.encoder).image_vectors(frames), own)
    load_vision_tower(vlm, clip)
    assert torch.equal(with_vision_tower(clip, vlm.encoder).image_vectors(frames), own)


def test_the_command_writes_a_row_for_every_encoder(two_games, tmp_path):
    clip, vlm = build_clip("tiny-clip", caption_tokenizer(), seed=1), build("tiny-clip", seed=2)
    load_vision_tower(vlm, clip)
    checkpoint.save(clip, tmp_path / "clip")
    checkpoint.save(vlm, tmp_path / "vlm")
    options = {"--clip": tmp_path / "clip", "--vlm": tmp_path / "vlm", "--out": tmp_path / "seen.json"}
    words = [str(word) for pair in options.items() for word in pair]
    words += ["--data", str(two_games[0]), str(two_games[1]), "--held-out-games", str(two_games[1])]
    assert main([*words, "--train-frames", "16", "--test-frames", "8", "--captions", "12"]) == 0
    result = json.loads((tmp_path / "seen.json").read_text())
    rows = {row["encoder"]: row for row in result["rows"]}
    assert set(rows) == {"clip", "random", "vlm", "pixels"}
    assert rows["clip"].items() - {("encoder", "clip")} == rows["vlm"].items() - {("encoder", "vlm")}
    assert {"top1", "untitled_top5", "ood_top1", "game", "count", "count_within"} <= rows["clip"].keys()
    assert result["checkpoint"] == checkpoint.content_hash(tmp_path / "clip")


def test_zero_frames_are_refused(two_games, tmp_path):
    with pytest.raises(UserError, match="--captions must be at least 1, got 0"):
        Args(clip=tmp_path, data=two_games, out=tmp_path / "a.json", captions=0)
