"""Recordings hold true games, resume, and hold an expert's labels of another agent's states."""

import json
import weakref

import numpy as np
import pytest

from agents import record
from agents.agent import Actions
from agents.agent_wrappers import ActionRepeatAgent, ExpertLabelledAgent, RandomActionAgent
from agents.record import Args, finished_episodes, to_episode
from agents.rollout import Transition
from common.command import run
from common.errors import UserError
from common.images import decode_rgb
from envs.atari import AtariEnvs
from envs.episodes import INFO, EpisodeDataset, encode_png, read_info
from envs.games import find_game
from envs.protocol import episode_seeds
from vlm import checkpoint
from vlm.presets import build


def command(*arguments):
    return run(lambda: record.main([str(argument) for argument in arguments]))


def test_a_recording_replays_to_the_same_rewards_and_resumes(tmp_path):
    out = tmp_path / "set"
    assert command("--game", "carnival", "--agent", "random", "--episodes", 1, "--out", out) == 0
    first = EpisodeDataset(out)
    assert command("--game", "carnival", "--agent", "random", "--episodes", 2, "--num-envs", 2, "--out", out) == 0
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
        self.name, self.action, self.width = name, action, width

    def reset(self, seeds):
        self.n = len(seeds)

    def values(self, env_index):
        return np.arange(self.width, dtype=np.float32)

    def act(self, frames):
        indices = np.full(self.n, self.action)
        scores = np.zeros((self.n, self.width), np.float32)
        return Actions(indices, ("x",) * self.n, scores, np.zeros(self.n, bool))


def test_a_labelled_agent_plays_its_own_actions_with_the_experts_values():
    labelled = ExpertLabelledAgent(Fixed("player", 1), Fixed("expert", 3), label_every=3, num_actions=4)
    labelled.reset([3, 4])
    answers = [labelled.act(np.zeros((2, 1, 1, 3))) for _ in range(4)]
    assert all(answer.indices.tolist() == [1, 1] for answer in answers)
    steps = [[not np.isnan(answer.scores[env_index]).any() for answer in answers] for env_index in (0, 1)]
    assert steps == [[True, False, False, True], [False, False, True, False]]
    assert answers[0].scores[0].tolist() == [0, 1, 2, 3]


def test_an_expert_that_acts_on_frames_follows_the_whole_episode_and_labels_every_third_step():
    class FrameExpert:
        name = "frame expert"
        num_frames = 0

        def reset(self, seeds):
            self.n = len(seeds)

        def act(self, frames):
            self.num_frames += 1
            scores = np.full((self.n, 4), self.num_frames, np.float32)
            return Actions(np.zeros(self.n, int), ("x",) * self.n, scores, np.zeros(self.n, bool))

    labelled = ExpertLabelledAgent(Fixed("player", 1), FrameExpert(), label_every=3, num_actions=4)
    labelled.reset([3])
    values = [labelled.act(np.zeros((1, 1, 1, 3))).scores[0, 0] for _ in range(4)]
    assert (values[0], values[3]) == (1, 4)
    assert np.isnan(values[1:3]).all()


def test_random_actions_have_about_their_probability_and_depend_on_the_seed():
    def play(seed):
        agent = RandomActionAgent(Fixed("player", 0), 0.2, ("a", "b", "c", "d"))
        agent.reset([seed])
        return [int(agent.act(np.zeros((1, 1, 1, 3))).indices[0]) for _ in range(400)]

    assert play(1) == play(1)
    assert play(1) != play(2)
    assert 0.15 < np.mean(np.array(play(1)) != 0) < 0.5
    unchanged = RandomActionAgent(Fixed("player", 2), 0.0, ("a", "b", "c", "d"))
    unchanged.reset([1])
    assert all(unchanged.act(np.zeros((1, 1, 1, 3))).indices[0] == 2 for _ in range(50))


def test_a_repeated_action_has_no_scores():
    class Counting(Fixed):
        def act(self, frames):
            self.action += 1
            return super().act(frames)

    repeating = ActionRepeatAgent(Counting("player", -1), repeat=3)
    repeating.reset([3])
    answers = [repeating.act(np.zeros((1, 1, 1, 3))) for _ in range(5)]
    assert [int(answer.indices[0]) for answer in answers] == [0, 0, 0, 1, 1]
    assert [bool(np.isnan(answer.scores).all()) for answer in answers] == [False, True, True, False, True]
    repeating.reset([4])
    assert int(repeating.act(np.zeros((1, 1, 1, 3))).indices[0]) == 2, "a new episode starts with a new action"


