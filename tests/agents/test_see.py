"""A film shows what a model answers for every cell of a grid: the prediction, enlarged, above the truth."""

import json

import imageio.v2 as imageio
import numpy as np
import pytest

from agents import play
from agents.frame_questions import QuestionedModel
from agents.rollout import Transition
from agents.seen_frame import FrameReader, GridAnswer, SeenFrame
from agents.video import SEEN_CAPTION, SEEN_MARGIN, SEEN_WIDTH, Panel, draw_transition
from common.command import run
from pretrain.pvp_prediction import predict_grid
from pretrain.pvp_questions import PixelPromptFormat, downsample_grid
from vlm import checkpoint
from vlm.presets import build

TRAINING = {"games": ["Carnival"], "arguments": {"grid": "8", "size": [210, 160]}}


def command(*arguments):
    return run(lambda: play.main([str(argument) for argument in arguments]))


def transition(step, value=0):
    frame = np.random.default_rng(value).integers(0, 256, (210, 160, 3), dtype=np.uint8)
    return Transition(0, 1, step, frame, 0, "noop", None, False, 0.0, 0.0, False, False)


@pytest.fixture
def seeing(tmp_path):
    checkpoint.save(build("tiny", seed=7), tmp_path / "seeing", TRAINING)
    return tmp_path / "seeing"


def test_the_panel_holds_the_prediction_above_the_truth():
    rng = np.random.default_rng(0)
    grid = GridAnswer(*(rng.integers(0, 256, (7, 5, 3), dtype=np.uint8) for _ in range(2)))
    panel = Panel("Pong", "vlm", ("noop",), 4)
    plain, image = (draw_transition(transition(5), panel, None, seen) for seen in (None, SeenFrame(grid, 5)))
    assert image.shape == (plain.shape[0], plain.shape[1] + SEEN_WIDTH, 3)
    assert image.shape[0] % 16 == image.shape[1] % 16 == 0
    assert np.array_equal(image[:, :480], plain[:, :480])
    assert np.array_equal(image[:, 480 + SEEN_WIDTH :], plain[:, 480:])
    half = image.shape[0] // 2
    width, height = SEEN_WIDTH - SEEN_MARGIN, half - SEEN_CAPTION - SEEN_MARGIN
    rows = ((np.arange(7) + 0.5) * height / 7).astype(int)
    columns = ((np.arange(5) + 0.5) * width / 5).astype(int) + 480 + SEEN_MARGIN
    for index, cells in enumerate((grid.predicted, grid.true)):
        top = index * half + SEEN_MARGIN // 2 + SEEN_CAPTION
        assert np.array_equal(image[top + rows][:, columns], cells)
    assert grid.mae == pytest.approx(np.abs(grid.predicted.astype(float) - grid.true).mean())


def test_a_frame_is_asked_about_once_and_the_answers_are_those_of_the_model():
    vlm = build("tiny", seed=7)
    reader = FrameReader(QuestionedModel(vlm, TRAINING), every=3)
    seen = [reader.read(transition(step, value=step)) for step in range(5)]
    assert [one.step for one in seen] == [0, 0, 0, 3, 3]
    frames = np.stack([transition(step, value=step).frame for step in (2, 3)])
    expected = predict_grid(vlm, frames, 8, 8, PixelPromptFormat.from_model(vlm)).greedy.reshape(8, 8, 3)
    assert np.array_equal(seen[3].grid.predicted, expected)
    assert np.array_equal(seen[3].grid.true, downsample_grid(frames[1], "8"))
    assert len(reader.seconds) == 2
    assert reader.summary()["see_grid"] == "8 x 8"


def test_a_game_is_filmed_with_what_the_model_sees(seeing, tmp_path, capsys):
    assert command("--checkpoint", seeing, "--max-frames", 24, "--see", "--see-every", 2, "--out", tmp_path) == 0
    assert "8 x 8 pixel values: " in capsys.readouterr().out
    (file,) = tmp_path.glob("*.json")
    row = json.loads(file.read_text())["rows"][0]
    assert row["see_ms"] > 0
    assert 0 < row["see_mae"] < 255
    with imageio.get_reader(next(tmp_path.glob("*.mp4"))) as reader:
        frames = [frame for frame in reader]
    assert len(frames) == 6
    assert frames[0].shape[1] == 480 + SEEN_WIDTH + 288


def test_the_window_shows_the_same_image(seeing, tmp_path, monkeypatch):
    shown = []

    class Window:
        def __init__(self, game):
            pass

        def show(self, frame, scale=4):
            shown.append((frame.shape, scale))

    monkeypatch.setattr(play, "Window", Window)
    arguments = ("--max-frames", 8, "--see", "--no-video", "--render", "human", "--out", tmp_path / "out")
    assert command("--agent", "random", "--see-checkpoint", seeing, *arguments) == 0
    assert shown == [((656, 480 + SEEN_WIDTH + 288, 3), 1)] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--agent", "random", "--see"), "expected --see-checkpoint DIR with --agent random"),
        (("--see", "--no-video"), "--see is drawn in the video"),
        (("--see-every", 2), "need --see"),
        (("--see", "--see-every", 0), "--see-every must be at least 1, got 0"),
        (("--see", "--see-checkpoint", "nowhere"), "nowhere, which does not exist"),
    ],
)
def test_each_mistake_is_one_line(arguments, message, tmp_path, capsys):
    assert command("--out", tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_model_that_was_not_trained_on_pixels_is_refused(tiny, tmp_path, capsys):
    assert command("--checkpoint", tiny, "--see", "--out", tmp_path / "out") == 2
    output = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"expected a checkpoint trained on pixel values (`pretrain.pvp`), got {tiny}" in output
