"""Pixel value prediction asks about true pixels, learns them, and resumes to the same weights."""

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import UserError
from envs.episodes import DatasetInfo, Episode, EpisodeWriter
from envs.protocol import MACHADO2018
from pretrain import pvp
from pretrain.data.images import EpisodeFrames, ImageError, SyntheticImages
from pretrain.pvp import Args, main, make_lesson, train_pvp
from pretrain.pvp_objective import ImageSampler, PixelQADataset, PvpObjective, feature_variation, soft_targets
from pretrain.pvp_prompts import IGNORE_INDEX, PixelPromptFormat, downsample_grid, sample_coordinates
from vlm import checkpoint
from vlm.presets import build
from vlm.prompts import parse_pixel
from vlm.training.mixture import MixtureDataset, MixtureObjective, Task
from vlm.training.trainer import Objective


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
    places = sample_coordinates(frame, 400, np.random.default_rng(0))
    assert places.shape == (400, 2)
    assert 60 < (places == [100, 80]).all(1).sum() < 140  # a quarter; one in 33,600 if drawn evenly
    assert places[:, 0].max() < 210
    assert places[:, 1].max() < 160


def test_a_grid_asks_for_the_mean_colour_of_its_cells_and_the_native_one_for_pixels():
    image = np.zeros((4, 4, 3), np.uint8)
    image[:2, 2:] = np.array([[[0, 10, 20], [100, 30, 20]], [[0, 10, 20], [100, 30, 20]]])
    assert downsample_grid(image, "2").tolist() == [[[0, 0, 0], [50, 20, 20]], [[0, 0, 0], [0, 0, 0]]]
    assert np.array_equal(downsample_grid(image, "native"), image)
    with pytest.raises(ImageError, match="at least 32 x 32 pixels for grid 32, got 4 x 4"):
        downsample_grid(image, "32")
    with pytest.raises(ImageError, match="expected a grid of 32, 64 or native, got 'fine'"):
        downsample_grid(image, "fine")


@pytest.mark.parametrize("order", ["row,column", "x,y"])
@pytest.mark.parametrize("grid", ["native", "5"])
def test_questions_are_answered_by_the_images_own_colours_and_drawn_from_seed_and_step_alone(blocks, grid, order):
    vlm = build("tiny")
    language = PixelPromptFormat.of(vlm, order)
    draw = ImageSampler([EpisodeFrames(blocks)], (210, 160), vlm.history)
    questions = PixelQADataset(draw, language, grid, steps=9, images=2, count=8, seed=3)
    batch = questions[5]
    assert torch.equal(batch["read"], questions[5]["read"])
    assert not torch.equal(batch["read"], questions[6]["read"])
    for stack, read, said in zip(batch["frames"], batch["read"], batch["said"], strict=True):
        values = downsample_grid(stack[-1].numpy(), grid)
        for tokens, wanted in zip(read, said, strict=True):
            place, _, answer = vlm.tokenizer.decode(tokens).partition("] rgb: [")
            first, second = (int(number) for number in place.split(","))
            row, column = (first, second) if order == "row,column" else (second, first)
            assert parse_pixel(answer) == tuple(values[row, column].tolist())
            told = wanted[wanted != IGNORE_INDEX]
            assert torch.equal(told[:-1], tokens[-len(told) + 1 :])  # after the question, its answer
            assert int(told[-1]) == vlm.tokenizer.eos_token_id


def test_shuffled_images_are_answered_for_with_the_colours_of_the_next(blocks):
    vlm = build("tiny")
    language, draw = PixelPromptFormat.of(vlm), ImageSampler([], (60, 60), 1, synthetic=1)
    batch = PixelQADataset(draw, language, "4", steps=9, images=3, count=5, seed=3, shuffled=True)[8]
    for number, read in enumerate(batch["read"]):
        values = downsample_grid(batch["frames"][(number + 1) % 3][-1].numpy(), "4")
        for tokens in read:
            place, _, answer = vlm.tokenizer.decode(tokens).partition("] rgb: [")
            row, column = (int(part) for part in place.split(","))
            assert parse_pixel(answer) == tuple(values[row, column].tolist())


def learn(lesson, questions, steps, rate=5e-3):
    """The figures of every step of a plain training."""
    optimizer = torch.optim.Adam(lesson.vlm.model.parameters(), lr=rate)
    found = []
    for step in range(steps):
        out = lesson(**questions[step])
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        found.append({name: float(value.detach()) for name, value in out.items()})
    return found


def test_the_lesson_learns_to_read_pixels(blocks):
    vlm = build("tiny", seed=1)
    lesson, questions = make_lesson(vlm, Args(data=(str(blocks),), out=blocks, images=4, questions=24, bf16=False))
    found = learn(lesson, questions, 60)
    assert np.mean([one["loss"] for one in found[-5:]]) < 0.3 * found[0]["loss"]
    assert found[0]["exact"] == 0
    assert np.mean([one["exact"] for one in found[-30:]]) > 0.005  # all three numbers right, of 256 each
    assert all(0 <= one["variation"] < 10 for one in found)
    assert found[0]["variation"] > 0.01


