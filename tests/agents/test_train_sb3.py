"""An SB3 expert trains on the observations of play, resumes, and plays from its weights alone."""

import json
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.experts import train_sb3
from agents.experts.expert_envs import ExpertEnvs
from agents.experts.sb3_callbacks import BestModelCallback, TrainingClock
from agents.frame_stack import FrameStack
from agents.sb3_agent import STACK, Sb3Agent, read_policy, shrink
from common.command import run
from common.errors import UserError
from envs.atari import AtariEnvs
from envs.games import find_game
from envs.protocol import Protocol

CARNIVAL = find_game("Carnival")
SHORT = Protocol("short", 0.25, 4, 0, False, 120)


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    callback = BestModelCallback(tmp_path, lambda _: [0.0], has_replay_buffer=False, clock=TrainingClock())
    policy = torch.nn.Linear(2, 2)
    policy.weight.data[0, 0] = torch.nan
    callback.model = SimpleNamespace(policy=policy, num_timesteps=7)
    with pytest.raises(UserError, match="after 7 steps the weights are not finite"):
        callback.on_step()
    assert not list(tmp_path.iterdir())


def test_shrinking_takes_the_mean_gray_of_the_area():
    frames = np.zeros((1, 210, 160, 3), np.uint8)
    frames[:, :105] = (100, 150, 200)
    small = shrink(frames)
    assert small.shape == (1, 84, 84)
    assert (small[0, :42] == round(0.299 * 100 + 0.587 * 150 + 0.114 * 200)).all()
    assert (small[0, 42:] == 0).all()


def test_training_has_the_observations_of_play_and_clips_rewards():
    with AtariEnvs(CARNIVAL, 2, SHORT) as games, AtariEnvs(CARNIVAL, 2, SHORT) as twin:
        envs = ExpertEnvs(games, seed=3)
        rng, memory = np.random.default_rng(3), FrameStack(STACK)
        memory.reset(np.ones(2, dtype=bool))
        frames = twin.reset([int(rng.integers(2**31)) for _ in range(2)])
        assert np.array_equal(envs.reset(), memory.add(shrink(frames)[..., None])[..., 0])
        total = np.zeros(2)
        for _ in range(30):
            actions = np.array([1, 4])
            observations, rewards, ended, infos = envs.step(actions)
            step = twin.step(actions)
            total += step.rewards
            assert np.array_equal(rewards, np.sign(step.rewards))
            expected = memory.add(shrink(step.frames)[..., None])[..., 0]
            if ended.any():
                break
            assert np.array_equal(observations, expected)
        assert ended.all()
        assert np.array_equal(infos[0]["terminal_observation"], expected[0])
        assert infos[0]["TimeLimit.truncated"]
        assert [info["episode"]["r"] for info in infos] == total.tolist()
        assert envs.take_progress() == (total.sum(), total.tolist())
        assert envs.take_progress() == (0, [])
        assert (observations[:, :1] == observations).all()  # a new episode: its first frame, four times


def command(*arguments):
    return run(lambda: train_sb3.main([str(argument) for argument in arguments]))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(train_sb3, "find_protocol", lambda _: SHORT)


def logged_scores(directory):
    found = {}
    for folder in {file.parent for file in directory.rglob("events.*")}:
        events = EventAccumulator(str(folder)).Reload()
        found |= {event.step: event.value for event in events.Scalars("eval/mean_score")}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["qrdqn", "ppo"])
def test_an_expert_trains_resumes_and_plays(tmp_path, quick, algo, capsys):
    arguments = ("--game", "carnival", "--algo", algo, "--num-envs", 2, "--buffer-size", 100, "--eval-every", 256)
    arguments = (*arguments, "--curve-every", 128)
    arguments = (*arguments, "--eval-episodes", 1, "--no-progress", "--out", tmp_path)
    assert command(*arguments, "--steps", 256) == 0
    assert command(*arguments, "--steps", 512) == 0
    evaluations = json.loads((tmp_path / "evaluations.json").read_text())
    assert logged_scores(tmp_path / "tensorboard") == {
        evaluation["steps"]: np.float32(np.mean(evaluation["scores"])) for evaluation in evaluations
    }
    assert "after 256 steps: 0 points, the best so far" in capsys.readouterr().out
    (tmp_path / "evaluations.json").write_text(json.dumps(evaluations[:1]))  # killed before the last one was written
    assert command(*arguments, "--steps", 512) == 0
    assert json.loads((tmp_path / "evaluations.json").read_text()) == evaluations
    assert [evaluation["steps"] for evaluation in evaluations] == [256, 512]
    curve = json.loads((tmp_path / "curve.json").read_text())
    assert [row["steps"] for row in curve] == [128, 256, 384, 512]
    assert all(row["new_steps"] == 128 and len(row["scores"]) >= 2 for row in curve)  # games of 30 steps
    assert (np.diff([0, *(row["seconds"] for row in curve)]) > 0).all()
    agent = Sb3Agent(tmp_path / "best.zip", ("noop", "fire", "right", "left", "right fire", "left fire"))
    agent.reset([1])
    actions = agent.act(np.zeros((1, 214, 160, 3), np.uint8))
    assert actions.texts[0] == agent.action_names[actions.indices[0]]


def test_a_foreign_archive_is_refused_and_nothing_in_it_runs(tmp_path):
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(UserError, match="is not a stable-baselines3 archive"):
        read_policy(tmp_path / "text.zip", 6)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("data", json.dumps({"policy_class": {"__module__": "evil", ":serialized:": "gASV"}}))
        with archive.open("policy.pth", "w") as file:
            torch.save({"weight": torch.zeros(1)}, file)
    with pytest.raises(UserError, match="got one of evil"):
        read_policy(tmp_path / "other.zip", 6)


def test_zero_steps_are_refused(tmp_path, capsys):
    assert command("--game", "carnival", "--steps", 0, "--out", tmp_path) == 2
    assert "--steps must be at least 1" in capsys.readouterr().err
