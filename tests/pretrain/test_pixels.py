"""Pixel value prediction asks about true pixels, learns them, and resumes to the same weights."""

import numpy as np
import pytest
import torch

from envs.episodes import DatasetInfo, Episode, EpisodeDataset, EpisodeWriter
from envs.errors import EnvsError
from envs.protocol import MACHADO2018
from pretrain import pixels
from pretrain.pixels import Args, PixelValues, Questions, draw_places, pretrain
from vlm import checkpoint
from vlm.presets import build
from vlm.prompts import parse_pixel


@pytest.fixture
def blocks(tmp_path):
    """Six frames of large blocks of few colours."""
    rng = np.random.default_rng(0)
    small = rng.choice(np.array([0, 80, 160, 240], np.uint8), size=(6, 5, 4, 3))
    frames = small.repeat(42, axis=1).repeat(40, axis=2)
    info = DatasetInfo("Carnival", ("noop", "fire"), MACHADO2018, "random", None, "abc", {})
    episode = Episode(frames, np.zeros(6, int), np.zeros(6, np.float32), None, True, False, 1)
    EpisodeWriter(tmp_path / "set", info).append(episode)
    return tmp_path / "set"


def test_half_of_the_places_are_drawn_by_colour():
    frame = np.zeros((210, 160, 3), np.uint8)
    frame[100, 80] = (255, 0, 0)
    places = draw_places(frame, 400, np.random.default_rng(0))
    assert places.shape == (400, 2)
    assert 60 < (places == [100, 80]).all(1).sum() < 140  # a quarter; one in 33,600 if drawn evenly
    assert places[:, 0].max() < 210
    assert places[:, 1].max() < 160


def test_questions_are_answered_by_the_frames_own_pixels_and_drawn_from_seed_and_step_alone(blocks):
    vlm, data = build("tiny"), EpisodeDataset(blocks)
    questions = Questions([data], vlm, Args(data=(blocks,), out=blocks, images=2, questions=8, seed=3))
    batch = questions[5]
    assert torch.equal(batch["tokens"], questions[5]["tokens"])
    assert not torch.equal(batch["tokens"], questions[6]["tokens"])
    for stack, asked in zip(batch["frames"], batch["tokens"], strict=True):
        for tokens in asked:
            place, _, answer = vlm.tokenizer.decode(tokens).partition("] rgb: [")
            row, column = (int(number) for number in place.split(","))
            assert parse_pixel(answer) == tuple(stack[-1, row, column].tolist())


def test_the_lesson_learns_to_read_pixels(blocks):
    vlm, data = build("tiny", seed=1), EpisodeDataset(blocks)
    questions = Questions([data], vlm, Args(data=(blocks,), out=blocks, images=4, questions=24))
    lesson = PixelValues(vlm, bf16=False)
    optimizer = torch.optim.Adam(vlm.model.parameters(), lr=5e-3)
    losses = []
    for step in range(60):
        loss = lesson(**questions[step])["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.3 * losses[0]


def test_a_killed_run_goes_on_to_the_same_weights(blocks, tmp_path, monkeypatch):
    def args(out):
        return Args(
            data=(blocks,),
            out=out,
            preset="tiny",
            steps=4,
            images=2,
            questions=4,
            save_every=2,
            warmup_steps=1,
            workers=0,
        )

    pretrain(args(tmp_path / "whole"))
    forward, steps = PixelValues.forward, []

    def killed_in_the_third(self, **batch):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return forward(self, **batch)

    monkeypatch.setattr(pixels.PixelValues, "forward", killed_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        pretrain(args(tmp_path / "broken"))
    pretrain(args(tmp_path / "broken"))
    whole, broken = (checkpoint.load(tmp_path / name / "last").model.state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)
    moved = checkpoint.read_training(tmp_path / "whole" / "last")["moved"]
    assert all(role["moved"] > 0 for role in moved.values())


def test_zero_counts_are_refused(blocks):
    with pytest.raises(EnvsError, match="--questions must be at least 1, got 0"):
        Args(data=(blocks,), out=blocks, questions=0)