def test_a_recording_can_hold_the_openings_of_games_only(tmp_path):
    out = tmp_path / "set"
    given = ("--game", "MsPacman", "--agent", "random", "--episodes", 1, "--max-frames", 200, "--out", out)
    assert command(*given) == 0
    data = EpisodeDataset(out)
    assert len(data) == 50
    assert data.info.protocol.max_episode_frames == 200


def test_a_recording_under_old_agent_names_is_continued(tmp_path):
    out = tmp_path / "set"
    given = ("--game", "Pong", "--agent", "random", "--random-action-prob", 0.1, "--max-frames", 200, "--out", out)
    labelled = (*given, "--expert", "paddle-expert", "--label-every", 25)
    assert command(*labelled, "--episodes", 1) == 0
    info = json.loads((out / INFO).read_text())
    assert info["agent"] == "random, random actions 0.1 labelled by paddle-expert"
    old = {**info, "agent": "random, noise 0.1 taught by tracker", "labels": "tracker"}
    (out / INFO).write_text(json.dumps(old))
    assert command(*labelled, "--episodes", 2) == 0
    assert len(EpisodeDataset(out).seeds) == 2
    assert json.loads((out / INFO).read_text()) == old
    assert command(*given, "--episodes", 3) == 2, "another agent"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_checkpoint_can_label_and_is_named_by_its_weights(engine, tmp_path):
    checkpoint.save(build("tiny"), tmp_path / "one")
    out = tmp_path / "set"
    given = ("--game", "carnival", "--agent", "random", "--episodes", 1, "--max-frames", 40, "--out", out)
    assert command(*given, "--expert", f"vlm:{tmp_path / 'one'}", "--engine", engine) == 0
    data = EpisodeDataset(out)
    assert data.info.labels == f"vlm {checkpoint.content_hash(tmp_path / 'one')}"
    np.testing.assert_allclose(data.action_values.sum(1), 1, rtol=1e-3)


def test_transitions_become_an_episode():
    frame = np.zeros((2, 2, 3), np.uint8)
    transitions = [
        Transition(0, 9, i, frame + i, i, "x", np.array([i, 1.0]), False, float(i), 0.0, i == 2, False)
        for i in range(3)
    ]
    episode = to_episode(transitions, [encode_png(transition.frame) for transition in transitions])
    assert (episode.seed, episode.score, episode.terminated) == (9, 3.0, True)
    assert episode.actions.tolist() == [0, 1, 2]
    assert episode.action_values.tolist() == [[0, 1], [1, 1], [2, 1]]
    assert [decode_rgb(png, "frame")[0, 0, 0] for png in episode.frames] == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--episodes", 0), "--episodes must be at least 1"),
        (("--random-action-prob", 1.5), "--random-action-prob must be at least 0 and below 1"),
        (("--label-every", 2), "--label-every needs an --expert"),
        (("--action-repeat", 2, "--num-envs", 2), "--action-repeat needs --num-envs 1, got 2"),
        (("--agent", "random", "--expert", "random"), "--expert must be an agent that values every action"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    assert command("--game", "carnival", "--out", tmp_path / "set", *arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "set").exists()


def test_arguments_are_checked_when_they_are_made(tmp_path):
    with pytest.raises(UserError, match="--num-envs"):
        Args(game="carnival", out=tmp_path, num_envs=0)


def test_a_directory_of_other_files_is_not_recorded_into(tmp_path, capsys):
    (tmp_path / "photo.png").write_bytes(b"mine")
    assert command("--game", "Pong", "--agent", "random", "--episodes", 1, "--out", tmp_path) == 2
    assert "a new directory or one with info.json" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["photo.png"]


def test_a_running_game_holds_its_own_frames_and_no_other_games():
    held = []

    def play():
        for step in range(3):
            frames = np.full((8, 4, 4, 3), 10 * step, np.uint8)
            frames[1] += 1
            held.append(weakref.ref(frames))
            for game in range(8):
                ended = step == 2
                yield Transition(game, game, step, frames[game], 0, "noop", None, False, 0.0, 0.0, ended, False)

    episodes = finished_episodes(play())
    for expected in ([0, 10, 20], [1, 11, 21]):
        assert [decode_rgb(png, "frame")[0, 0, 0] for png in next(episodes).frames] == expected
    assert [frames() is None for frames in held] == [True, True, False]


def test_an_unknown_engine_is_refused_for_every_agent(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        command("--game", "Pong", "--agent", "random", "--engine", "warp", "--out", tmp_path / "set")
    assert "invalid choice 'warp' for argument '--engine'" in capsys.readouterr().err


def test_recording_by_several_processes_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command("--game", "Pong", "--episodes", 1, "--out", tmp_path / "set") == 2
    assert "recorded by one process, got 2: record first" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
