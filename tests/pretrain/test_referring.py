"""Referring segmentation learns masks with every role, resumes after a kill, and draws the masks."""

import numpy as np
import pytest
import torch
from PIL import Image

from common.command import run
from common.errors import UserError
from common.images import read_image
from pretrain.referring import show
from pretrain.referring.mask_objective import (
    MaskHeadObjective,
    MaskSampler,
    area_normalized_bce,
    dice_loss,
)
from pretrain.referring.referring_config import CONFIGS, ReferringData
from pretrain.referring.samples import pad_stack
from pretrain.referring.scene_dataset import SceneDataset
from pretrain.referring.train import open_referring_source, train_referring
from vlm import checkpoint
from vlm.checkpoint import CheckpointError
from vlm.presets import build
from vlm.segmentation.mask_head import MaskHead
from vlm.segmentation.referring_segmenter import load_segmenter

SHORT = ("save_steps=2", "warmup_steps=1", "dataloader_num_workers=0", "bf16=false")


def small(data, out, **changes):
    fields = {"preset": "tiny", "steps": 4, "images": 2, "expressions": 3, "hidden_channels": 8, "trainer": SHORT}
    return CONFIGS["default"].replace(data=data, out=out, **{**fields, **changes})


def test_batches_are_drawn_from_seed_and_step_alone_and_hold_true_masks(two_games):
    vlm = build("tiny")
    source = SceneDataset(two_games, "train", 1, vlm.history)
    objective = MaskHeadObjective(
        vlm, MaskHead.of(vlm, 8), MaskSampler(vlm.tokenizer, source, ReferringData(images=2, expressions=3))
    )
    batch, again, other = (objective.sampler(step, objective.rng(5, step)) for step in (4, 4, 5))
    assert all(torch.equal(getattr(batch, name), getattr(again, name)) for name in vars(batch) if name != "images")
    assert not torch.equal(batch.frames, other.frames)
    assert batch.frames.shape == (2, 2, 210, 160, 3)
    assert batch.masks.shape == (2, 3, 210, 160)
    words = vlm.tokenizer.decode(batch.input_ids[0, 0, : batch.lengths[0, 0]])
    assert words.startswith("the ")
    assert words.endswith(":")


def test_frames_of_several_sizes_are_padded_with_black():
    padded = pad_stack([np.ones((1, 2, 3, 3), np.uint8), np.ones((1, 4, 2, 3), np.uint8)])
    assert padded.shape == (2, 1, 4, 3, 3)
    assert padded[0, 0, 2:].sum() == padded[1, 0, :, 2:].sum() == 0
    assert padded.sum() == 3 * (6 + 8)


def test_dice_is_none_for_the_truth_and_for_finding_nothing_where_nothing_is():
    truth = torch.zeros(3, 4, 4)
    truth[0, :2] = truth[1, :2] = 1
    shown = torch.stack([truth[0], 1 - truth[1], truth[2]])
    assert dice_loss(shown, truth).tolist() == pytest.approx([0, 1 - 1 / 17, 0])


def test_a_small_mask_weighs_as_much_as_a_large_one():
    wanted = torch.zeros(3, 40, 40)
    wanted[0, :10, :10] = wanted[1, :30, :30] = 1
    assert area_normalized_bce(wanted, wanted).tolist() == pytest.approx([1, 1, 0])
    assert area_normalized_bce(1 - wanted, wanted)[2] == 1600 / 64


def test_a_model_overfits_one_batch_and_reports_the_iou_of_its_targets(two_games):
    vlm = build("tiny", seed=1)
    torch.manual_seed(0)
    head = MaskHead.of(vlm, 16)
    source = SceneDataset(two_games, "train", 1, vlm.history, no_target_fraction=0)
    objective = MaskHeadObjective(vlm, head, MaskSampler(vlm.tokenizer, source, ReferringData(images=2, expressions=1)))
    batch = objective.sampler(0, objective.rng(0, 0))
    optimizer = torch.optim.AdamW([*vlm.model.parameters(), *head.parameters()], lr=5e-3)
    first = objective.loss(objective.encode(batch), batch)
    for _ in range(60):
        losses = objective.loss(objective.encode(batch), batch)
        optimizer.zero_grad()
        losses.loss.backward()
        optimizer.step()
    assert first.metrics["iou"] < 0.1
    assert losses.metrics["iou"] > 0.6
    parts = losses.metrics["bce"] + losses.metrics["dice"]
    assert float(losses.loss.detach()) == pytest.approx(float(parts), abs=1e-5)


def test_a_killed_run_resumes_to_the_same_weights_head_included(two_games, tmp_path, kill_at_step):
    whole = train_referring(small(two_games, tmp_path / "whole"))
    calls = kill_at_step(MaskHeadObjective, 3)
    with pytest.raises(KeyboardInterrupt):
        train_referring(small(two_games, tmp_path / "killed"))
    killed = train_referring(small(two_games, tmp_path / "killed"))
    assert len(calls) == 3 + 2
    for load in (lambda path: checkpoint.load(path).model, MaskHead.load):
        one, other = load(whole).state_dict(), load(killed).state_dict()
        assert all(torch.equal(one[name], other[name]) for name in one)
    updates = checkpoint.read_training(whole)["parameter_updates"]
    assert all(updates[role]["changed"] > 0 for role in ("encoder", "connector", "decoder"))


