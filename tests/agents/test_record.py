"""Recordings hold true games, go on where they stopped, and keep what a teacher says of another's play."""

import numpy as np
import pytest

from agents import record
from agents.agent import Actions
from agents.record import ActionRepeatAgent, Args, ExpertLabelledAgent, RandomActionAgent, to_episode
from agents.rollout import Transition
from common.command import run
from common.errors import UserError
from envs.atari import AtariEnvs
from envs.episodes import EpisodeDataset, read_info
from envs.games import find_game
from envs.protocol import episode_seeds
from vlm import checkpoint
from vlm.presets import build


def command(*arguments):
    return run(lambda: record.main([str(argument) for argument in arguments]))


def test_a_recording_replays_to_the_same_rewards_and_goes_on_where_it_stopped(tmp_path):
    out = tmp_path / "set"
    assert command("--game", "carnival", "--agent", "random", "--episodes", 1, "--out", out) == 0
    first = EpisodeDataset(out)
    assert command("--game", "carnival", "--agent", "random", "--episodes", 2, "--lanes", 2, "--out", out) == 0
    data = EpisodeDataset(out)
    assert data.seeds == episode_seeds(0, 2)
    assert np.array_equal(data.actions[: len(first)], first.actions)
    with AtariEnvs(find_game("Carnival"), 1) as envs:
        frames = envs.reset([data.seeds[0]])
        for row in range(len(first)):
            if row % 50 == 0:
                assert np.array_equal(data.frame(row), frames[0])
            step = envs.step(data.actions[row : row + 1])
            assert step.rewards[0] == data.rewards[row]
            frames = step.frames
        assert step.terminated[0]
    assert read_info(out).protocol.name == "machado2018"


class Fixed:
    """Always answers one action, with scores of its own."""

    def __init__(self, name, action, width=4):
        self.name, self.action, self.width, self.asked = name, action, width, []

    def reset(self, seeds):
        self.n = len(seeds)

    def values(self, lane):
        self.asked.append(lane)
        return np.arange(self.width, dtype=np.float32)

    def act(self, frames):
        indices = np.full(self.n, self.action)
        scores = np.zeros((self.n, self.width), np.float32)
        return Actions(indices, ("x",) * self.n, scores, np.zeros(self.n, bool))


def test_a_taught_player_plays_its_own_actions_under_the_teachers_values():
    player, teacher = Fixed("player", 1), Fixed("teacher", 3)
    taught = ExpertLabelledAgent(player, teacher, every=3, actions=4)
    taught.reset([3, 4])
    answers = [taught.act(np.zeros((2, 1, 1, 3))) for _ in range(4)]
    assert all(answer.indices.tolist() == [1, 1] for answer in answers)
    asked = [[not np.isnan(answer.scores[lane]).any() for answer in answers] for lane in (0, 1)]
    assert asked == [[True, False, False, True], [False, False, True, False]]
    assert answers[0].scores[0].tolist() == [0, 1, 2, 3]


def test_a_teacher_that_sees_frames_follows_the_whole_game_and_is_heard_where_it_is_asked():
    class Seeing:
        name = "seeing"
        seen = 0

        def reset(self, seeds):
            self.n = len(seeds)

        def act(self, frames):
            self.seen += 1
            scores = np.full((self.n, 4), self.seen, np.float32)
            return Actions(np.zeros(self.n, int), ("x",) * self.n, scores, np.zeros(self.n, bool))

    taught = ExpertLabelledAgent(Fixed("player", 1), Seeing(), every=3, actions=4)
    taught.reset([3])
    told = [taught.act(np.zeros((1, 1, 1, 3))).scores[0, 0] for _ in range(4)]
    assert told[0] == 1
    assert np.isnan(told[1:3]).all()
    assert told[3] == 4