def test_figures_are_those_of_hand_made_logits():
    vlm = build("tiny")
    language = PixelPromptFormat.of(vlm)
    lesson = PvpObjective(vlm, False, language)
    _, said = language.lesson(np.array([[1, 2], [3, 4]]), np.array([[10, 20, 30], [40, 50, 60]], np.uint8))
    said = torch.tensor([said])
    wanted = said[said != IGNORE_INDEX]
    logits = torch.full((len(wanted), len(vlm.tokenizer)), -1e4)
    logits[torch.arange(len(wanted)), wanted] = 0.0
    perfect = lesson.figures(logits, wanted, said)
    assert [float(perfect[name]) for name in ("exact", "mae", "mae_expected")] == [1, 0, 0]
    first = language.numbers[torch.tensor([10, 16])]
    logits[0, first] = torch.tensor([0.0, 0.1])  # of two values, 10 and 16, the wrong one is a little likelier
    found = lesson.figures(logits, wanted, said)
    assert float(found["exact"]) == 0.5
    assert float(found["mae"]) == pytest.approx(6 / 6)
    share = 1 / (1 + np.exp(-0.1))
    assert float(found["mae_expected"]) == pytest.approx(6 * share / 6, rel=1e-4)


def test_soft_targets_prefer_a_near_miss_to_a_far_one_and_plain_ones_do_not():
    vlm = build("tiny")
    language = PixelPromptFormat.of(vlm)
    assert torch.allclose(soft_targets(3.0).sum(1), torch.ones(256))
    wanted = language.numbers[torch.tensor([100])]
    losses = {}
    for soft in (0.0, 3.0):
        lesson = PvpObjective(vlm, False, language, soft)
        for said in (102, 180):
            logits = torch.zeros(1, len(vlm.tokenizer))
            logits[0, language.numbers[said]] = 5.0
            losses[soft, said] = float(lesson.loss(logits, wanted))
    assert losses[0.0, 102] == pytest.approx(losses[0.0, 180])
    assert losses[3.0, 102] < losses[3.0, 180] - 0.1


def test_variation_is_the_deviation_over_images_by_the_norm_of_the_mean():
    tokens = torch.tensor([[[3.0, 4.0]], [[3.0, 4.0]]])
    assert feature_variation(tokens).item() == 0
    tokens[1, 0, 0] = 5.0  # mean (4, 4), deviation (sqrt 2, 0)
    assert feature_variation(tokens).item() == pytest.approx(2**0.5 / 32**0.5)


def tiny(blocks, out, **more):
    fields = {"steps": 4, "images": 2, "questions": 4, "save_every": 2, "warmup_steps": 1, "workers": 0}
    return Args(data=(str(blocks),), out=out, preset="tiny", **{**fields, **more})


