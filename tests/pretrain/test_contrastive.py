"""Contrast pairs frames with their own captions, learns them, and resumes to the same weights."""

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from common.errors import UserError
from envs.episodes import EpisodeDataset
from pretrain import contrastive
from pretrain.contrastive import (
    Args,
    CaptionPairs,
    ContrastiveObjective,
    pad_to_square,
    start_clip,
    train_contrastive,
)
from pretrain.data.frame_captions import caption_tokenizer
from vlm import checkpoint
from vlm.clip import build_clip, load_clip


def tiny(two_games, out, **changes):
    settings = {"steps": 4, "images": 8, "games": 2, "save_every": 2, "warmup_steps": 1, "workers": 0}
    return Args(data=two_games, out=out, preset="tiny-clip", **{**settings, **changes})


def pairs(two_games, args):
    sets = [EpisodeDataset(path) for path in two_games]
    return CaptionPairs(sets, build_clip("tiny-clip", caption_tokenizer()), args)


def test_a_batch_is_drawn_from_seed_and_step_alone_in_equal_shares_of_games(two_games, tmp_path):
    drawn = pairs(two_games, tiny(two_games, tmp_path))
    batch, same, other = drawn[3], drawn[3], drawn[2]
    assert torch.equal(batch["frames"], same["frames"])
    assert torch.equal(batch["tokens"], same["tokens"])
    assert not torch.equal(batch["frames"], other["frames"])
    assert batch["frames"].shape == (8, 1, 216, 216, 3)
    assert (batch["frames"][:, 0, 0, 0] == torch.tensor([0, 28, 136])).all(-1).sum() == 4


def test_batches_are_of_ever_fewer_games(two_games, tmp_path):
    args = tiny(two_games, tmp_path, steps=100, images=40, games=16, games_at_end=2)
    games = [args.games_of(step) for step in range(100)]
    assert (games[0], games[33], games[66], games[99]) == (16, 8, 4, 2)
    assert games == sorted(games, reverse=True)


def test_a_new_towers_tokens_tell_their_place(two_games, tmp_path):
    args = tiny(two_games, tmp_path)
    clip = start_clip(args, [EpisodeDataset(path) for path in two_games])
    table = clip.model.vision_model.embeddings.position_embedding.weight[1:].unflatten(0, (6, 6))
    assert table.square().mean().sqrt().item() == pytest.approx(1.0, abs=0.02)
    half = table.shape[-1] // 2
    assert torch.equal(table[:, 0, :half], table[:, 5, :half])  # rows in the one half
    assert torch.equal(table[0, :, half:], table[5, :, half:])  # columns in the other


def test_captions_of_a_batch_are_of_its_frames_and_some_do_not_tell_the_game(two_games, tmp_path):
    drawn = pairs(two_games, tiny(two_games, tmp_path, images=64))
    batch = drawn[0]
    said = drawn.clip.tokenizer.batch_decode(batch["tokens"], skip_special_tokens=True)
    blue = (batch["frames"][:, 0, 0, 0, 2] == 136).tolist()
    assert all("pong" not in caption for caption, is_blue in zip(said, blue, strict=True) if is_blue)
    assert 5 < sum("pong" not in caption and "breakout" not in caption for caption in said) < 35


def test_one_batch_is_learnt_by_heart(two_games, tmp_path):
    drawn = pairs(two_games, tiny(two_games, tmp_path, images=8))
    batch, lesson = drawn[0], ContrastiveObjective(drawn.clip, bf16=False)
    optimizer = torch.optim.Adam(drawn.clip.model.parameters(), lr=1e-3)
    for _ in range(300):
        out = lesson(**batch)
        optimizer.zero_grad()
        out["loss"].backward()
        torch.nn.utils.clip_grad_norm_(lesson.parameters(), 1.0)
        optimizer.step()
    assert out["loss"] < 0.2
    assert out["found"] == 1


def test_a_caption_that_another_frame_shares_is_no_wrong_one(two_games, tmp_path):
    drawn = pairs(two_games, tiny(two_games, tmp_path))
    batch = drawn[0]
    frames, tokens = batch["frames"][[0, 0]], batch["tokens"][[0, 0]]
    assert ContrastiveObjective(drawn.clip, bf16=False)(frames, tokens)["loss"] == 0


def test_a_killed_run_goes_on_to_the_same_weights_that_plain_transformers_loads(two_games, tmp_path, monkeypatch):
    train_contrastive(tiny(two_games, tmp_path / "whole"))
    forward, steps = ContrastiveObjective.forward, []

    def killed_in_the_third(self, **batch):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return forward(self, **batch)

    monkeypatch.setattr(contrastive.ContrastiveObjective, "forward", killed_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        train_contrastive(tiny(two_games, tmp_path / "broken"))
    train_contrastive(tiny(two_games, tmp_path / "broken"))
    whole, broken = (load_clip(tmp_path / name / "last").model.state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    plain = CLIPModel.from_pretrained(tmp_path / "whole" / "last").state_dict()
    assert all(torch.equal(whole[name], plain[name]) for name in whole)
    record = checkpoint.read_training(tmp_path / "whole" / "last")
    assert record["arguments"]["images"] == 8
    assert record["frames_of"] == ["Breakout", "Pong"]


def test_frames_are_laid_as_the_model_lays_them():
    frame = np.random.default_rng(0).integers(0, 256, (210, 160, 3), dtype=np.uint8)
    clip = build_clip("tiny-clip", caption_tokenizer())
    assert torch.equal(clip.preprocess(frame[None, None]), clip.preprocess(pad_to_square(frame, 216)[None, None]))
    with pytest.raises(UserError, match="at most 216 rows and columns, got 250 x 160"):
        pad_to_square(np.zeros((250, 160, 3), np.uint8), 216)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "--steps must be at least 1, got 0"),
        ({"hold_episodes": 0}, "--hold-episodes must be at least 1, got 0"),
        ({"images": 3}, "--images must be at least twice --games, 6; got 3"),
    ],
)
def test_contradictory_settings_are_refused(two_games, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        tiny(two_games, tmp_path, **changes)