def test_a_hand_slips_at_about_its_rate_and_the_same_way_for_the_same_seed():
    def play(seed):
        slipping = RandomActionAgent(Fixed("player", 0), 0.2, ("a", "b", "c", "d"))
        slipping.reset([seed])
        return [int(slipping.act(np.zeros((1, 1, 1, 3))).indices[0]) for _ in range(400)]

    assert play(1) == play(1)
    assert play(1) != play(2)
    assert 0.15 < np.mean(np.array(play(1)) != 0) < 0.5
    steady = RandomActionAgent(Fixed("player", 2), 0.0, ("a", "b", "c", "d"))
    steady.reset([1])
    assert all(steady.act(np.zeros((1, 1, 1, 3))).indices[0] == 2 for _ in range(50))


def test_a_player_who_thinks_every_third_decision_holds_its_answer_and_has_no_scores_in_between():
    class Counting(Fixed):
        def act(self, frames):
            self.action += 1
            return super().act(frames)

    holding = ActionRepeatAgent(Counting("player", -1), every=3)
    holding.reset([3])
    answers = [holding.act(np.zeros((1, 1, 1, 3))) for _ in range(5)]
    assert [int(answer.indices[0]) for answer in answers] == [0, 0, 0, 1, 1]
    assert [bool(np.isnan(answer.scores).all()) for answer in answers] == [False, True, True, False, True]
    holding.reset([4])
    assert int(holding.act(np.zeros((1, 1, 1, 3))).indices[0]) == 2, "a new game is thought about at once"


def test_a_recording_can_hold_beginnings_of_games_only(tmp_path):
    out = tmp_path / "set"
    given = ("--game", "MsPacman", "--agent", "random", "--episodes", 1, "--max-frames", 200, "--out", out)
    assert command(*given) == 0
    data = EpisodeDataset(out)
    assert len(data) == 50
    assert data.info.protocol.max_episode_frames == 200


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_checkpoint_can_teach_and_is_known_by_its_weights(engine, tmp_path):
    checkpoint.save(build("tiny"), tmp_path / "one")
    out = tmp_path / "set"
    given = ("--game", "carnival", "--agent", "random", "--episodes", 1, "--max-frames", 40, "--out", out)
    assert command(*given, "--teacher", f"vlm:{tmp_path / 'one'}", "--engine", engine) == 0
    data = EpisodeDataset(out)
    assert data.info.labels == f"vlm {checkpoint.content_hash(tmp_path / 'one')}"
    np.testing.assert_allclose(data.action_values.sum(1), 1, rtol=1e-3)


def test_turns_become_an_episode():
    frame = np.zeros((2, 2, 3), np.uint8)
    turns = [
        Transition(0, 9, i, frame + i, i, "x", np.array([i, 1.0]), False, float(i), 0.0, i == 2, False)
        for i in range(3)
    ]
    episode = to_episode(turns)
    assert (episode.seed, episode.score, episode.terminated) == (9, 3.0, True)
    assert episode.actions.tolist() == [0, 1, 2]
    assert episode.action_values.tolist() == [[0, 1], [1, 1], [2, 1]]
    assert episode.frames[:, 0, 0, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--episodes", 0), "--episodes must be at least 1"),
        (("--noise", 1.5), "--noise must be at least 0 and below 1"),
        (("--teach-every", 2), "--teach-every asks for a --teacher"),
        (("--agent", "random", "--teacher", "random"), "--teacher must be an agent that values every action"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    assert command("--game", "carnival", "--out", tmp_path / "set", *arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "set").exists()


def test_arguments_are_checked_when_they_are_made(tmp_path):
    with pytest.raises(UserError, match="--lanes"):
        Args(game="carnival", out=tmp_path, lanes=0)


def test_an_engine_that_is_none_is_refused_whoever_plays(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        command("--game", "Pong", "--agent", "random", "--engine", "warp", "--out", tmp_path / "set")
    assert "invalid choice 'warp' for argument '--engine'" in capsys.readouterr().err


def test_several_processes_are_told_to_record_in_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command("--game", "Pong", "--episodes", 1, "--out", tmp_path / "set") == 2
    assert "recorded by one process, got 2: record first" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
