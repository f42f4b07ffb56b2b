"""Rounds and policy gradients improve a policy, and go on after a kill to the same numbers."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from agents import clone, dagger, improve
from agents.dagger import DaggerConfig, describe, games_of, label_ceiling, train_round
from agents.improve import Args
from agents.ppo import PPOConfig, PPOTrainer, advantages, ppo_losses
from agents.rollout_buffer import PolicyOutput, RolloutCollector
from common.command import run
from common.errors import UserError
from envs.atari import AtariEnvs, Step
from envs.episodes import EpisodeDataset
from envs.games import find_game
from envs.protocol import MACHADO2018
from vlm import checkpoint
from vlm.presets import build

SMALL = ("--rounds", "2", "--episodes", "1", "--steps", "2", "--batch-size", "8", "--save-every", "1", "--workers", "0")


def command(*arguments):
    return run(lambda: improve.main([str(argument) for argument in arguments]))


@pytest.fixture
def short_games(monkeypatch):
    """Recordings of at most 60 decisions, and few states labelled twice."""
    whole = dagger.record.Args
    monkeypatch.setattr(dagger.record, "Args", lambda **words: whole(**words, max_frames=240))
    monkeypatch.setattr(dagger, "STATES", 3)
    monkeypatch.setattr(dagger, "APART", 4)


def test_rounds_aggregate_recordings_and_a_killed_run_comes_to_the_same_weights(
    tiny, tmp_path, short_games, monkeypatch
):
    words = ("--game", "mspacman", "--checkpoint", tiny, "--teach-every", "2", *SMALL)
    assert command(*words, "--out", tmp_path / "whole") == 0
    first, second = (
        checkpoint.read_training(tmp_path / "whole" / f"round-{number}" / "trained" / "last") for number in range(2)
    )
    assert [data["agent"] for data in first["datasets"]] == ["vlm labelled by mspacman-expert"]
    assert len(second["datasets"]) == 2
    assert second["arguments"]["learning_rate"] == pytest.approx(0.7 * first["arguments"]["learning_rate"])
    lesson, steps = clone.BehaviorCloningObjective.forward, []

    def killed_in_the_fourth(self, **batch):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return lesson(self, **batch)

    monkeypatch.setattr(clone.BehaviorCloningObjective, "forward", killed_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        improve.main([str(word) for word in (*words, "--out", tmp_path / "killed")])
    assert command(*words, "--out", tmp_path / "killed") == 0
    assert len(steps) == 5
    one, other = (
        checkpoint.load(tmp_path / run / "round-1" / "trained" / "last").model.state_dict()
        for run in ("whole", "killed")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    results = [json.loads((tmp_path / run / "improve.json").read_text())["rows"] for run in ("whole", "killed")]
    assert results[0] == results[1]
    ceiling, *rounds = results[0]
    assert (ceiling["ceiling_of"], ceiling["agree"]) == ("MsPacman", 1.0)  # the expert draws nothing
    assert [(row["round"], row["labels"]) for row in rounds] == [(0, 30), (1, 30)]


def test_agreement_is_with_the_best_action_where_the_teacher_was_asked(tiny, tmp_path, short_games):
    command("--game", "mspacman", "--checkpoint", tiny, *SMALL, "--rounds", "1", "--out", tmp_path / "run")
    data = EpisodeDataset(tmp_path / "run" / "round-0" / "recorded-MsPacman")
    taught = ~np.isnan(data.action_values).all(axis=1)
    best = np.where(np.isfinite(data.action_values[taught]), data.action_values[taught], -np.inf).argmax(1)
    assert describe(data, "x")["agreed"] == pytest.approx(np.mean(best == data.actions[taught]))


def test_a_searching_teachers_ceiling_is_measured_once(tmp_path, short_games):
    found = label_ceiling(tmp_path, "Carnival", "planner")
    assert found["n"] == 3
    assert 0 <= found["agree"] <= 1
    (tmp_path / "ceiling-Carnival.json").write_text(json.dumps({"agree": 0.5}))
    assert label_ceiling(tmp_path, "Carnival", "planner") == {"agree": 0.5}


def test_a_rounds_training_is_the_callers_own(tmp_path):
    seen = []

    def teach(args):
        seen.append(args)
        return tmp_path / "made"

    args = clone.Args(data=(), out=tmp_path, steps=7)
    found = train_round(
        args, DaggerConfig(fall=0.5), [tmp_path], tmp_path / "start", tmp_path / "round-2", 2, teach=teach
    )
    assert found == tmp_path / "made"
    assert (seen[0].steps, seen[0].init, seen[0].learning_rate) == (7, tmp_path / "start", 0.25 * args.learning_rate)


def test_games_are_those_asked_for_or_all_that_were_taught(tiny, tmp_path):
    assert games_of((), tiny) == ["Carnival"]
    assert games_of(("ms. pac-man",), tiny) == ["MsPacman"]
    checkpoint.save(build("tiny"), tmp_path / "untaught")
    with pytest.raises(UserError, match="was taught no game; name one with --game"):
        games_of((), tmp_path / "untaught")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "ppo"), "--method ppo learns one game at a time"),
        (("--episodes", "0"), "--episodes must be at least 1, got 0"),
        (("--fall", "0"), r"--fall in (0, 1]"),
        (("--record-seed", "899"), "must stay below 900"),
        (("--teacher", "vlm:runs/a"), "paddle-expert, got 'vlm:runs/a'"),
        (("--rewards", "none"), "expected --rewards sign, root, raw, got 'none'"),
        (("--discount", "2"), "--discount must be from 0 to 1, got 2"),
    ],
)
def test_settings_of_no_use_are_refused(words, message, tiny, tmp_path, capsys):
    assert command("--checkpoint", tiny, "--out", tmp_path / "run", *words) == 2
    assert message in capsys.readouterr().err


def test_players_stand_where_they_stood_sticky_actions_included():
    game, rng = find_game("Carnival"), np.random.default_rng(0)

    def decide(stacks, number):
        return PolicyOutput(rng.integers(6, size=len(stacks)), {"frame": stacks[:, -1, 0, 0, 0]})

    short = replace(MACHADO2018, max_episode_frames=500)
    with AtariEnvs(game, 3, short) as envs, AtariEnvs(game, 3, short) as fresh:
        players = RolloutCollector(envs, 2, seed=3)
        for _ in range(8):
            players.play(decide, 40)  # games end after 125
        state = json.loads(json.dumps(players.state()))
        assert state["begun"] > 3
        again = RolloutCollector(fresh, 2, seed=3)
        again.restore(state)
        rng = np.random.default_rng(1)
        one = players.play(decide, 30)
        rng = np.random.default_rng(1)
        other = again.play(decide, 30)
    assert np.array_equal(one.stacks, other.stacks)
    assert np.array_equal(one.rewards, other.rewards)
    assert one.scores == other.scores


class Pictures:
    """A game of lanes whose picture names the right action by where it is bright; a game lasts eight decisions."""

    action_names = ("noop", "up", "right", "left")
    frame_shape = (64, 64, 3)

    def __init__(self, n):
        self.num_envs, self.game = n, find_game("Pong")
        self.rngs, self.left = [np.random.default_rng(0)] * n, np.zeros(n, int)
        self.wanted = np.zeros(n, int)

    def reset(self, seeds):
        for lane, seed in enumerate(seeds):
            if seed is not None:
                self.rngs[lane], self.left[lane] = np.random.default_rng(seed), 8
                self.wanted[lane] = self.rngs[lane].integers(4)
        return self.frames()

    def frames(self):
        frames = np.zeros((self.num_envs, *self.frame_shape), np.uint8)
        for lane, wanted in enumerate(self.wanted):
            row, column = divmod(int(wanted), 2)
            frames[lane, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = 200
        return frames

    def step(self, actions):
        rewards = (actions == self.wanted).astype(np.float32)
        self.left -= 1
        self.wanted = np.array([rng.integers(4) for rng in self.rngs])
        ended = self.left == 0
        return Step(self.frames(), rewards, ended, np.zeros(self.num_envs, bool), np.zeros(self.num_envs, np.int64))


def learner(lanes=16, **changes):
    settings = PPOConfig(lanes=lanes, horizon=8, minibatch=64, near=0.0, **changes)
    return PPOTrainer(build("tiny", seed=0), Pictures(lanes), settings, (3e-3, 3e-3), seed=1)


def test_naming_what_the_picture_shows_is_learnt_from_rewards_alone():
    learning = learner(stretches=80)
    rows = [learning.learn() for _ in range(80)]
    assert rows[0]["reward"] < 0.4  # chance is 0.25
    assert np.mean([row["reward"] for row in rows[-20:]]) > 0.7


def test_learning_goes_on_from_a_saved_state_to_the_same_weights(tmp_path):
    whole, broken = learner(4, stretches=4), learner(4, stretches=4)
    for _ in range(4):
        last = whole.learn()
    for _ in range(2):
        broken.learn()
    broken.save(tmp_path / "state")
    resumed = learner(4, stretches=4)
    resumed.restore(tmp_path / "state")
    for _ in range(2):
        row = resumed.learn()
    assert row == last
    one, other = whole.policy.state_dict(), resumed.policy.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_ppo_improves_a_checkpoint_of_a_real_game_and_goes_on_after_a_kill(tiny, tmp_path, monkeypatch):
    words = ["--game", "carnival", "--checkpoint", tiny, "--method", "ppo", "--stretches", "3", "--lanes", "2"]
    words += ["--horizon", "4", "--minibatch", "4", "--save-stretches", "1"]
    assert command(*words, "--out", tmp_path / "whole") == 0
    learn, done = PPOTrainer.learn, []

    def killed_in_the_third(self):
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt
        return learn(self)

    monkeypatch.setattr(PPOTrainer, "learn", killed_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        improve.main([str(word) for word in (*words, "--out", tmp_path / "killed")])
    assert command(*words, "--out", tmp_path / "killed") == 0
    assert len(done) == 4
    one, other = (checkpoint.load(tmp_path / run / "last").model.state_dict() for run in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    rows = [json.loads((tmp_path / run / "improve.json").read_text())["rows"] for run in ("whole", "killed")]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 3
    assert checkpoint.read_training(tmp_path / "whole" / "last")["games"] == ["Carnival"]


def test_advantages_are_those_of_gae_and_stop_where_a_game_ends():
    two = SimpleNamespace(told={"value": np.array([[1.0], [2.0]])}, ended=np.array([[False], [True]]))
    settings = PPOConfig(discount=0.5, smoothing=0.5)
    gains, returns = advantages(two, np.array([[3.0], [5.0]]), np.array([100.0]), settings)
    assert gains[1, 0] == 5 - 2  # nothing comes after the end
    assert gains[0, 0] == (3 + 0.5 * 2 - 1) + 0.25 * 3
    assert returns[:, 0].tolist() == [gains[0, 0] + 1, 5]


def test_a_ratio_that_has_moved_far_enough_pulls_no_further():
    before = torch.tensor([[0.5, 0.5]]).log()
    batch = {
        "action": torch.tensor([0]), "before": before, "reference": before, "advantage": torch.tensor([1.0]),
        "return": torch.tensor([0.0]),
    }  # fmt: skip

    def pull(share):
        logits = torch.tensor([[share, 1 - share]]).log().requires_grad_()
        settings = PPOConfig(clip=0.2, entropy=0, near=0, worth=0)
        ppo_losses(logits.log_softmax(-1), torch.zeros(1), batch, settings)["loss"].backward()
        return float(logits.grad.abs().sum())

    assert pull(0.55) > 0.1
    assert pull(0.7) == 0
    apart = ppo_losses(torch.tensor([[0.8, 0.2]]).log(), torch.zeros(1), batch, PPOConfig())["apart"]
    assert float(apart) == pytest.approx(0.8 * np.log(1.6) + 0.2 * np.log(0.4))


def test_improve_teaches_by_its_help(capsys):
    with pytest.raises(SystemExit):
        improve.main(["--help"])
    told = capsys.readouterr().out
    assert "--checkpoint" in told
    assert "--init PATH" not in told
    assert Args.__doc__