@pytest.mark.parametrize("decoder", ["full", "lora"])
def test_a_killed_run_goes_on_to_the_same_weights(blocks, tmp_path, monkeypatch, decoder):
    train_pvp(tiny(blocks, tmp_path / "whole", decoder=decoder))
    forward, steps = PvpObjective.forward, []

    def killed_in_the_third(self, **batch):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return forward(self, **batch)

    monkeypatch.setattr(PvpObjective, "forward", killed_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        train_pvp(tiny(blocks, tmp_path / "broken", decoder=decoder))
    train_pvp(tiny(blocks, tmp_path / "broken", decoder=decoder))
    assert len(steps) == 5  # the first two steps were not done again
    whole, broken = (checkpoint.load(tmp_path / name / "last").model.state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def moved(run):
    return {role: one["changed"] for role, one in checkpoint.read_training(run / "last")["parameter_updates"].items()}


def test_each_role_trains_or_stays_as_it_is_told_and_the_report_proves_it(blocks, tmp_path, capsys):
    train_pvp(tiny(blocks, tmp_path / "all"))
    assert all(count > 0 for count in moved(tmp_path / "all").values())
    train_pvp(tiny(blocks, tmp_path / "frozen", encoder_learning_rate=0))
    assert moved(tmp_path / "frozen")["encoder"] == 0 < moved(tmp_path / "frozen")["connector"]
    capsys.readouterr()
    train_pvp(tiny(blocks, tmp_path / "sees", decoder="frozen", connector_learning_rate=0))
    assert moved(tmp_path / "sees")["decoder"] == moved(tmp_path / "sees")["connector"] == 0
    assert "encoder: " in capsys.readouterr().out
    assert moved(tmp_path / "sees")["encoder"] > 0


def test_lora_adapts_the_decoders_layers_beside_a_trained_encoder_and_leaves_a_plain_checkpoint(blocks, tmp_path):
    train_pvp(tiny(blocks, tmp_path / "lora", decoder="lora", learning_rate=0.05))
    vlm = build("tiny")
    layers = sum(isinstance(module, torch.nn.Linear) for module in vlm.decoder.modules())
    assert moved(tmp_path / "lora")["decoder"] == layers
    assert moved(tmp_path / "lora")["encoder"] > 0
    names = set(checkpoint.load(tmp_path / "lora" / "last").model.state_dict())
    assert names == set(vlm.model.state_dict())


def test_tasks_of_a_mixture_come_at_their_shares_and_teach_one_model(blocks):
    vlm = build("tiny")
    parts = {grid: make_lesson(vlm, Args(data=(str(blocks),), out=blocks, grid=grid, steps=300)) for grid in ("5", "8")}
    tasks = [Task(f"grid{grid}", *parts[grid], share) for grid, share in (("5", 3.0), ("8", 1.0))]
    drawn = [int(np.random.default_rng([0, step, 2]).choice(2, p=[0.75, 0.25])) for step in range(300)]
    assert 50 < sum(drawn) < 100
    batches = MixtureDataset(tasks, 300, seed=0)
    step = drawn.index(1)
    batch = batches[step]
    assert int(batch["task"]) == 1
    assert torch.equal(batch["read"], parts["8"][1][step]["read"])
    out = MixtureObjective(tasks)(**batch)
    alone = parts["8"][0](**parts["8"][1][step])
    assert out["loss"].item() == out["grid8_loss"].item() == alone["loss"].item()
    assert "grid5_loss" not in out
    with pytest.raises(UserError, match="share above 0"):
        Task("nothing", *parts["5"], 0.0)
    with pytest.raises(UserError, match="at least 301 batches"):
        MixtureDataset(tasks, 301, seed=0)


def test_each_task_of_a_mixture_computes_attention_in_its_own_way():
    seen = []

    class Looking(Objective):
        def forward(self):
            seen.append(self.vlm.decoder.config._attn_implementation)
            return {"loss": torch.zeros(())}

    vlm = build("tiny", seed=0)
    mixed = MixtureObjective([Task(kind, Looking(vlm, None, kind), [], 1.0) for kind in ("eager", "sdpa")])
    for task in (0, 1, 1, 0):
        mixed(torch.tensor(task))
    assert seen == ["eager", "sdpa", "sdpa", "eager"]


def test_a_clip_tower_can_start_from_codes_and_learns_from_synthetic_images_alone(tmp_path):
    args = Args(
        out=tmp_path, preset="tiny-clip", start_codes=True, grid="32", synthetic=1.0, ramp=1.0, soft=4.0,
        steps=2, images=2, questions=4, workers=0, warmup_steps=1,
    )  # fmt: skip
    vlm = checkpoint.load(train_pvp(args))
    table = pvp.start_model(args).model.get_input_embeddings().weight
    numbers = table[PixelPromptFormat.of(vlm).numbers]
    near, far = ((numbers[100] * numbers[other]).sum() for other in (101, 160))
    assert near > 2 * far.abs()


def test_strange_images_grow_stranger_over_the_ramp():
    draw = ImageSampler([SyntheticImages(0, 20, 20)], (20, 20), synthetic=1.0, ramp=0.5)
    few, many = (
        np.mean(
            [len(np.unique(draw(np.random.default_rng(seed), done)[-1].reshape(-1, 3), axis=0)) for seed in range(9)]
        )
        for done in (0.0, 0.5)
    )
    assert few == 1
    assert many > 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"questions": 0}, "--questions must be at least 1, got 0"),
        ({"augmentation": 1.5}, "--augmentation must be from 0 to 1, got 1.5"),
        ({"data": ()}, "--data is missing"),
        ({"grid": "fine"}, "expected a grid"),
        ({"tower": "a", "init": "b"}, "give one"),
    ],
)
def test_contradictions_are_refused(blocks, fields, message):
    with pytest.raises(UserError, match=message):
        Args(**{"data": (str(blocks),), "out": blocks, **fields})


def test_a_grid_finer_than_the_images_is_refused_before_training(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    with pytest.raises(ImageError, match="at least 32 x 32"):
        main(["--data", str(tmp_path), "--out", str(tmp_path / "run"), "--preset", "tiny", "--grid", "32",
              "--size", "8", "8"])  # fmt: skip


def test_every_second_frame_of_a_game_is_shown_as_a_still_picture(blocks):
    draw = ImageSampler([EpisodeFrames(blocks)], (210, 160), history=2)
    rng = np.random.default_rng(0)
    drawn = [draw(rng, 1.0) for _ in range(60)]
    known = EpisodeFrames(blocks)
    moving = [stack for stack in drawn if (stack[0] != stack[1]).any()]
    assert 15 < len(moving) < 40  # the first of six frames has none before it either
    pairs = [known.frame_stack(index, 2) for index in range(len(known))]
    assert all(any((stack == pair).all() for pair in pairs) for stack in moving)
