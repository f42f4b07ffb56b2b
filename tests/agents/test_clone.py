"""Cloning makes the targets it says, learns them, resumes to the same numbers and refuses what it cannot learn from."""

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from agents import clone
from agents.auxiliary_action_head import AuxiliaryActionHead
from agents.bc_dataset import BCBatchDataset, build_targets, flipped_actions
from common.command import run
from envs.episodes import DatasetInfo, Episode, EpisodeDataset, EpisodeWriter
from envs.protocol import MACHADO2018
from vlm import checkpoint
from vlm.presets import build
from vlm.training import trainer

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
def taught(tmp_path):
    values = np.random.default_rng(0).normal(0, 50, (24, 6)).astype(np.float32)
    return write_set(tmp_path / "taught", values)


def command(*arguments):
    return run(lambda: clone.main([str(argument) for argument in arguments]))


SMALL = (
    "--preset",
    "tiny",
    "--batch-size",
    4,
    "--select-every",
    0,
    "--warmup-steps",
    1,
    "--workers",
    0,
)


def accumulate(monkeypatch, count, steps):
    """Let a training in one process take `count` batches a step, for `steps` steps."""
    plain = trainer.TrainingArguments
    more = {"gradient_accumulation_steps": count, "max_steps": steps}
    monkeypatch.setattr(trainer, "TrainingArguments", lambda **given: plain(**given | more))


