"""Cloning builds its targets, learns them, resumes to the same weights and refuses data that it cannot learn from."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
import torch

from agents import checkpoint_selection, clone
from agents.auxiliary_action_head import AuxiliaryActionHead
from agents.bc_dataset import BCSampler, FrameAugmentation, build_targets, flipped_actions, load_labelled_datasets
from agents.bc_objective import BehaviorCloningObjective
from agents.clone_config import CONFIGS
from common.command import run
from common.errors import UserError
from common.files import write_text_atomically
from envs.episodes import DatasetInfo, Episode, EpisodeDataset, EpisodeWriter
from envs.play_conditions import shift_frames
from envs.protocol import MACHADO2018
from vlm import checkpoint
from vlm.presets import build
from vlm.training.fit import AUXILIARY
from vlm.training.lora import save_plain

NAMES = ("noop", "fire", "right", "left", "right fire", "left fire")


def write_set(path, values, names=NAMES, game="Carnival", seed=1):
    """A dataset of one game whose frames are noise; `values` is float[T, A] or None."""
    length = 24 if values is None else len(values)
    rng = np.random.default_rng(seed)
    info = DatasetInfo(game, names, MACHADO2018, "test", "planner", "abc", {})
    episode = Episode(
        frames=rng.integers(0, 256, (length, 214, 160, 3), dtype=np.uint8),
        actions=rng.integers(len(names), size=length),
        rewards=np.ones(length, np.float32),
        action_values=values,
        terminated=True,
        truncated=False,
        seed=seed,
    )
    EpisodeWriter(path, info).append(episode)
    return path


@pytest.fixture
def labelled(tmp_path):
    values = np.random.default_rng(0).normal(0, 50, (24, 6)).astype(np.float32)
    return write_set(tmp_path / "labelled", values)


def command(*arguments):
    return run(lambda: clone.main([str(argument) for argument in arguments]))


SMALL = ("--preset", "tiny", "--batch-size", 4, "--eval-every", 0)


def trainer(**options):
    """`--trainer` options of a tiny run."""
    options = {"warmup_steps": 1, "dataloader_num_workers": 0, "save_steps": 2, **options}
    return ("--trainer", *(f"{name}={value}" for name, value in options.items()))


def batch_of(sampler, step, seed=0):
    return sampler(step, np.random.default_rng([seed, step]))


@pytest.mark.slow
def test_two_processes_learn_what_one_does_with_two_batches_a_step(labelled, tmp_path):
    words = [*SMALL, "--data", labelled, "--steps", 6, "--aux-loss-weight", 1]
    words += ["--optimizer", "adamw"]  # Muon makes every direction of a gradient as large, those of rounding too
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch = [sys.executable, *launcher, "-m", "agents.clone"]
    given = [str(word) for word in [*words, *trainer(), "--out", tmp_path / "two"]]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, *given], check=True, env=env, capture_output=True)
    assert command(*words, *trainer(gradient_accumulation_steps=2), "--out", tmp_path / "one") == 0
    one, two = (checkpoint.load(tmp_path / name / "last").model.state_dict() for name in ("one", "two"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-6
    start = build("tiny", seed=0).model.state_dict()
    assert max(float((one[name] - start[name]).abs().max()) for name in one) > 1e-4


def test_soft_targets_share_by_value_and_ties_are_broken_one_way(tmp_path):
    nan = [np.nan] * 6
    values = np.array([[0, 0, -100, -np.inf, -np.inf, -np.inf], nan, [50, 0, 0, 0, 0, 0]], dtype=np.float32)
    targets = build_targets(
        EpisodeDataset(write_set(tmp_path / "set", values)), "soft", target_temperature=1.0, argmax_weight=0.4
    )
    assert targets.rows.tolist() == [0, 2]
    advantages = np.array([100 / 3, 50 - 50 / 6])
    scale = advantages.mean()
    first = 1 / (2 + np.exp(-100 / scale))
    assert targets.targets[0, :2] == pytest.approx([0.4 + 0.6 * first, 0.6 * first], abs=1e-5)
    assert targets.targets[0, 3:].tolist() == [0, 0, 0]
    assert targets.targets.sum(1) == pytest.approx(1)
    assert targets.weights == pytest.approx(advantages / scale)


def test_a_flip_swaps_left_and_right_in_frames_and_in_actions(labelled):
    assert flipped_actions(NAMES) == [0, 1, 3, 2, 5, 4]
    dataset = build_targets(EpisodeDataset(labelled), "soft", 0.25, 0.3)
    (plain,) = batch_of(BCSampler([dataset], 2, 100), 0).games
    (turned,) = batch_of(BCSampler([dataset], 2, 100, augmentation=FrameAugmentation({"Carnival"})), 0).games
    flipped = 0
    for row in range(100):
        if torch.equal(plain.frames[row], turned.frames[row]):
            assert torch.equal(plain.targets[row], turned.targets[row])
            continue
        flipped += 1
        assert torch.equal(plain.frames[row].flip(2), turned.frames[row])
        assert torch.equal(plain.targets[row, [0, 1, 3, 2, 5, 4]], turned.targets[row])
    assert 30 < flipped < 70


def test_frames_of_an_example_are_moved_and_recolored_alike_and_its_targets_stay(labelled):
    dataset = build_targets(EpisodeDataset(labelled), "soft", 0.25, 0.3)
    (plain,) = batch_of(BCSampler([dataset], 2, 60), 0).games
    (moved,) = batch_of(BCSampler([dataset], 2, 60, augmentation=FrameAugmentation(shift=3)), 0).games
    (swapped,) = batch_of(BCSampler([dataset], 2, 60, augmentation=FrameAugmentation(swapped_colors=0.5)), 0).games
    assert torch.equal(plain.targets, moved.targets)
    assert torch.equal(plain.targets, swapped.targets)
    moves = set()
    for before, after in zip(plain.frames.numpy(), moved.frames.numpy(), strict=True):
        found = [
            (down, right)
            for down, right in product(range(-3, 4), repeat=2)
            if np.array_equal(shift_frames(before, down, right), after)
        ]
        assert found
        moves |= set(found[:1])
    assert len(moves) > 20
    orders = {
        next(order for order in permutations(range(3)) if np.array_equal(before[..., list(order)], after))
        for before, after in zip(plain.frames.numpy(), swapped.frames.numpy(), strict=True)
    }
    assert len(orders) > 3
    unchanged = (plain.frames == swapped.frames).flatten(1).all(1).float().mean()
    assert 0.4 < unchanged < 0.8


def test_moved_frames_are_filled_by_their_edges():
    frame = np.arange(12, dtype=np.uint8).reshape(1, 3, 4, 1).repeat(3, axis=-1)
    assert shift_frames(frame, 1, -2)[0, :, :, 0].tolist() == [[2, 3, 3, 3], [2, 3, 3, 3], [6, 7, 7, 7]]
    assert np.array_equal(shift_frames(frame, 0, 0), frame)


def test_hard_targets_are_the_experts_best_action_or_the_players(tmp_path):
    values = np.eye(6, dtype=np.float32)[[3, 1]]
    dataset = build_targets(EpisodeDataset(write_set(tmp_path / "a", values)), "hard", 0.25, 0.3)
    assert dataset.targets.argmax(1).tolist() == [3, 1]
    data = EpisodeDataset(write_set(tmp_path / "b", None))
    assert build_targets(data, "soft", 0.25, 0.3).targets.argmax(1).tolist() == data.actions.tolist()


def test_a_batch_holds_every_game_evenly_and_depends_on_seed_and_step_alone(tmp_path, labelled):
    pong = write_set(tmp_path / "pong", None, names=NAMES[:3], game="Pong")
    more = write_set(tmp_path / "more", np.zeros((72, 6), np.float32), seed=2)
    datasets = [build_targets(EpisodeDataset(path), "soft", 0.25, 0.3) for path in (labelled, pong, more)]
    sampler = BCSampler(datasets, 2, 8)
    batches = [batch_of(sampler, step, seed=5).games for step in range(20)]
    assert all([part.game for part in parts] == ["Carnival", "Pong"] for parts in batches)
    assert all(len(part.frames) == len(part.targets) == 4 for parts in batches for part in parts)
    assert torch.equal(batch_of(sampler, 7, seed=5).games[0].frames, batches[7][0].frames)
    assert not torch.equal(batches[7][0].frames, batches[8][0].frames)
    assert batches[0][0].frames.shape == (4, 2, 214, 160, 3)
    light = [bool(weight < 0.2) for parts in batches for weight in parts[0].weights]
    assert 0.6 < np.mean(light) < 0.95, "three quarters of Carnival's rows are of the larger set"


def weights(path):
    return checkpoint.load(path).model.state_dict()


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_weights_of_an_unbroken_one(labelled, tmp_path, kill_at_step):
    arguments = (*SMALL, "--data", labelled, "--steps", 4, *trainer())
    assert command(*arguments, "--out", tmp_path / "whole") == 0
    calls = kill_at_step(BehaviorCloningObjective, 3)
    assert command(*arguments, "--out", tmp_path / "broken") == 130
    assert not (tmp_path / "broken" / "last").exists()
    assert command(*arguments, "--out", tmp_path / "broken") == 0
    assert len(calls) == 5  # two before the kill, the killed one, two after
    whole, broken = weights(tmp_path / "whole" / "last"), weights(tmp_path / "broken" / "last")
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_a_checkpoint_tells_its_data_and_every_role_changes(labelled, tmp_path):
    assert command(*SMALL, "--data", labelled, "--steps", 2, *trainer(), "--out", tmp_path / "run") == 0
    record = checkpoint.read_training(tmp_path / "run" / "last")
    assert record["games"] == ["Carnival"]
    assert record["datasets"][0]["steps"] == 24
    assert all(role["changed"] > 0 for role in record["parameter_updates"].values())
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


@pytest.mark.slow
def test_the_auxiliary_head_trains_the_encoder_and_is_no_part_of_what_is_saved(labelled, tmp_path):
    arguments = (*SMALL, "--data", labelled, "--steps", 2, *trainer())
    assert command(*arguments, "--out", tmp_path / "with") == 0
    assert command(*arguments, "--aux-loss-weight", 0, "--out", tmp_path / "without") == 0
    assert (tmp_path / "with" / "checkpoints" / "checkpoint-2" / AUXILIARY).is_file()
    assert not list((tmp_path / "without").rglob(AUXILIARY))
    one, other = weights(tmp_path / "with" / "last"), weights(tmp_path / "without" / "last")
    assert list(one) == list(other)
    encoder = [name for name in one if "vision_tower" in name and one[name].ndim == 4]
    assert all(not torch.equal(one[name], other[name]) for name in encoder)
    assert command(*arguments, "--init", tmp_path / "with" / "last", "--out", tmp_path / "next") == 0
    assert not list((tmp_path / "next").rglob(AUXILIARY))  # a policy that can play needs none


def test_a_run_that_starts_from_another_continues_its_auxiliary_head(labelled, tmp_path, capsys):
    arguments = (*SMALL, "--steps", 1, *trainer(save_steps=1))
    assert command(*arguments, "--data", labelled, "--out", tmp_path / "one") == 0
    again = ("--init", tmp_path / "one" / "last", "--aux-loss-weight", 1)
    frozen = ("--learning-rate", 0, "--encoder-learning-rate", 0, "--connector-learning-rate", 0)
    assert command(*arguments, *again, *frozen, "--data", labelled, "--out", tmp_path / "two") == 0
    one, two = ((tmp_path / name / AUXILIARY).read_bytes() for name in ("one", "two"))
    assert one == two
    other = write_set(tmp_path / "other", None, names=NAMES[:3], game="Pong")
    assert command(*arguments, *again, "--data", other, "--out", tmp_path / "three") == 2
    assert f"{AUXILIARY} holds another action_head" in capsys.readouterr().err


def test_a_negative_weight_of_the_auxiliary_head_is_refused(labelled, tmp_path, capsys):
    assert command(*SMALL, "--data", labelled, "--aux-loss-weight", "-1", "--out", tmp_path / "run") == 2
    assert "--aux-loss-weight must be at least 0, got -1.0" in capsys.readouterr().err


def test_the_auxiliary_head_reads_every_game_from_the_image_tokens():
    vlm = build("tiny")
    head = AuxiliaryActionHead(vlm, {"Carnival": (214, 160, 6), "MsPacman": (250, 160, 9)})
    for rows, game, actions in ((214, "Carnival", 6), (250, "MsPacman", 9)):
        frames = np.random.default_rng(rows).integers(0, 256, (3, 2, rows, 160, 3), dtype=np.uint8)
        tokens = vlm.encode_images(vlm.preprocess(frames)).tokens
        log_probs = head(game, tokens)
        assert torch.equal(log_probs, head.nets[game](tokens.flatten(1)).log_softmax(-1))
        assert log_probs.shape == (3, actions)


def test_a_frozen_encoder_stays_as_it_was(labelled, tmp_path):
    arguments = (*SMALL, "--data", labelled, "--steps", 2, *trainer(), "--encoder-learning-rate", 0)
    assert command(*arguments, "--out", tmp_path / "run") == 0
    moved = checkpoint.read_training(tmp_path / "run" / "last")["parameter_updates"]
    assert moved["encoder"]["changed"] == 0
    assert moved["decoder"]["changed"] > 0


def test_evaluations_by_play_keep_the_best_weights(labelled, tmp_path, monkeypatch):
    scores = iter([[100.0], [300.0], [200.0]])
    monkeypatch.setattr(checkpoint_selection, "evaluate_policy", lambda *_: next(scores))
    arguments = ("--data", labelled, "--steps", 3, *trainer(save_steps=1), "--out", tmp_path / "run")
    assert command(*SMALL, *arguments, "--eval-every", 1) == 0
    evaluations = json.loads((tmp_path / "run" / "evaluations.json").read_text())
    assert [one["scores"]["Carnival"] for one in evaluations] == [[100.0], [300.0], [200.0]]
    assert checkpoint.read_training(tmp_path / "run" / "best")["selected"]["step"] == 2


@pytest.mark.parametrize("killed", ["evaluate_policy", "save_plain", "write_text_atomically"])
def test_an_evaluation_that_was_killed_is_made_up(labelled, tmp_path, monkeypatch, killed):
    kills, scores = [], {1: 100.0, 2: 300.0, 3: 200.0}

    def newest_step():
        return max(int(place.name.split("-")[1]) for place in (tmp_path / "run" / "checkpoints").glob("checkpoint-*"))

    def kill_at_step_2(name, original):
        def wrapped(*arguments):
            if name == killed and newest_step() == 2 and not kills:
                kills.append(name)
                raise KeyboardInterrupt
            return original(*arguments)

        return wrapped

    patched = {
        "evaluate_policy": lambda *_: [scores[newest_step()]],
        "save_plain": save_plain,
        "write_text_atomically": write_text_atomically,
    }
    for name, original in patched.items():
        monkeypatch.setattr(checkpoint_selection, name, kill_at_step_2(name, original))
    arguments = ("--data", labelled, "--steps", 3, *trainer(save_steps=1), "--out", tmp_path / "run")
    assert command(*SMALL, *arguments, "--eval-every", 1) == 130
    assert command(*SMALL, *arguments, "--eval-every", 1) == 0
    assert kills == [killed]
    evaluations = json.loads((tmp_path / "run" / "evaluations.json").read_text())
    assert [(one["step"], one["scores"]["Carnival"]) for one in evaluations] == [
        (1, [100.0]),
        (2, [300.0]),
        (3, [200.0]),
    ]
    assert checkpoint.read_training(tmp_path / "run" / "best")["selected"]["step"] == 2


@pytest.mark.parametrize("row", [[np.inf, 0, 0, 0, 0, 0], [-np.inf] * 6, [-np.inf] * 5 + [np.nan]])
def test_action_values_without_a_finite_best_are_refused_with_their_row(tmp_path, row):
    values = np.array([[0, 1, -np.inf, np.nan, 0, 0], [np.nan] * 6, row], np.float32)
    data = EpisodeDataset(write_set(tmp_path / "set", values))
    for targets in ("soft", "hard"):
        with pytest.raises(UserError, match=r"set, row 2: expected a finite value of the best action, got .*inf"):
            build_targets(data, targets, 0.25, 0.3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--steps", 0), "--steps must be at least 1"),
        (("--preset", "nanno"), "nearest: nano"),
        (("--data", "nowhere"), "got nowhere"),
        (
            ("--game-weights", "Carnival"),
            "--game-weights: expected GAME=NUMBER above 0, as in MsPacman=3, got 'Carnival'",
        ),
        (("--game-weights", "Carnival=0"), "got 'Carnival=0'"),
        (("--game-weights", "Carnivall=2"), "nearest"),
        (("--game-weights", "Pong=2"), "expected weights of Carnival, got one of Pong"),
        (("--eval-every", 3), "--eval-every 3 must be a multiple of save_steps, 2"),
        (("--pvp-weight", 0.5, "--pvp-config", "with-pley"), "nearest: with-play"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(labelled, tmp_path, capsys, changes, message):
    arguments = ("--data", labelled, *SMALL, *trainer(), "--out", tmp_path / "run", *changes)
    assert command(*arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_games_can_take_unequal_shares_of_a_batch(labelled):
    (dataset,) = load_labelled_datasets([labelled], "soft", 0.4, 0.1)
    other = replace(dataset, data=copy.copy(dataset.data))
    other.data.info = replace(dataset.data.info, game="Pong")
    weighted, even = (batch_of(BCSampler([dataset, other], 2, 16, weights), 0) for weights in ({"Pong": 3.0}, None))
    assert {part.game: len(part.frames) for part in weighted.games} == {"Carnival": 4, "Pong": 12}
    assert {part.game: len(part.targets) for part in even.games} == {"Carnival": 8, "Pong": 8}


def test_a_run_is_not_continued_with_other_arguments(labelled, tmp_path, capsys):
    arguments = (*SMALL, "--data", labelled, *trainer(save_steps=1), "--out", tmp_path / "run")
    assert command(*arguments, "--steps", 1) == 0
    assert command(*arguments, "--steps", 1, "--target-temperature", 2) == 2
    assert "holds a run with another target_temperature" in capsys.readouterr().err


def test_the_auxiliary_head_can_train_alone_at_first(labelled, tmp_path, capsys):
    arguments = (*SMALL, "--data", labelled, "--steps", 2, *trainer(save_steps=1))
    assert command(*arguments, "--aux-warmup-fraction", 0.5, "--out", tmp_path / "run") == 0
    vlm = build("tiny")
    config = CONFIGS["default"].replace(data=(labelled,), out=tmp_path, steps=2, batch_size=4, aux_warmup_fraction=0.5)
    objective = clone.bc_objective(vlm, clone.load_datasets(config), config)
    first, second = (batch_of(objective.sampler, step) for step in range(2))
    assert (first.aux_only, second.aux_only) == (True, False)
    losses = objective.loss(objective.encode(first), first)
    assert set(losses.metrics) == {"Carnival/aux_loss"}
    assert losses.loss == losses.metrics["Carnival/aux_loss"]
    losses.loss.backward()
    assert all(parameter.grad is not None for parameter in vlm.connector.parameters())
    assert all(parameter.grad is None for parameter in vlm.decoder.parameters())
    names = {"Carnival/aux_loss", "Carnival/loss", "Carnival/action_accuracy"}
    assert set(objective.loss(objective.encode(second), second).metrics) == names
    assert command(*arguments, "--aux-warmup-fraction", 1, "--out", tmp_path / "run") == 2
    assert "--aux-warmup-fraction must be at least 0 and less than 1, got 1.0" in capsys.readouterr().err


def distilling_objective(labelled, tmp_path, seed):
    """An objective of a new model into which a saved one of seed 0 is distilled."""
    checkpoint.save(build("tiny", seed=0), tmp_path / "policy")
    config = CONFIGS["default"].replace(data=(labelled,), out=tmp_path, batch_size=8, aux_loss_weight=0.0)
    config = config.replace(distill_from=tmp_path / "policy")
    return clone.bc_objective(build("tiny", seed=seed), clone.load_datasets(config), config)


def test_a_distilled_policy_gives_targets_that_its_own_copy_meets_exactly(labelled, tmp_path):
    objective = distilling_objective(labelled, tmp_path, seed=0)
    batch = batch_of(objective.sampler, 0)
    losses = objective.loss(objective.encode(batch), batch)
    log_probs = objective.scorers["Carnival"].log_probs(objective.encode(batch)[0])
    entropy = -(log_probs.softmax(-1) * log_probs).sum(1).mean()
    assert losses.loss.item() == pytest.approx(entropy.item(), rel=1e-5)
    assert losses.metrics["Carnival/action_accuracy"] == 1
    assert all(
        not parameter.requires_grad or parameter.grad is None for parameter in objective.distilled.model.parameters()
    )


@pytest.mark.slow
def test_a_model_comes_nearer_to_the_policy_distilled_into_it(labelled, tmp_path):
    objective = distilling_objective(labelled, tmp_path, seed=1)
    optimizer = torch.optim.Adam(objective.vlm.model.parameters(), lr=1e-3)
    found = []
    for step in range(30):
        batch = batch_of(objective.sampler, step)
        loss = objective.loss(objective.encode(batch), batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert np.mean(found[-5:]) < np.mean(found[:5]) - 0.1


def test_play_and_pixels_train_in_one_mixture(labelled, tmp_path):
    arguments = (*SMALL, "--data", labelled, "--steps", 6, *trainer(save_steps=6, logging_steps=1))
    assert command(*arguments, "--pvp-weight", 0.5, "--out", tmp_path / "run") == 0
    state = json.loads((tmp_path / "run" / "checkpoints" / "checkpoint-6" / "trainer_state.json").read_text())
    logged = {name for entry in state["log_history"] for name in entry}
    assert {"play/loss", "play/Carnival/action_accuracy", "pvp/loss", "pvp/mae"} <= logged
