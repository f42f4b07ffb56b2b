"""PPO learns a text policy from rewards and resumes to the same numbers."""

import json
import os
import signal
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from agents import ppo, ppo_trainer
from agents.ppo_config import PPOConfig
from agents.ppo_loss import PPOBatch, compute_advantages, ppo_losses
from agents.ppo_trainer import PPOTrainer
from agents.rollout_buffer import PolicyOutput, RolloutCollector
from common.command import run
from common.errors import UserError
from envs.atari import AtariEnvs, Step
from envs.games import find_game
from envs.protocol import MACHADO2018
from experiments.model_classes.tiny_checkpoints import write
from vlm import checkpoint
from vlm.image_tokens import image_tokens
from vlm.presets import build


def command(*arguments):
    return run(lambda: ppo.main([str(argument) for argument in arguments]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--num-steps", "0"), "--num-steps must be at least 1, got 0"),
        (("--gae-lambda", "2"), "--gae-lambda must be from 0 to 1, got 2"),
        (("--game", "Pongg"), "nearest: Pong"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, tiny, tmp_path, capsys):
    assert command("--game", "Pong", "--init", tiny, "--out", tmp_path / "run", *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_model_of_transformers_learns_with_as_many_frames_and_image_tokens_as_asked_for(tmp_path):
    init = write("idefics3", tmp_path / "init")
    small = ("--num-iterations", 1, "--num-envs", 2, "--num-steps", 2, "--num-epochs", 1, "--minibatch-size", 4)
    words = ("--game", "Pong", "--init", init, *small, "--image-tokens", 40, "--history", 2)
    assert command(*words, "--out", tmp_path / "run") == 0
    learned = checkpoint.load(tmp_path / "run" / "last")
    assert learned.history == 2
    assert image_tokens(learned) == 2 * 20
    own, first = learned.model.state_dict(), checkpoint.load(init).model.state_dict()
    assert not all(torch.equal(own[name], first[name]) for name in own)


def test_a_collector_restores_its_environments_with_their_sticky_actions():
    game, rng = find_game("Carnival"), np.random.default_rng(0)

    def policy(obs, step):
        return PolicyOutput(rng.integers(6, size=len(obs)), {"pixel": obs[:, -1, 0, 0, 0]})

    short = replace(MACHADO2018, max_episode_frames=500)
    with AtariEnvs(game, 3, short) as envs, AtariEnvs(game, 3, short) as other_envs:
        collector = RolloutCollector(envs, 2, seed=3)
        for _ in range(8):
            collector.collect(policy, 40)  # episodes end after 125 steps
        state = json.loads(json.dumps(collector.state()))
        assert state["num_started"] > 3
        restored = RolloutCollector(other_envs, 2, seed=3)
        restored.restore(state)
        rng = np.random.default_rng(1)
        one = collector.collect(policy, 30)
        rng = np.random.default_rng(1)
        other = restored.collect(policy, 30)
    assert np.array_equal(one.obs, other.obs)
    assert np.array_equal(one.rewards, other.rewards)
    assert one.scores == other.scores


class BrightQuarters:
    """Environments whose bright quarter of the frame names the rewarded action; an episode lasts eight steps."""

    action_names = ("noop", "up", "right", "left")
    frame_shape = (64, 64, 3)

    def __init__(self, num_envs):
        self.num_envs, self.game = num_envs, find_game("Pong")
        self.rngs, self.steps_left = [np.random.default_rng(0)] * num_envs, np.zeros(num_envs, int)
        self.rewarded = np.zeros(num_envs, int)

    def reset(self, seeds):
        for i, seed in enumerate(seeds):
            if seed is not None:
                self.rngs[i], self.steps_left[i] = np.random.default_rng(seed), 8
                self.rewarded[i] = self.rngs[i].integers(4)
        return self.frames()

    def frames(self):
        frames = np.zeros((self.num_envs, *self.frame_shape), np.uint8)
        for i, action in enumerate(self.rewarded):
            row, column = divmod(int(action), 2)
            frames[i, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = 200
        return frames

    def step(self, actions):
        rewards = (actions == self.rewarded).astype(np.float32)
        self.steps_left -= 1
        self.rewarded = np.array([rng.integers(4) for rng in self.rngs])
        terminated = self.steps_left == 0
        nothing = np.zeros(self.num_envs, np.int64)
        return Step(self.frames(), rewards, terminated, nothing.astype(bool), nothing)


def make_trainer(num_envs=16, **changes):
    rates = {"learning_rate": 3e-3, "encoder_learning_rate": 3e-3}
    run = {"game": "Pong", "init": "unused", "out": "unused", "seed": 1, "bf16": False}
    config = PPOConfig(num_envs=num_envs, num_steps=8, kl_coef=0.0, **rates, **run, **changes)
    return PPOTrainer(build("tiny", seed=0), BrightQuarters(num_envs), config)


@pytest.mark.slow
def test_a_policy_learns_to_name_what_the_frame_shows_from_rewards_alone():
    trainer = make_trainer(num_iterations=80)
    rows = [trainer.train_step() for _ in range(80)]
    assert rows[0]["reward"] < 0.4  # chance is 0.25
    assert np.mean([row["reward"] for row in rows[-20:]]) > 0.7


def test_training_resumes_from_a_saved_state_to_the_same_weights(tmp_path):
    whole, killed = make_trainer(4, num_iterations=4), make_trainer(4, num_iterations=4)
    for _ in range(4):
        last = whole.train_step()
    for _ in range(2):
        killed.train_step()
    killed.save(tmp_path / "state")
    assert {file.name for file in (tmp_path / "state").iterdir()} == {"trainer_state.pt", "env_state.json"}
    resumed = make_trainer(4, num_iterations=4)
    resumed.restore(tmp_path / "state")
    for _ in range(2):
        row = resumed.train_step()
    assert row == last
    one, other = whole.policy.state_dict(), resumed.policy.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_killed_training_of_a_real_game_resumes_to_the_same_checkpoint(tiny, tmp_path, kill_at_step, capsys):
    arguments = ["--game", "carnival", "--init", tiny, "--num-iterations", "3", "--num-envs", "2"]
    arguments += ["--num-steps", "4", "--minibatch-size", "4", "--save-every", "1"]
    assert command(*arguments, "--out", tmp_path / "whole") == 0
    calls = kill_at_step(PPOTrainer, 3, "train_step")
    assert command(*arguments, "--out", tmp_path / "killed") == 130
    assert command(*arguments, "--out", tmp_path / "killed") == 0
    assert len(calls) == 4
    one, other = (checkpoint.load(tmp_path / run / "last").model.state_dict() for run in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    rows = [json.loads((tmp_path / run / "ppo.json").read_text())["rows"] for run in ("whole", "killed")]
    for run_rows in rows:
        seconds = [row.pop("seconds") for row in run_rows]
        assert 0 < seconds[0] < seconds[1] < seconds[2]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 3
    assert checkpoint.read_training(tmp_path / "whole" / "last")["games"] == ["Carnival"]
    assert command(*arguments, "--out", tmp_path / "whole", "--gamma", 0.5) == 2
    assert "holds a run with another gamma; choose another --out" in capsys.readouterr().err


def test_advantages_are_those_of_gae_and_stop_where_an_episode_ends():
    values, rewards = np.array([[1.0], [2.0]]), np.array([[3.0], [5.0]])
    dones = np.array([[False], [True]])
    advantages, returns = compute_advantages(values, rewards, dones, np.array([100.0]), gamma=0.5, gae_lambda=0.5)
    assert advantages[1, 0] == 5 - 2  # nothing follows the end
    assert advantages[0, 0] == (3 + 0.5 * 2 - 1) + 0.25 * 3
    assert returns[:, 0].tolist() == [advantages[0, 0] + 1, 5]


def test_a_ratio_beyond_the_clipping_range_has_no_gradient():
    old = torch.tensor([[0.5, 0.5]]).log()
    batch = PPOBatch(torch.tensor([0]), old, old, advantages=torch.tensor([1.0]), returns=torch.tensor([0.0]))
    weights = {"clip_coef": 0.2, "ent_coef": 0, "kl_coef": 0, "vf_coef": 0}
    config = PPOConfig(game="Pong", init="unused", out="unused", **weights)

    def gradient(probability):
        logits = torch.tensor([[probability, 1 - probability]]).log().requires_grad_()
        ppo_losses(logits.log_softmax(-1), torch.zeros(1), batch, config)["loss"].backward()
        return float(logits.grad.abs().sum())

    assert gradient(0.55) > 0.1
    assert gradient(0.7) == 0
    kl = ppo_losses(torch.tensor([[0.8, 0.2]]).log(), torch.zeros(1), batch, config)["kl"]
    assert float(kl) == pytest.approx(0.8 * np.log(1.6) + 0.2 * np.log(0.4))


def test_a_gradient_that_is_not_finite_ends_the_training_before_the_step(tmp_path, monkeypatch):
    trainer = make_trainer(4, num_iterations=4)
    trainer.train_step()
    before = {name: tensor.clone() for name, tensor in trainer.policy.state_dict().items()}
    monkeypatch.setattr(
        ppo_trainer, "ppo_losses", lambda *given: {n: v * torch.inf for n, v in ppo_losses(*given).items()}
    )
    with pytest.raises(UserError, match=r"iteration 2: expected a finite loss and gradient, got -?(inf|nan) and "):
        trainer.train_step()
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.policy.state_dict().items())


def test_a_signal_saves_the_iteration_and_the_training_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(PPOTrainer, "train_step", signalled := SignalledStep(PPOTrainer.train_step))
    assert run(lambda: ppo.train(make_trainer(4, num_iterations=3, save_every=3), tmp_path)) == 143
    assert signalled.calls == 2
    assert json.loads((tmp_path / "state" / "env_state.json").read_text())["iteration"] == 2
    (tmp_path / "state").rename(tmp_path / f".state.{os.getpid()}.old")  # killed while it was replaced
    ppo.train(trainer := make_trainer(4, num_iterations=3, save_every=3), tmp_path)
    assert (signalled.calls, trainer.iteration) == (3, 3)
    assert [row["iteration"] for row in json.loads((tmp_path / "ppo.json").read_text())["rows"]] == [1, 2, 3]


class SignalledStep:
    """A training step in whose second call SIGTERM comes."""

    def __init__(self, step):
        self.step, self.calls = step, 0

    def __get__(self, trainer, _):
        return partial(self, trainer)

    def __call__(self, trainer):
        self.calls += 1
        if self.calls == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.step(trainer)
