"""Pixel value prediction asks about true pixels, learns them, and resumes to the same weights."""

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import UserError
from common.images import ImageError
from pretrain.answer_objective import IGNORE_INDEX, pad_answers
from pretrain.data.images import EpisodeFrames, SyntheticImages
from pretrain.dense_colors import DenseColorHead
from pretrain.pvp import main, pvp_objective, train_pvp
from pretrain.pvp_config import CONFIGS, PvpConfig, PvpData
from pretrain.pvp_model import start_model
from pretrain.pvp_objective import ImageSampler, PvpObjective, PvpSampler, feature_variation, gaussian_targets
from pretrain.pvp_questions import PixelPromptFormat, downsample_grid, parse_grid, sample_coordinates
from vlm import checkpoint
from vlm.presets import build
from vlm.prompts import parse_pixel
from vlm.training.mixture import Mixture, MixtureDataset

SHORT = ("save_steps=2", "warmup_steps=1", "dataloader_num_workers=0", "bf16=false")


def no_batches(step, rng):
    """The sampler of an objective whose loss is computed on tensors made by hand."""
    raise AssertionError


@pytest.fixture
def blocks(record_frames, tmp_path):
    """Six frames of large blocks of few colours."""
    small = np.random.default_rng(0).choice(np.array([0, 80, 160, 240], np.uint8), size=(6, 5, 4, 3))
    return record_frames(tmp_path / "set", "Carnival", [small.repeat(42, axis=1).repeat(40, axis=2)])


def tiny(blocks, out, **changes) -> PvpConfig:
    fields = {"preset": "tiny", "steps": 4, "images": 2, "questions": 4, "trainer": SHORT}
    return CONFIGS["default"].replace(**{"data": (str(blocks),), "out": out, **fields, **changes})


def test_half_of_the_coordinates_are_sampled_by_colour():
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
    with pytest.raises(ImageError, match=r"expected a grid of 32, 64, .* or native, got 'fine'"):
        downsample_grid(image, "fine")


def test_a_grid_may_have_other_columns_than_rows_or_cells_of_pixels_cut_at_the_edges():
    image = np.arange(5 * 6, dtype=np.uint8).reshape(5, 6, 1).repeat(3, 2)
    assert downsample_grid(image[:4], "2x3")[..., 0].tolist() == [[4, 6, 8], [16, 18, 20]]
    cells = downsample_grid(image, "4px")[..., 0]
    assert cells.shape == (2, 2) == parse_grid("4px").shape_of(5, 6)
    assert cells[0, 0] == round(image[:4, :4, 0].mean())
    assert cells[1].tolist() == [round(image[4:, :4, 0].mean()), round(image[4:, 4:, 0].mean())]
    assert np.array_equal(downsample_grid(image[:4], "2px"), downsample_grid(image[:4], "2x3"))
    assert parse_grid("28x20").cell_size(224, 160) == (8, 8) == parse_grid("8px").cell_size(210, 160)
    for wrong in ("0", "2x", "x3", "8 px", "-4"):
        with pytest.raises(ImageError, match="expected a grid of"):
            parse_grid(wrong)


def test_the_dense_head_is_given_the_colours_of_whole_cells_and_falls_silent(blocks):
    vlm = build("tiny")
    data = tiny(blocks, blocks, size=(64, 64), grid="16px", dense_loss_weight=2.0, dense_loss_fraction=0.5).data
    objective = pvp_objective(vlm, data, steps=8)
    first, later = (objective.sampler(step, np.random.default_rng(0)) for step in (1, 4))
    assert first.dense_weight == pytest.approx(1.5)
    assert np.array_equal(first.colors[0].numpy(), downsample_grid(first.frames[0, -1].numpy(), "16px"))
    assert later.colors is None
    head = objective.dense_head
    features = objective.encode(first)
    head.linear.weight.data.zero_()
    head.linear.bias.data.fill_(0.5)
    assert float(head.loss(features.tokens, first.colors).detach()) == pytest.approx(
        float((0.5 - first.colors / 255).abs().mean()), rel=1e-5
    )
    with pytest.raises(UserError, match="cells lie whole in the image tokens"):
        pvp_objective(vlm, tiny(blocks, blocks, size=(64, 64), grid="9", dense_loss_weight=1.0).data, steps=8)


