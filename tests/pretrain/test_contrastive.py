"""Contrast pairs frames with their own captions, learns them, and resumes to the same weights."""

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from common.errors import UserError
from envs.episodes import EpisodeDataset
from pretrain.contrastive import CONFIGS, start_clip, train_contrastive
from pretrain.contrastive_objective import ContrastiveBatch, ContrastiveObjective, ContrastiveSampler, pad_to_square
from pretrain.data.frame_captions import caption_tokenizer
from vlm import checkpoint
from vlm.clip import build_clip, load_clip

SHORT = ("save_steps=2", "warmup_steps=1", "dataloader_num_workers=0", "bf16=false")


def tiny(two_games, out, **changes):
    fields = {"data": two_games, "preset": "tiny-clip", "steps": 4, "images": 8, "games": 2, "trainer": SHORT}
    return CONFIGS["default"].replace(out=out, **{**fields, **changes})


def contrast(two_games, **changes):
    config, datasets = tiny(two_games, two_games[0], **changes), [EpisodeDataset(path) for path in two_games]
    clip = build_clip("tiny-clip", caption_tokenizer())
    return ContrastiveObjective(clip, ContrastiveSampler(datasets, clip, config.data, config.run.steps))


def batch_of(objective, step):
    return objective.sampler(step, objective.rng(0, step))


def test_a_batch_is_drawn_from_seed_and_step_alone_in_equal_shares_of_games(two_games):
    objective = contrast(two_games)
    batch, same, other = (batch_of(objective, step) for step in (3, 3, 2))
    assert torch.equal(batch.frames, same.frames)
    assert torch.equal(batch.tokens, same.tokens)
    assert not torch.equal(batch.frames, other.frames)
    assert batch.frames.shape == (8, 1, 216, 216, 3)
    assert (batch.frames[:, 0, 0, 0] == torch.tensor([0, 28, 136])).all(-1).sum() == 4


def test_batches_are_of_ever_fewer_games(two_games, tmp_path):
    data = tiny(two_games, tmp_path, images=40, games=16, games_at_end=2).data
    games = [data.games_at(step / 99) for step in range(100)]
    assert (games[0], games[33], games[66], games[99]) == (16, 8, 4, 2)
    assert games == sorted(games, reverse=True)


def test_a_new_towers_tokens_encode_their_position(two_games, tmp_path):
    clip = start_clip(tiny(two_games, tmp_path), [EpisodeDataset(path) for path in two_games])
    table = clip.model.vision_model.embeddings.position_embedding.weight[1:].unflatten(0, (6, 6))
    assert table.square().mean().sqrt().item() == pytest.approx(1.0, abs=0.02)
    half = table.shape[-1] // 2
    assert torch.equal(table[:, 0, :half], table[:, 5, :half])  # rows in the one half
    assert torch.equal(table[0, :, half:], table[5, :, half:])  # columns in the other


def test_captions_of_a_batch_are_of_its_frames_and_some_do_not_tell_the_game(two_games):
    objective = contrast(two_games, images=64)
    batch = batch_of(objective, 0)
    captions = objective.vlm.tokenizer.batch_decode(batch.tokens, skip_special_tokens=True)
    blue = (batch.frames[:, 0, 0, 0, 2] == 136).tolist()
    assert all("pong" not in caption for caption, is_blue in zip(captions, blue, strict=True) if is_blue)
    assert 5 < sum("pong" not in caption and "breakout" not in caption for caption in captions) < 35


@pytest.mark.slow
def test_a_clip_overfits_one_batch(two_games):
    objective = contrast(two_games)
    batch, model = batch_of(objective, 0), objective.vlm.model
    objective.vlm.set_attn_implementation(objective.attention)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(300):
        losses = objective.loss(objective.encode(batch), batch)
        optimizer.zero_grad()
        losses.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert losses.loss < 0.2
    assert losses.metrics["retrieval_accuracy"] == 1


def test_a_caption_that_another_frame_shares_is_no_wrong_one(two_games):
    objective = contrast(two_games)
    batch = batch_of(objective, 0)
    twice = ContrastiveBatch(batch.frames[[0, 0]], batch.tokens[[0, 0]])
    assert objective.loss(objective.encode(twice), twice).loss == 0


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights_that_plain_transformers_loads(two_games, tmp_path, kill_at_step):
    train_contrastive(tiny(two_games, tmp_path / "whole"))
    calls = kill_at_step(ContrastiveObjective, 3)
    with pytest.raises(KeyboardInterrupt):
        train_contrastive(tiny(two_games, tmp_path / "broken"))
    train_contrastive(tiny(two_games, tmp_path / "broken"))
    assert len(calls) == 5  # the first two steps were not done again
    whole, broken = (load_clip(tmp_path / name / "last").model.state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    plain = CLIPModel.from_pretrained(tmp_path / "whole" / "last").state_dict()
    assert all(torch.equal(whole[name], plain[name]) for name in whole)
    training = checkpoint.read_training(tmp_path / "whole" / "last")
    assert training["arguments"]["images"] == 8
    assert training["images_of"] == ["Breakout", "Pong"]


def test_a_stored_bfloat16_clip_is_half_the_size(two_games, tmp_path):
    runs = {dtype: tiny(two_games, tmp_path / dtype, steps=1, dtype=dtype) for dtype in ("float32", "bfloat16")}
    sizes = {dtype: (train_contrastive(run) / "model.safetensors").stat().st_size for dtype, run in runs.items()}
    assert sizes["bfloat16"] < 0.6 * sizes["float32"]


def test_frames_are_padded_as_the_model_pads_them():
    frame = np.random.default_rng(0).integers(0, 256, (210, 160, 3), dtype=np.uint8)
    clip = build_clip("tiny-clip", caption_tokenizer())
    assert torch.equal(clip.preprocess(frame[None, None]), clip.preprocess(pad_to_square(frame, 216)[None, None]))
    with pytest.raises(UserError, match="at most 216 rows and columns, got 250 x 160"):
        pad_to_square(np.zeros((250, 160, 3), np.uint8), 216)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1, got 0"),
        ({"val_episodes": 0}, "--val-episodes must be at least 1, got 0"),
        ({"images": 3}, "--images must be at least twice --games, 6; got 3"),
    ],
)
def test_contradictory_settings_are_refused(two_games, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        tiny(two_games, tmp_path, **changes)
