"""Play films and scores true games, reports mistakes in one line and keeps what an interrupted run recorded."""

import itertools
import json
import shutil
import sys
import time
from dataclasses import replace
from unittest.mock import MagicMock

import imageio.v2 as imageio
import numpy as np
import pytest
from filelock import FileLock, Timeout

from agents import play, video
from agents.rollout import Transition
from agents.video import OverlayFrame, Panel, check_video, draw_transition
from common.command import run
from common.errors import UserError
from common.output_lock import lock_file
from common.results import new_result
from vlm import checkpoint
from vlm.presets import build
from vlm.segmentation.mask_drawing import MASK_COLOR


def command(*arguments):
    return run(lambda: play.main([str(argument) for argument in arguments]))


def read_json(out):
    (file,) = out.glob("*.json")
    return json.loads(file.read_text())


def read_frames(out):
    (file,) = out.glob("*.mp4")
    with imageio.get_reader(file) as reader:
        return np.stack([frame for frame in reader])


@pytest.mark.slow
def test_the_vlm_is_filmed_and_scored(tiny, tmp_path, capsys):
    assert command("--checkpoint", tiny, "--max-frames", 120, "--out", tmp_path) == 0
    result = read_json(tmp_path)
    (row,) = result["rows"]
    assert result["protocol"]["name"] == "machado2018"
    assert row["steps"] == 30
    assert row["scores"] == []
    assert len(row["unfinished_scores"]) == 1
    assert row["invalid"] == 0
    assert row["steps_per_second"] > 0
    assert read_frames(tmp_path).shape[0] == 30
    output = capsys.readouterr().out
    assert "no human score of Carnival exists" in output
    assert "IQN, 200 M frames" in output


def test_committed_scores_are_printed_with_one_line_for_each_temperature(tmp_path, monkeypatch, capsys):
    scores = [("random", None, 1), ("random", None, 3), ("vlm", 0, 10), ("vlm", 0.5, 100), ("vlm", 0.5, 300)]
    rows = [
        {"agent": a, "game": "Carnival", "seed": n, "temperature": t, "scores": [s]}
        for n, (a, t, s) in enumerate(scores)
    ]
    (tmp_path / "committed.json").write_text(json.dumps(new_result("committed", None, []) | {"rows": rows}))
    monkeypatch.setattr("agents.play.COMMITTED_SCORES", tmp_path / "committed.json")
    assert command("--agent", "random", "--max-frames", 40, "--no-video", "--out", tmp_path / "out") == 0
    lines = [line.split("(committed)") for line in capsys.readouterr().out.splitlines() if "(committed)" in line]
    assert [(name.strip(), rest.split()[0]) for name, rest in lines] == [
        ("random", "2"),
        ("vlm at 0", "10"),
        ("vlm at 0.5", "200"),
    ]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_score_and_the_same_video(tiny, tmp_path):
    outs = [tmp_path / "a", tmp_path / "b"]
    for out in outs:
        command("--checkpoint", tiny, "--temperature", 1, "--max-frames", 100, "--seed", 3, "--out", out)
    assert np.array_equal(*[read_frames(out) for out in outs])
    assert read_json(outs[0])["rows"][0]["unfinished_scores"] == read_json(outs[1])["rows"][0]["unfinished_scores"]


def test_a_whole_game_of_random_play_has_a_score(tmp_path):
    assert command("--agent", "random", "--no-video", "--out", tmp_path) == 0
    (row,) = read_json(tmp_path)["rows"]
    assert len(row["scores"]) == 1
    assert row["scores"][0] > 0
    assert not list(tmp_path.glob("*.mp4"))


def test_each_game_has_a_video_of_its_own(tmp_path):
    assert command("--agent", "random", "--episodes", 2, "--max-frames", 40, "--out", tmp_path) == 0
    videos = read_json(tmp_path)["rows"][0]["videos"]
    assert sorted(videos) == sorted(str(file) for file in tmp_path.glob("*.mp4"))
    assert len(set(videos)) == 2


@pytest.mark.slow
def test_a_game_that_the_model_was_not_trained_on_is_played_with_a_note(tiny, tmp_path, capsys):
    assert command("--game", "pong", "--checkpoint", tiny, "--max-frames", 40, "--out", tmp_path, "--no-video") == 0
    assert "was not trained on Pong, only on Carnival" in capsys.readouterr().out


