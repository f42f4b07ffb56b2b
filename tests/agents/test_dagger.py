"""DAgger improves a policy on the states it visits, and resumes after a kill to the same numbers."""

import json

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from agents import dagger
from agents.bc_objective import BehaviorCloningObjective
from agents.dagger import games_of, rollout_metrics, train_iteration
from agents.dagger_config import CONFIGS
from agents.expert_self_agreement import expert_self_agreement
from agents.experts.expert_envs import ExpertEnvs
from agents.sb3_archive import archive_hash
from common.command import run
from common.errors import UserError
from envs.atari import make_envs
from envs.episodes import EpisodeDataset
from envs.games import find_game
from envs.protocol import MACHADO2018
from experiments.model_classes.tiny_checkpoints import write
from vlm import checkpoint
from vlm.presets import build

SMALL = ("--iterations", "2", "--episodes", "1", "--steps", "2", "--batch-size", "8",
         "--trainer", "save_steps=1", "dataloader_num_workers=0")  # fmt: skip

ACCURACY = {"action_accuracy": 0.5}


def command(*arguments):
    return run(lambda: dagger.main([str(argument) for argument in arguments]))


@pytest.fixture
def short_games(monkeypatch):
    """Recordings of at most 60 steps, and few states that are labelled twice."""
    whole = dagger.record.Args
    monkeypatch.setattr(dagger.record, "Args", lambda **words: whole(**words, max_frames=240))
    monkeypatch.setattr("agents.expert_self_agreement.NUM_STATES", 3)
    monkeypatch.setattr("agents.expert_self_agreement.STATE_INTERVAL", 4)