def test_a_frozen_encoder_stays_and_lora_leaves_a_plain_model(two_games, tmp_path):
    frozen = train_referring(small(two_games, tmp_path / "frozen", encoder_learning_rate=0.0))
    assert checkpoint.read_training(frozen)["parameter_updates"]["encoder"]["changed"] == 0
    lora = train_referring(small(two_games, tmp_path / "lora", decoder="lora", lora_rank=2, init=frozen))
    assert list(checkpoint.load(lora).model.state_dict()) == list(checkpoint.load(frozen).model.state_dict())
    assert not torch.equal(MaskHead.load(lora).controller.weight, MaskHead.load(frozen).controller.weight)


@pytest.mark.parametrize("of", ["game", "image"])
def test_a_mask_is_drawn_on_a_frame_of_a_game_or_on_an_image_file(two_games, tmp_path, of, capsys):
    last = train_referring(small(two_games, tmp_path / "run", steps=1))
    Image.fromarray(np.zeros((60, 40, 3), np.uint8)).save(tmp_path / "mine.png")
    arguments = ["--game", "pong"] if of == "game" else ["--image", str(tmp_path / "mine.png")]
    file = tmp_path / "shown" / "ball.png"
    assert show.main(["--init", str(last), "--expression", "the ball", "--out", str(file), *arguments]) == 0
    assert read_image(file).shape == ((630, 480, 3) if of == "game" else (180, 120, 3))
    assert "'the ball': " in capsys.readouterr().out


def test_a_mask_is_not_drawn_over_its_picture(tmp_path, capsys):
    Image.fromarray(np.zeros((60, 40, 3), np.uint8)).save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    arguments = ["--expression", "the ball", "--image", str(tmp_path / "x.png")]
    assert run(lambda: show.main([*arguments, "--out", str(tmp_path / "a" / ".." / "x.png")])) == 2
    assert "would be written over what is read" in capsys.readouterr().err
    assert run(lambda: show.main([*arguments, "--out", str(tmp_path / "x.txt")])) == 2
    assert "expected --out to end in .png" in capsys.readouterr().err
    assert (tmp_path / "x.png").read_bytes() == content


def test_contradictory_settings_are_refused(tmp_path):
    with pytest.raises(UserError, match="--data is missing"):
        train_referring(small((), tmp_path))
    for arguments in (["--expression", "the ball"], ["--expression", "", "--game", "pong"]):
        with pytest.raises(UserError, match="expected --expression and either --game or --image"):
            show.main(arguments)
    with pytest.raises(UserError, match="--expressions must be at least 1, got 0"):
        small((tmp_path,), tmp_path, expressions=0)


def test_points_in_text_are_trained_and_drawn_without_a_head(two_games, tmp_path, capsys):
    last = train_referring(small(two_games, tmp_path / "run", mask="points", grid=8, points=3, steps=2))
    training = checkpoint.read_training(last)
    assert training["point_grid"] == 8
    assert load_segmenter(last).logit_bias == training["logit_bias"]
    assert not (last / "mask_head.json").exists()
    words = ["--init", str(last), "--expression", "the ball", "--game", "pong", "--out", str(tmp_path / "ball.png")]
    assert show.main(words) == 0
    assert "'the ball': " in capsys.readouterr().out


def test_one_model_trains_on_both_objectives_and_predicts_with_either(two_games, tmp_path):
    config = small(two_games, tmp_path / "run", mask="both", grid=8, points=3, steps=4, dtype="bfloat16")
    last = train_referring(config)
    head, points = load_segmenter(last), load_segmenter(last, points=True)
    assert (head.method, points.method) == ("mask head", "points of a grid of 8, the probability of 1 against 0")
    frame = np.zeros((1, 210, 160, 3), np.uint8)
    assert head.predict(frame, ["the ball"]).shape == points.predict(frame, ["the ball"]).shape == (1, 210, 160)
    assert (last / "model.safetensors").stat().st_size < 0.6 * sum(
        tensor.numel() * 4 for tensor in checkpoint.load(last).model.state_dict().values()
    )
    alone = train_referring(small(two_games, tmp_path / "head", init=last, steps=1))
    with pytest.raises(CheckpointError, match="trained on points"):
        load_segmenter(alone, points=True)


def test_refcoco_is_trained_on_at_one_size_and_masks_go_with_pictures(write_refcoco, tmp_path):
    refcoco = write_refcoco("train", (90, 120), 20, 30, 60, 90)
    config = small((refcoco,), tmp_path / "run", dataset="RefCOCO", size=(64, 48), expressions=2)
    drawn = open_referring_source(config.data, 4, history=2, seed=0).draw(np.random.default_rng(0), 3)
    assert drawn.frames.shape == (2, 64, 48, 3)
    assert sorted(set(drawn.expressions)) == ["object", "thing"]
    red = (drawn.frames[-1] == (200, 30, 30)).all(-1)
    assert (drawn.masks == red).mean() > 0.98
    last = train_referring(config)
    assert load_segmenter(last).size == (64, 48)
    assert load_segmenter(last).predict(np.zeros((1, 50, 70, 3), np.uint8), ["thing"]).shape == (1, 50, 70)


def test_photographs_and_frames_of_games_are_not_mixed_up(tmp_path):
    with pytest.raises(UserError, match="did you mean refcoco"):
        small((tmp_path,), tmp_path, dataset="refcoca")
    with pytest.raises(UserError, match="expected one folder of REFER's layout for refcoco, got 2"):
        small((tmp_path, tmp_path), tmp_path, dataset="refcoco")
    with pytest.raises(UserError, match="--size is for photographs"):
        small((tmp_path,), tmp_path, size=(8, 8))
    assert small((tmp_path,), tmp_path, dataset="refcoco").data.size == (224, 224)