def test_free_generation_counts_invalid_answers(tiny, tmp_path):
    arguments = ("--checkpoint", tiny, "--decode", "generate", "--max-frames", 24, "--no-video")
    assert command(*arguments, "--out", tmp_path) == 0
    assert read_json(tmp_path)["rows"][0]["invalid"] == 1.0


@pytest.mark.slow
def test_ctrl_c_keeps_a_video_that_plays_and_marks_the_result_as_interrupted(tiny, tmp_path, monkeypatch):
    step = video.VideoWriter.step

    def interrupted_after_ten(self, transition, *overlay):
        step(self, transition, *overlay)
        if transition.step == 9:
            raise KeyboardInterrupt

    monkeypatch.setattr(play.VideoWriter, "step", interrupted_after_ten)
    assert command("--checkpoint", tiny, "--out", tmp_path) == 130
    assert read_frames(tmp_path).shape[0] == 10
    result = read_json(tmp_path)
    assert result["interrupted"]
    assert result["rows"][0]["scores"] == []


@pytest.mark.slow
def test_a_full_disk_is_reported_in_one_line_and_leaves_no_unfinished_file(tiny, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("imageio.plugins.ffmpeg.FfmpegFormat.Writer._append_data", full)
    assert command("--checkpoint", tiny, "--out", tmp_path) == 2
    output = capsys.readouterr().err
    assert "is the disk full?" in output.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--game", "Carnivall"), "nearest: Carnival"),
        (("--game", "joust"), "needs two players"),
        (("--agent", "vln"), "nearest: vlm"),
        (("--episodes", 0), "--episodes must be at least 1, got 0"),
        (("--max-frames", -4), "--max-frames must be at least 1, got -4"),
        (("--seed", -1), "expected a seed of at least 0, got -1"),
        (("--protocol", "v5"), "machado2018 or mnih2015; got 'v5'"),
        (("--checkpoint", "nowhere"), "nowhere, which does not exist"),
        (("--agent", "random", "--checkpoint", "x"), "--checkpoint is for --agent vlm"),
        (("--agent", "sb3:nowhere.zip"), "nowhere.zip, which is not a file"),
    ],
)
def test_each_mistake_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys):
    assert command("--out", tmp_path / "out", *arguments) == 2
    output = capsys.readouterr().err.strip().splitlines()[-1]
    assert output.startswith("error: ")
    assert message in output
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_an_output_directory_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert command("--out", tmp_path / "file" / "below") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_second_play_does_not_write_over_the_films_of_another(tiny, tmp_path, capsys):
    arguments = ("--game", "Carnival", "--checkpoint", tiny, "--max-frames", 24, "--out", tmp_path / "out")
    assert command(*arguments) == 0
    (film,) = (tmp_path / "out").glob("*.mp4")
    before = film.read_bytes(), (tmp_path / "out" / "Carnival-vlm-seed0.json").read_bytes()
    shutil.copytree(tiny, tmp_path / "other")
    for changes, message in (
        (("--checkpoint", tmp_path / "other"), "holds a play with another checkpoint; choose another --out"),
        (("--engine", "torch"), "holds a play with another engine; choose another --out"),
        (("--max-frames", 12), "holds a play with another max_frames; choose another --out"),
    ):
        assert command(*arguments, *changes) == 2
        assert message in capsys.readouterr().err
    assert command(*arguments, "--max-frames", 28, "--episodes", 2) == 0
    assert command(*arguments, "--max-frames", 28) == 2
    assert "holds a play with another episodes" in capsys.readouterr().err
    checkpoint.save(build("tiny", seed=8), tmp_path / "other")
    shutil.rmtree(tmp_path / "out")
    assert command(*arguments, "--checkpoint", tmp_path / "other") == 0
    checkpoint.save(build("tiny", seed=9), tmp_path / "other")
    assert command(*arguments, "--checkpoint", tmp_path / "other") == 2
    assert "another content of the checkpoint" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out")
    assert command(*arguments) == 0
    assert command(*arguments) == 0
    assert (film.read_bytes(), (tmp_path / "out" / "Carnival-vlm-seed0.json").read_bytes())[0] == before[0]


def test_films_that_show_more_have_names_of_their_own():
    args = play.Args(agent="vlm", see=True, highlight=" The Red/Ghost!" + "x" * 99)
    assert args.shown.startswith("-see-highlight-the-red-ghost-xxx")
    assert len(args.shown) < 60
    assert play.Args().shown == ""