@pytest.mark.slow
def test_iterations_aggregate_recordings_and_a_killed_run_resumes_to_the_same_weights(
    tiny, tmp_path, short_games, kill_at_step
):
    words = ("--games", "mspacman", "--init", tiny, "--label-every", "2", *SMALL)
    assert command(*words, "--out", tmp_path / "whole") == 0
    first, second = (
        checkpoint.read_training(tmp_path / "whole" / f"iteration-{number}" / "trained" / "last") for number in range(2)
    )
    assert [data["agent"] for data in first["datasets"]] == ["vlm labelled by mspacman-expert"]
    assert len(second["datasets"]) == 2
    for name in ("learning_rate", "connector_learning_rate", "encoder_learning_rate"):
        assert second["arguments"][name] == pytest.approx(0.7 * first["arguments"][name])
    calls = kill_at_step(BehaviorCloningObjective, 4)
    assert command(*words, "--out", tmp_path / "killed") == 130
    assert command(*words, "--out", tmp_path / "killed") == 0
    assert len(calls) == 5
    one, other = (
        checkpoint.load(tmp_path / run / "iteration-1" / "trained" / "last").model.state_dict()
        for run in ("whole", "killed")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    results = [json.loads((tmp_path / run / "dagger.json").read_text())["rows"] for run in ("whole", "killed")]
    assert results[0] == results[1]
    noise, *iterations = results[0]
    assert (noise["label_noise_of"], noise["agreement"]) == ("MsPacman", 1.0)  # this expert is deterministic
    assert [(row["iteration"], row["labels"]) for row in iterations] == [(0, 30), (1, 30)]


def test_action_accuracy_counts_the_labelled_steps_alone(tiny, tmp_path, short_games):
    assert command("--games", "mspacman", "--init", tiny, *SMALL, "--iterations", "1", "--out", tmp_path / "run") == 0
    data = EpisodeDataset(tmp_path / "run" / "iteration-0" / "recorded-MsPacman")
    labelled = ~np.isnan(data.action_values).all(axis=1)
    best = np.where(np.isfinite(data.action_values[labelled]), data.action_values[labelled], -np.inf).argmax(1)
    assert rollout_metrics(data)["action_accuracy"] == pytest.approx(np.mean(best == data.actions[labelled]))


def test_an_experts_agreement_with_itself_is_measured_once(tmp_path, short_games):
    found = expert_self_agreement(tmp_path, "Carnival", "planner")
    assert found["n"] == 3
    assert 0 <= found["agreement"] <= 1
    (tmp_path / "label-noise-Carnival.json").write_text(json.dumps({"agreement": 0.5}))
    assert expert_self_agreement(tmp_path, "Carnival", "planner") == {"agreement": 0.5}


@pytest.mark.slow
def test_a_network_of_sb3_labels_the_game_that_it_is_named_for(tiny, tmp_path, short_games):
    with make_envs(find_game("Pong"), 1, MACHADO2018) as envs:
        PPO("CnnPolicy", ExpertEnvs(envs, 0), n_steps=4, batch_size=4).save(tmp_path / "ppo.zip")
    words = ("--games", "Pong", "Breakout", "--experts", f"Pong=sb3:{tmp_path / 'ppo.zip'}", "--init", tiny)
    assert command(*words, *SMALL, "--iterations", "1", "--rollout-num-envs", "2", "--out", tmp_path / "run") == 0
    pong, breakout = (
        EpisodeDataset(tmp_path / "run" / "iteration-0" / f"recorded-{game}") for game in ("Pong", "Breakout")
    )
    assert pong.info.labels == f"sb3 {archive_hash(tmp_path / 'ppo.zip')}"
    assert breakout.info.labels == "paddle-expert"
    labelled = ~np.isnan(pong.action_values).all(axis=1)
    np.testing.assert_allclose(pong.action_values[labelled].sum(axis=1), 1, rtol=1e-3)


def test_an_iteration_trains_from_the_current_policy_at_decayed_rates(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(dagger, "clone", lambda config: seen.append(config) or tmp_path / "made")
    config = CONFIGS["default"].replace(out=tmp_path, steps=7, lr_decay=0.5, auxiliary_learning_rate=0.4)
    assert train_iteration(config, [tmp_path], tmp_path / "start", tmp_path / "iteration-2", 2) == tmp_path / "made"
    (used,) = seen
    assert (used.run.steps, used.model.init, used.data.data) == (7, tmp_path / "start", (tmp_path,))
    assert used.optimizer.learning_rate == 0.25 * config.optimizer.learning_rate
    assert used.optimizer.auxiliary_learning_rate == pytest.approx(0.1)


def test_the_policy_that_is_recorded_reads_as_many_frames_and_tokens_as_it_is_trained_on(tmp_path, monkeypatch):
    recorded, trained = [], []
    monkeypatch.setattr(dagger, "expert_self_agreement", lambda *_: {"agreement": 1.0})
    monkeypatch.setattr(dagger.record, "record", lambda args: recorded.append(args.limits) or tmp_path / "recorded")
    monkeypatch.setattr(dagger, "clone", lambda config: trained.append(config.model) or tmp_path / "made")
    monkeypatch.setattr(dagger, "EpisodeDataset", lambda _: None)
    monkeypatch.setattr(dagger, "rollout_metrics", lambda _: {"expert": "", "scores": [1], "labels": 1} | ACCURACY)
    monkeypatch.setattr(dagger.checkpoint, "content_hash", lambda _: "abc")
    init = write("idefics3", tmp_path / "init")
    words = ("--games", "mspacman", "--init", init, *SMALL, "--out", tmp_path / "run")
    assert command(*words, "--image-tokens", "40", "--history", "2") == 0
    assert [(limits.image_tokens, limits.history) for limits in recorded] == [(40, 2)] * 2
    assert [(model.image_tokens, model.history) for model in trained] == [(40, 2)] * 2


def test_games_are_those_asked_for_or_all_that_were_trained_on(tiny, tmp_path):
    assert games_of((), tiny) == ["Carnival"]
    assert games_of(("ms. pac-man",), tiny) == ["MsPacman"]
    checkpoint.save(build("tiny"), tmp_path / "untrained")
    with pytest.raises(UserError, match="was trained on no game; name one with --game"):
        games_of((), tmp_path / "untrained")


def test_iterations_can_be_added_to_a_run_and_nothing_else_changed(tiny, tmp_path, short_games, capsys):
    words = ("--games", "mspacman", "--init", tiny, *SMALL, "--out", tmp_path / "run")
    assert command(*words, "--iterations", "0") == 0
    assert command(*words, "--iterations", "1") == 0
    assert command(*words, "--iterations", "1", "--lr-decay", "0.5") == 2
    assert "holds a run with another lr_decay" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--episodes", "0"), "--episodes must be at least 1, got 0"),
        (("--lr-decay", "0"), "--lr-decay must be above 0 and at most 1, got 0.0"),
        (("--rollout-seed", "899"), "must stay below 900"),
        (("--expert", "human"), "freeway-expert, vlm, sb3), got 'human'"),
        (("--games", "Pong", "--experts", "Pong=random"), "must be an agent that values every action"),
        (("--games", "Pong", "--experts", "Breakout=planner"), "--experts names Breakout, which is not among --games"),
        (("--rollout-num-envs", "0"), "--rollout-num-envs must be at least 1, got 0"),
    ],
)
def test_settings_of_no_use_are_refused(words, message, tiny, tmp_path, capsys):
    assert command("--init", tiny, "--out", tmp_path / "run", *words) == 2
    assert message in capsys.readouterr().err