def test_the_dense_head_reads_the_cells_of_a_token_at_their_places(blocks):
    vlm = build("tiny")
    head = DenseColorHead(vlm, "16px", (64, 64))
    with torch.no_grad():
        head.linear.weight.zero_()
        head.linear.bias.copy_(torch.arange(4.0).repeat_interleave(3))
    found = head(torch.zeros(1, 4, vlm.token_width))[0, :, :, 0]
    assert found.tolist() == [[0, 1, 0, 1], [2, 3, 2, 3], [0, 1, 0, 1], [2, 3, 2, 3]]


@pytest.mark.parametrize("order", ["row,column", "x,y"])
@pytest.mark.parametrize("grid", ["native", "5"])
def test_questions_are_answered_by_the_images_own_colours_and_drawn_from_seed_and_step_alone(blocks, grid, order):
    vlm = build("tiny")
    data = tiny(blocks, blocks, grid=grid, order=order, questions=8).data
    objective = pvp_objective(vlm, data, steps=9)
    batch, again, other = (objective.sampler(step, objective.rng(3, step)) for step in (5, 5, 6))
    assert torch.equal(batch.input_ids, again.input_ids)
    assert not torch.equal(batch.input_ids, other.input_ids)
    for stack, inputs, labels in zip(batch.frames, batch.input_ids, batch.labels, strict=True):
        values = downsample_grid(stack[-1].numpy(), grid)
        for tokens, targets in zip(inputs, labels, strict=True):
            place, _, answer = vlm.tokenizer.decode(tokens).partition("] rgb: [")
            first, second = (int(number) for number in place.split(","))
            row, column = (first, second) if order == "row,column" else (second, first)
            assert parse_pixel(answer) == tuple(values[row, column].tolist())
            learned = targets[targets != IGNORE_INDEX]
            assert torch.equal(learned[:-1], tokens[-len(learned) + 1 :])  # after the question, its answer
            assert int(learned[-1]) == vlm.tokenizer.eos_token_id


def test_shuffled_images_are_answered_for_with_the_colours_of_the_next():
    vlm = build("tiny")
    data = PvpData(size=(60, 60), synthetic=1, grid="4", images=3, questions=5, shuffle_targets=True)
    sampler = PvpSampler(ImageSampler([], data), PixelPromptFormat.from_model(vlm), data, steps=9)
    batch = sampler(8, np.random.default_rng(3))
    for number, inputs in enumerate(batch.input_ids):
        values = downsample_grid(batch.frames[(number + 1) % 3][-1].numpy(), "4")
        for tokens in inputs:
            place, _, answer = vlm.tokenizer.decode(tokens).partition("] rgb: [")
            row, column = (int(part) for part in place.split(","))
            assert parse_pixel(answer) == tuple(values[row, column].tolist())


def learn(objective, steps, rate=5e-3):
    """The loss and the metrics of every step of a plain training."""
    optimizer = torch.optim.Adam(objective.vlm.model.parameters(), lr=rate)
    found = []
    for step in range(steps):
        batch = objective.sampler(step, objective.rng(0, step))
        losses = objective.loss(objective.encode(batch), batch)
        optimizer.zero_grad()
        losses.loss.backward()
        optimizer.step()
        found.append({name: float(value.detach()) for name, value in {"loss": losses.loss, **losses.metrics}.items()})
    return found


@pytest.mark.slow
def test_a_model_learns_to_read_pixels(blocks):
    data = tiny(blocks, blocks, images=4, questions=24).data
    found = learn(pvp_objective(build("tiny", seed=1), data, steps=2000), 60)
    assert np.mean([one["loss"] for one in found[-5:]]) < 0.3 * found[0]["loss"]
    assert found[0]["exact_match"] == 0
    assert np.mean([one["exact_match"] for one in found[-30:]]) > 0.005  # all three numbers right, of 256 each
    assert all(0 <= one["feature_variation"] < 10 for one in found)
    assert found[0]["feature_variation"] > 0.01


def test_metrics_are_those_of_hand_made_logits():
    vlm = build("tiny")
    prompts = PixelPromptFormat.from_model(vlm)
    objective = PvpObjective(vlm, no_batches, prompts)
    colours = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
    _, labels = pad_answers([prompts.questions_with_answers(np.array([[1, 2], [3, 4]]), colours)], 0)
    answers = labels[labels != IGNORE_INDEX]
    logits = torch.full((len(answers), len(vlm.tokenizer)), -1e4)
    logits[torch.arange(len(answers)), answers] = 0.0
    perfect = objective.answer_metrics(logits, answers, labels)
    assert [float(perfect[name]) for name in ("exact_match", "mae", "mae_expected")] == [1, 0, 0]
    first = prompts.number_token_ids[torch.tensor([10, 16])]
    logits[0, first] = torch.tensor([0.0, 0.1])  # of two values, 10 and 16, the wrong one is a little likelier
    found = objective.answer_metrics(logits, answers, labels)
    assert float(found["exact_match"]) == 0.5
    assert float(found["mae"]) == pytest.approx(6 / 6)
    share = 1 / (1 + np.exp(-0.1))
    assert float(found["mae_expected"]) == pytest.approx(6 * share / 6, rel=1e-4)