def test_a_film_that_no_result_tells_of_is_not_written_over(tmp_path, capsys):
    (tmp_path / "Pong-random-seed0-game0.mp4").write_bytes(b"a film of mine")
    assert command("--game", "Pong", "--agent", "random", "--max-frames", 12, "--out", tmp_path) == 2
    assert "Pong-random-seed0-game0.mp4 exists and is not of this command" in capsys.readouterr().err
    assert (tmp_path / "Pong-random-seed0-game0.mp4").read_bytes() == b"a film of mine"


def test_a_killed_play_keeps_the_scores_of_the_games_that_ended(tmp_path, monkeypatch):
    close, closed = play.VideoWriter.close, []

    def killed_at_the_second(self):
        closed.append(read_json(tmp_path)["rows"][0]["steps"])
        if len(closed) == 2:
            raise SystemExit(9)
        close(self)

    monkeypatch.setattr(play.VideoWriter, "close", killed_at_the_second)
    arguments = ("--game", "Pong", "--agent", "random", "--episodes", 2, "--max-frames", 12, "--out", tmp_path)
    with pytest.raises(SystemExit):
        command(*arguments)
    assert closed == [3, 6]
    monkeypatch.setattr(play.VideoWriter, "close", close)
    assert command(*arguments) == 0
    assert not read_json(tmp_path)["interrupted"]


def test_a_missing_ffmpeg_is_one_line_before_anything_is_played(tmp_path, monkeypatch, capsys):
    def missing():
        raise RuntimeError("No ffmpeg exe could be found")

    monkeypatch.setattr(video, "get_ffmpeg_exe", missing)
    monkeypatch.setattr(play, "make_envs", lambda *_, **__: pytest.fail("played"))
    assert command("--agent", "random", "--out", tmp_path / "out") == 2
    assert (
        "expected an ffmpeg that runs, to read and write videos; pip install imageio-ffmpeg" in capsys.readouterr().err
    )