def test_two_processes_learn_what_one_does_of_two_batches_a_step(taught, tmp_path, monkeypatch):
    words = [*SMALL, "--data", taught, "--steps", 6, "--readout", 1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "agents.clone"]
    given = [str(word) for word in [*words, "--out", tmp_path / "two"]]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, *given], check=True, env=env, capture_output=True)
    accumulate(monkeypatch, 2, 3)
    assert command(*words, "--out", tmp_path / "one") == 0
    one, two = (checkpoint.load(tmp_path / name / "last").model.state_dict() for name in ("one", "two"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-6
    start = build("tiny", seed=0).model.state_dict()
    assert max(float((one[name] - start[name]).abs().max()) for name in one) > 1e-4


def test_soft_targets_share_by_value_and_break_ties_one_way(tmp_path):
    nan = [np.nan] * 6
    values = np.array([[0, 0, -100, -np.inf, -np.inf, -np.inf], nan, [50, 0, 0, 0, 0, 0]], dtype=np.float32)
    lesson = build_targets(EpisodeDataset(write_set(tmp_path / "set", values)), "soft", softness=1.0, hard_share=0.4)
    assert lesson.rows.tolist() == [0, 2]
    spreads = np.array([100 / 3, 50 - 50 / 6])
    scale = spreads.mean()
    share = 1 / (2 + np.exp(-100 / scale))
    assert lesson.targets[0, :2] == pytest.approx([0.4 + 0.6 * share, 0.6 * share], abs=1e-5)
    assert lesson.targets[0, 3:].tolist() == [0, 0, 0]
    assert lesson.targets.sum(1) == pytest.approx(1)
    assert lesson.weights == pytest.approx(spreads / scale)


def test_a_mirror_swaps_left_and_right_in_frames_and_in_actions(taught):
    assert flipped_actions(NAMES) == [0, 1, 3, 2, 5, 4]
    lesson = build_targets(EpisodeDataset(taught), "soft", 0.25, 0.3)
    plain = BCBatchDataset([lesson], 2, 100, 1, seed=0)[0]["parts"][0]
    turned = BCBatchDataset([lesson], 2, 100, 1, seed=0, mirror={"Carnival"})[0]["parts"][0]
    mirrored = 0
    for row in range(100):
        if torch.equal(plain["frames"][row], turned["frames"][row]):
            assert torch.equal(plain["targets"][row], turned["targets"][row])
            continue
        mirrored += 1
        assert torch.equal(plain["frames"][row].flip(2), turned["frames"][row])
        assert torch.equal(plain["targets"][row, [0, 1, 3, 2, 5, 4]], turned["targets"][row])
    assert 30 < mirrored < 70


def test_hard_targets_are_the_teachers_best_action_or_the_players(tmp_path):
    values = np.eye(6, dtype=np.float32)[[3, 1]]
    lesson = build_targets(EpisodeDataset(write_set(tmp_path / "a", values)), "hard", 0.25, 0.3)
    assert lesson.targets.argmax(1).tolist() == [3, 1]
    data = EpisodeDataset(write_set(tmp_path / "b", None))
    assert build_targets(data, "soft", 0.25, 0.3).targets.argmax(1).tolist() == data.actions.tolist()


def test_a_batch_holds_every_game_evenly_and_depends_on_seed_and_step_alone(tmp_path, taught):
    pong = write_set(tmp_path / "pong", None, names=NAMES[:3], game="Pong")
    more = write_set(tmp_path / "more", np.zeros((72, 6), np.float32), seed=2)
    lessons = [build_targets(EpisodeDataset(path), "soft", 0.25, 0.3) for path in (taught, pong, more)]
    batches = BCBatchDataset(lessons, 2, 8, 20, seed=5)
    drawn = [batches[step]["parts"] for step in range(20)]
    assert all([part["game"] for part in parts] == ["Carnival", "Pong"] for parts in drawn)
    assert all(len(part["frames"]) == len(part["targets"]) == 4 for parts in drawn for part in parts)
    assert torch.equal(batches[7]["parts"][0]["frames"], drawn[7][0]["frames"])
    assert not torch.equal(drawn[7][0]["frames"], drawn[8][0]["frames"])
    assert drawn[0][0]["frames"].shape == (4, 2, 214, 160, 3)
    idle = [bool(weight < 0.2) for parts in drawn for weight in parts[0]["weights"]]
    assert 0.6 < np.mean(idle) < 0.95, "three quarters of Carnival's rows are of the larger set"


def weights(path):
    return checkpoint.load(path).model.state_dict()


def test_a_killed_run_goes_on_to_the_same_weights_as_an_unbroken_one(taught, tmp_path, monkeypatch):
    arguments = (*SMALL, "--data", taught, "--steps", 4, "--save-every", 2)
    assert command(*arguments, "--out", tmp_path / "whole") == 0
    steps = []
    forward = clone.BehaviorCloningObjective.forward

    def killed_in_the_third(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(clone.BehaviorCloningObjective, "forward", killed_in_the_third)
    assert command(*arguments, "--out", tmp_path / "broken") == 130
    assert not (tmp_path / "broken" / "last").exists()
    assert command(*arguments, "--out", tmp_path / "broken") == 0
    assert len(steps) == 5  # two before the kill, the killed one, two after
    whole, broken = weights(tmp_path / "whole" / "last"), weights(tmp_path / "broken" / "last")
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_training_is_recorded_and_moves_every_role(taught, tmp_path):
    assert command(*SMALL, "--data", taught, "--steps", 2, "--save-every", 2, "--out", tmp_path / "run") == 0
    record = checkpoint.read_training(tmp_path / "run" / "last")
    assert record["games"] == ["Carnival"]
    assert record["datasets"][0]["decisions"] == 24
    assert all(role["changed"] > 0 for role in record["parameter_updates"].values())
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def test_a_readout_learns_beside_the_decoder_and_is_no_part_of_what_is_saved(taught, tmp_path):
    arguments = (*SMALL, "--data", taught, "--steps", 2, "--save-every", 2)
    assert command(*arguments, "--out", tmp_path / "with") == 0
    assert command(*arguments, "--readout", 0, "--out", tmp_path / "without") == 0
    step = tmp_path / "with" / "checkpoints" / "checkpoint-2"
    assert (step / "readout.safetensors").is_file()
    assert not list((tmp_path / "without").rglob("readout.safetensors"))
    one, other = weights(tmp_path / "with" / "last"), weights(tmp_path / "without" / "last")
    assert list(one) == list(other)
    encoder = [name for name in one if "vision_tower" in name and one[name].ndim == 4]
    assert all(not torch.equal(one[name], other[name]) for name in encoder)  # it moves what the encoder learns
    assert command(*arguments, "--init", tmp_path / "with" / "last", "--out", tmp_path / "next") == 0
    assert not list((tmp_path / "next").rglob("readout.safetensors"))  # one that can play needs none


def test_a_run_that_goes_on_from_another_goes_on_with_its_readout(taught, tmp_path, capsys):
    arguments = (*SMALL, "--steps", 1, "--save-every", 1)
    assert command(*arguments, "--data", taught, "--out", tmp_path / "one") == 0
    again = ("--init", tmp_path / "one" / "last", "--readout", 1)
    still = ("--learning-rate", 0, "--encoder-learning-rate", 0)
    assert command(*arguments, *again, *still, "--data", taught, "--out", tmp_path / "two") == 0
    one, two = ((tmp_path / name / "readout.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    other = write_set(tmp_path / "other", None, names=NAMES[:3], game="Pong")
    assert command(*arguments, *again, "--data", other, "--out", tmp_path / "three") == 2
    assert "readout.safetensors is of other games" in capsys.readouterr().err


def test_a_readout_of_less_than_nothing_is_refused(taught, tmp_path, capsys):
    assert command(*SMALL, "--data", taught, "--readout", "-1", "--out", tmp_path / "run") == 2
    assert "--readout must be at least 0, got -1.0" in capsys.readouterr().err


def test_a_readout_reads_every_game_off_the_image_tokens():
    vlm = build("tiny")
    readout = AuxiliaryActionHead(vlm, {"Carnival": (214, 160, 6), "MsPacman": (250, 160, 9)})
    for rows, game, actions in ((214, "Carnival", 6), (250, "MsPacman", 9)):
        frames = np.random.default_rng(rows).integers(0, 256, (3, 2, rows, 160, 3), dtype=np.uint8)
        tokens = vlm.encode_images(vlm.preprocess(frames)).tokens
        log_probs = readout(game, tokens)
        assert torch.equal(log_probs, readout.nets[game](tokens.flatten(1)).log_softmax(-1))
        assert log_probs.shape == (3, actions)


def test_a_frozen_encoder_stays_as_it_was(taught, tmp_path):
    arguments = (*SMALL, "--data", taught, "--steps", 2, "--save-every", 2, "--encoder-learning-rate", 0)
    assert command(*arguments, "--out", tmp_path / "run") == 0
    moved = checkpoint.read_training(tmp_path / "run" / "last")["parameter_updates"]
    assert moved["encoder"]["changed"] == 0
    assert moved["decoder"]["changed"] > 0


def test_trials_by_play_keep_the_best_weights(taught, tmp_path, monkeypatch):
    scores = iter([[100.0], [300.0], [200.0]])
    monkeypatch.setattr(clone, "evaluate_policy", lambda *_: next(scores))
    arguments = [*SMALL, "--data", taught, "--steps", 3, "--save-every", 1, "--out", tmp_path / "run"]
    arguments[arguments.index("--select-every") + 1] = 1
    assert command(*arguments) == 0
    trials = json.loads((tmp_path / "run" / "selection.json").read_text())
    assert [trial["scores"]["Carnival"] for trial in trials] == [[100.0], [300.0], [200.0]]
    assert checkpoint.read_training(tmp_path / "run" / "best")["selected"]["step"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--steps", 0), "--steps must be at least 1"),
        (("--targets", "fuzzy"), "expected --targets soft or hard"),
        (("--preset", "nanno"), "nearest: nano"),
        (("--data", "nowhere"), "got nowhere"),
        (("--shares", "Carnival"), "--shares: expected GAME=NUMBER above 0, as in MsPacman=3, got 'Carnival'"),
        (("--shares", "Carnival=0"), "got 'Carnival=0'"),
        (("--shares", "Carnivall=2"), "nearest"),
        (("--shares", "Pong=2"), "expected shares of Carnival, got one of Pong"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(taught, tmp_path, capsys, changes, message):
    arguments = ("--data", taught, *SMALL, "--out", tmp_path / "run", *changes)
    assert command(*arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_games_can_have_unequal_shares_of_a_step(taught):
    (lesson,) = clone.load_labelled_datasets([taught], "soft", 0.4, 0.1)
    other = replace(lesson, data=copy.copy(lesson.data))
    other.data.info = replace(lesson.data.info, game="Pong")
    parts = BCBatchDataset([lesson, other], 2, 16, 1, 0, shares={"Pong": 3.0})[0]["parts"]
    assert {part["game"]: len(part["frames"]) for part in parts} == {"Carnival": 4, "Pong": 12}
    assert {
        part["game"]: len(part["targets"]) for part in BCBatchDataset([lesson, other], 2, 16, 1, 0)[0]["parts"]
    } == {
        "Carnival": 8,
        "Pong": 8,
    }


def test_a_run_is_not_continued_with_other_arguments(taught, tmp_path, capsys):
    arguments = (*SMALL, "--data", taught, "--save-every", 1, "--out", tmp_path / "run")
    assert command(*arguments, "--steps", 1) == 0
    assert command(*arguments, "--steps", 1, "--softness", 2) == 2
    assert "holds a run with another softness" in capsys.readouterr().err


def test_the_readout_can_be_taught_alone_at_first(taught, tmp_path, capsys):
    arguments = (*SMALL, "--data", taught, "--steps", 2, "--save-every", 1)
    assert command(*arguments, "--readout-first", 0.5, "--out", tmp_path / "run") == 0
    lessons = clone.load_labelled_datasets([taught], "soft", 0.4, 0.1)
    batches = BCBatchDataset(lessons, 2, 4, 2, 0, alone=1)
    assert [batches[step]["alone"] for step in range(2)] == [True, False]
    vlm = build("tiny")
    args = clone.Args(data=(taught,), out=tmp_path, steps=2, preset="tiny", bf16=False)
    imitation, _, _ = clone.make_imitation(vlm, lessons, args)
    out = imitation(**batches[0])
    assert set(out) == {"loss", "Carnival_read"}
    assert out["loss"] == out["Carnival_read"]
    out["loss"].backward()
    assert all(parameter.grad is not None for parameter in vlm.connector.parameters())
    assert all(parameter.grad is None for parameter in vlm.decoder.parameters())
    assert set(imitation(**batches[1])) == {"loss", "Carnival_read", "Carnival_loss", "Carnival_agreed"}
    assert command(*arguments, "--readout-first", 1, "--out", tmp_path / "run") == 2
    assert "--readout-first must be at least 0 and less than 1, got 1.0" in capsys.readouterr().err