def test_gaussian_targets_prefer_a_near_miss_to_a_far_one_and_plain_ones_do_not():
    vlm = build("tiny")
    prompts = PixelPromptFormat.from_model(vlm)
    assert torch.allclose(gaussian_targets(3.0).sum(1), torch.ones(256))
    answers = prompts.number_token_ids[torch.tensor([100])]
    losses = {}
    for std in (0.0, 3.0):
        objective = PvpObjective(vlm, no_batches, prompts, std)
        for predicted in (102, 180):
            logits = torch.zeros(1, len(vlm.tokenizer))
            logits[0, prompts.number_token_ids[predicted]] = 5.0
            losses[std, predicted] = float(objective.answer_loss(logits, answers))
    assert losses[0.0, 102] == pytest.approx(losses[0.0, 180])
    assert losses[3.0, 102] < losses[3.0, 180] - 0.1


def test_variation_is_the_deviation_over_images_by_the_norm_of_the_mean():
    tokens = torch.tensor([[[3.0, 4.0]], [[3.0, 4.0]]])
    assert feature_variation(tokens).item() == 0
    tokens[1, 0, 0] = 5.0  # mean (4, 4), deviation (sqrt 2, 0)
    assert feature_variation(tokens).item() == pytest.approx(2**0.5 / 32**0.5)


def test_activation_checkpointing_trains_the_same_weights(blocks, tmp_path):
    train_pvp(tiny(blocks, tmp_path / "plain"))
    train_pvp(tiny(blocks, tmp_path / "saving", trainer=(*SHORT, "gradient_checkpointing=true")))
    plain, saving = (checkpoint.load(tmp_path / name / "last").model.state_dict() for name in ("plain", "saving"))
    assert max(float((plain[name] - saving[name]).abs().max()) for name in plain) < 1e-3
    start = build("tiny").model.state_dict()
    assert max(float((saving[name] - start[name]).abs().max()) for name in start) > 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["full", "lora"])