@pytest.mark.parametrize("broken", ["display.init", "display.set_mode"])
def test_a_display_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys, broken):
    pygame = MagicMock(error=type("error", (Exception,), {}))
    part, name = broken.split(".")
    getattr(getattr(pygame, part), name).side_effect = pygame.error("No available video device")
    monkeypatch.setitem(sys.modules, "pygame", pygame)
    assert command("--agent", "random", "--render", "human", "--no-video", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error == "error: a window needs a display: No available video device; without one, play with --render none"


def test_bars_show_probabilities_unchanged_and_values_from_worst_to_best():
    assert video.bar_lengths(np.array([0.25, 0.75]), 2).tolist() == [0.25, 0.75]
    bars = video.bar_lengths(np.array([-np.inf, -10.0, 30.0, 10.0]), 4)
    assert bars == pytest.approx([0, 0, 1, 0.5], abs=1e-6)
    assert video.bar_lengths(None, 3).tolist() == [0, 0, 0]


def test_the_left_of_a_video_frame_is_the_true_frame():
    frame = np.random.default_rng(0).integers(0, 256, (210, 160, 3), dtype=np.uint8)
    transition = Transition(0, 1, 5, frame, 1, "up", np.array([0.2, 0.8]), False, 10.0, 30.0, False, False)
    image = draw_transition(transition, Panel("Ms. Pac-Man", "vlm", ("noop", "up"), 4))
    top = (image.shape[0] - 630) // 2
    assert np.array_equal(image[top : top + 630 : 3, :480:3], frame)
    assert image.shape[0] % 16 == image.shape[1] % 16 == 0


def black(step):
    """A transition with a black frame."""
    frame = np.zeros((210, 160, 3), np.uint8)
    return Transition(0, 1, step, frame, 0, "noop", None, False, 0.0, 0.0, False, False)


def test_the_panels_time_counts_emulator_frames():
    def image(step, frame_skip):
        return draw_transition(black(step), Panel("Pong", "vlm", ("noop",), frame_skip))

    assert np.array_equal(image(450, 4), image(900, 2))  # both half a minute
    assert not np.array_equal(image(900, 4), image(900, 2))


def test_an_answer_cannot_run_over_what_is_below_it_in_the_picture():
    panel = Panel("Pong", "vlm\n\n\n", ("noop",), 4)
    lines, escapes = (draw_transition(replace(black(0), text=text), panel) for text in ("a\nb", r"a\nb"))
    assert np.array_equal(lines, escapes)


def test_a_highlighted_mask_is_drawn_on_the_frame_and_named_in_the_panel():
    mask = np.zeros((210, 160), bool)
    mask[100:110, 50:60] = True
    panel = Panel("Pong", "vlm", ("noop",), 4)
    plain, shown = (draw_transition(black(5), panel, found) for found in (None, OverlayFrame("the ball", mask)))
    top = (shown.shape[0] - 630) // 2
    rows, columns = np.nonzero((shown[top : top + 630, :480] == MASK_COLOR).all(-1))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (300, 329, 150, 179)
    assert len(rows) == 4 * 29
    assert (plain[:, 480:] != shown[:, 480:]).any()


def test_a_highlight_is_segmented_in_a_game_that_is_taller_than_the_models_square(tmp_path):
    checkpoint.save(build("tiny-clip"), tmp_path / "segmenter", {"points": 3})
    arguments = ("--game", "AirRaid", "--agent", "random", "--max-frames", 8, "--out", tmp_path / "out")
    assert command(*arguments, "--highlight", "the plane", "--segmenter", tmp_path / "segmenter") == 0
    assert read_frames(tmp_path / "out").shape[:2] == (2, 752)


def test_a_highlight_is_segmented_and_filmed(segmenter, tmp_path, capsys):
    arguments = ("--highlight", "the duck", "--segmenter", segmenter)
    assert command("--agent", "random", "--max-frames", 40, "--out", tmp_path, *arguments) == 0
    frames = read_frames(tmp_path)
    assert len(frames) == 10
    assert read_frames(tmp_path)[:, -30:-12, 490:].max() > 100  # the expression, at the panel's foot
    assert command("--out", tmp_path, "--highlight", "the duck", "--segmenter", segmenter.parent / "plain") == 2
    assert "expected a checkpoint trained on masks" in capsys.readouterr().err
    assert command("--out", tmp_path, "--highlight", "x", "--no-video") == 2
    assert command("--out", tmp_path, "--segmenter", segmenter) == 2


@pytest.fixture
def segmenter(tmp_path):
    """A segmentation checkpoint, and beside it one without masks."""
    for name, training in (("segmenter", {"points": 3}), ("plain", {})):
        checkpoint.save(build("tiny"), tmp_path / "runs" / name, training)
    return tmp_path / "runs" / "segmenter"


def test_a_video_that_lacks_frames_is_refused(tmp_path):
    with imageio.get_writer(tmp_path / "v.mp4", fps=15) as writer:
        for _ in range(5):
            writer.append_data(np.zeros((32, 32, 3), np.uint8))
    check_video(tmp_path / "v.mp4", 5)
    with pytest.raises(UserError, match="holds 5 frames where 6 were written"):
        check_video(tmp_path / "v.mp4", 6)


def test_a_video_is_checked_whatever_the_clock_says(tmp_path, monkeypatch):
    with imageio.get_writer(tmp_path / "v.mp4", fps=15) as writer:
        for _ in range(5):
            writer.append_data(np.zeros((32, 32, 3), np.uint8))
    years = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 3e7 * next(years))
    check_video(tmp_path / "v.mp4", 5)
    (tmp_path / "half.mp4").write_bytes((tmp_path / "v.mp4").read_bytes()[:300])
    with pytest.raises(UserError, match=r"half.mp4 does not decode: [^\n]+$"):
        check_video(tmp_path / "half.mp4", 5)


def test_two_plays_do_not_write_one_result_at_once(tmp_path, capsys, monkeypatch):
    out, seen = tmp_path / "out", []
    step = play.EpisodeRecorder.step

    def locked(self, transition):
        seen.append(FileLock(lock_file(self.result_file)))
        with pytest.raises(Timeout):
            seen[-1].acquire(timeout=0)
        step(self, transition)

    monkeypatch.setattr(play.EpisodeRecorder, "step", locked)
    words = ("--game", "Pong", "--agent", "random", "--max-frames", 8, "--no-video", "--out", out)
    assert command(*words) == 0
    assert len(seen) == 2
    seen[-1].acquire(timeout=0)
    assert command(*words) == 2
    seen[-1].release()
    assert "another command is writing" in capsys.readouterr().err