def test_a_killed_run_resumes_to_the_same_weights(blocks, tmp_path, kill_at_step, decoder):
    train_pvp(tiny(blocks, tmp_path / "whole", decoder=decoder))
    calls = kill_at_step(PvpObjective, 3)
    with pytest.raises(KeyboardInterrupt):
        train_pvp(tiny(blocks, tmp_path / "broken", decoder=decoder))
    train_pvp(tiny(blocks, tmp_path / "broken", decoder=decoder))
    assert len(calls) == 5  # the first two steps were not done again
    whole, broken = (checkpoint.load(tmp_path / name / "last").model.state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_a_data_worker_draws_what_the_training_itself_would(blocks, tmp_path):
    alone = train_pvp(tiny(blocks, tmp_path / "alone"))
    helped = train_pvp(tiny(blocks, tmp_path / "helped", trainer=(*SHORT, "dataloader_num_workers=2")))
    one, other = (checkpoint.load(last).model.state_dict() for last in (alone, helped))
    assert all(torch.equal(one[name], other[name]) for name in one)


def changed(last):
    return {role: one["changed"] for role, one in checkpoint.read_training(last)["parameter_updates"].items()}


def test_each_role_trains_or_stays_as_configured_and_the_report_proves_it(blocks, tmp_path, capsys):
    assert all(count > 0 for count in changed(train_pvp(tiny(blocks, tmp_path / "all"))).values())
    frozen = changed(train_pvp(tiny(blocks, tmp_path / "frozen", encoder_learning_rate=0)))
    assert frozen["encoder"] == 0 < frozen["connector"]
    assert main([
        "--data", str(blocks), "--out", str(tmp_path / "sees"), "--preset", "tiny", "--steps", "4", "--images", "2",
        "--questions", "4", "--decoder", "frozen", "--connector-learning-rate", "0", "--trainer", *SHORT,
    ]) == 0  # fmt: skip
    sees = changed(tmp_path / "sees" / "last")
    assert sees["decoder"] == sees["connector"] == 0 < sees["encoder"]
    assert f"encoder: {sees['encoder']} of {sees['encoder']} tensors changed" in capsys.readouterr().out


def test_lora_adapts_the_decoders_layers_beside_a_trained_encoder_and_leaves_a_plain_checkpoint(blocks, tmp_path):
    last = train_pvp(tiny(blocks, tmp_path / "lora", decoder="lora", learning_rate=0.05))
    vlm = build("tiny")
    layers = sum(isinstance(module, torch.nn.Linear) for module in vlm.decoder.modules())
    assert changed(last)["decoder"] == layers
    assert changed(last)["encoder"] > 0
    assert set(checkpoint.load(last).model.state_dict()) == set(vlm.model.state_dict())


def test_grids_of_a_mixture_come_at_their_weights_and_teach_one_model(blocks):
    vlm = build("tiny")
    coarse, fine = (pvp_objective(vlm, tiny(blocks, blocks, grid=grid).data, 300) for grid in ("5", "8"))
    mixture = Mixture({"coarse": coarse, "fine": fine}, [3, 1])
    dataset = MixtureDataset(mixture, 300, seed=0)
    step = next(step for step in range(300) if dataset[step].objectives == (1,))
    batch, own = dataset[step].batches[0], fine.sampler(step, fine.rng(0, step))
    assert torch.equal(batch.input_ids, own.input_ids)
    losses, alone = mixture.loss(dataset[step]), fine.loss(fine.encode(own), own)
    assert losses.loss.item() == losses.metrics["fine/loss"].item() == alone.loss.item()
    assert set(losses.metrics) == {"fine/loss"} | {f"fine/{name}" for name in alone.metrics}


def test_a_clip_tower_can_start_from_sinusoidal_positions_and_learns_from_synthetic_images_alone(tmp_path):
    config = CONFIGS["default"].replace(
        out=tmp_path, preset="tiny-clip", sinusoidal_init=True, grid="32", synthetic=1.0, curriculum_fraction=1.0,
        label_std=4.0, steps=2, images=2, questions=4, trainer=SHORT,
    )  # fmt: skip
    vlm = checkpoint.load(train_pvp(config))
    table = start_model(config).model.get_input_embeddings().weight
    numbers = table[PixelPromptFormat.from_model(vlm).number_token_ids]
    near, far = ((numbers[100] * numbers[other]).sum() for other in (101, 160))
    assert near > 2 * far.abs()


def test_synthetic_images_become_finer_over_the_curriculum():
    sampler = ImageSampler([SyntheticImages(0, 20, 20)], PvpData(size=(20, 20), synthetic=1, curriculum_fraction=0.5))
    few, many = (
        np.mean(
            [len(np.unique(sampler(np.random.default_rng(seed), done)[-1].reshape(-1, 3), axis=0)) for seed in range(9)]
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
        ({"curriculum_fraction": -1}, "--curriculum-fraction must be from 0 to 1, got -1"),
        ({"grid": "fine"}, "expected a grid"),
        ({"vision_tower": "a", "init": "b"}, "give one"),
        ({"shuffle_targets": True, "images": 1}, "--shuffle-targets needs --images of at least 2"),
        ({"attention_supervision_weight": -1}, "--attention-supervision-weight must be at least 0, got -1"),
    ],
)
def test_contradictory_settings_are_refused(blocks, fields, message):
    with pytest.raises(UserError, match=message):
        tiny(blocks, blocks, **fields)


def test_a_training_without_images_is_refused(blocks, tmp_path):
    with pytest.raises(UserError, match="--data is missing"):
        train_pvp(tiny(blocks, tmp_path / "run", data=()))


def test_a_grid_finer_than_the_images_is_refused_before_training(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    with pytest.raises(ImageError, match="at least 32 x 32"):
        main(["--data", str(tmp_path), "--out", str(tmp_path / "run"), "--preset", "tiny", "--grid", "32",
              "--size", "8", "8"])  # fmt: skip


def test_half_of_the_frames_of_a_game_are_repeated_as_still_images(blocks):
    sampler = ImageSampler([EpisodeFrames(blocks)], PvpData(size=(210, 160)), history=2)
    rng = np.random.default_rng(0)
    drawn = [sampler(rng, 1.0) for _ in range(60)]
    known = EpisodeFrames(blocks)
    moving = [stack for stack in drawn if (stack[0] != stack[1]).any()]
    assert 15 < len(moving) < 40  # the first of six frames has none before it either
    pairs = [known.frame_stack(index, 2) for index in range(len(known))]
    assert all(any((stack == pair).all() for pair in pairs) for stack in moving)
