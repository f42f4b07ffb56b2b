"""A clip holds the video from its start on, at the video's own speed."""

import imageio.v2 as imageio
import numpy as np
import pytest
from PIL import Image, ImageSequence

from agents import gif
from common.command import run


@pytest.fixture
def video(tmp_path):
    """A video of 30 frames at 15 fps: a white square that moves 16 columns to the right each second."""
    file = tmp_path / "video.mp4"
    with imageio.get_writer(file, format="FFMPEG", fps=15, codec="libx264", macro_block_size=16) as writer:
        for number in range(30):
            frame = np.zeros((64, 64, 3), np.uint8)
            left = 16 * (number // 15)
            frame[16:32, left : left + 16] = 255
            writer.append_data(frame)
    return file


def command(*arguments):
    return run(lambda: gif.main([str(argument) for argument in arguments]))


def test_a_clip_starts_at_its_start_and_keeps_the_videos_speed(video, tmp_path, capsys):
    out = tmp_path / "new" / "clip.gif"
    assert command("--video", video, "--out", out, "--start", 0.6, "--seconds", 0.8, "--fps", 5) == 0
    assert "4 frames" in capsys.readouterr().out
    lefts, times = [], []
    with Image.open(out) as found:
        assert found.info["loop"] == 0
        for frame in ImageSequence.Iterator(found):
            shown = np.asarray(frame.convert("L")).astype(int)
            assert shown.shape == (32, 32)
            lefts.append(int((shown[12] > 128).argmax()))
            times.append(frame.info["duration"])
    assert lefts == [0, 8]  # equal frames are merged into one of longer duration
    assert times == [400, 400]
    assert [file.name for file in out.parent.iterdir()] == ["clip.gif"]


@pytest.mark.parametrize(("fps", "asked"), [(60, 60), (60, 7.5), (30, 30), (15, 15), (60 / 7, 50), (50, 50)])
def test_a_clip_lasts_as_long_as_its_part_of_the_video_and_no_frame_is_too_short(tmp_path, fps, asked):
    count = round(2 * fps)
    with imageio.get_writer(tmp_path / "v.mp4", format="FFMPEG", fps=fps, macro_block_size=16) as writer:
        for number in range(count):
            writer.append_data(np.full((32, 32, 3), 255 * (number // 2 % 2), np.uint8))
    out = tmp_path / "clip.gif"
    assert command("--video", tmp_path / "v.mp4", "--out", out, "--seconds", 9, "--fps", asked, "--colors", 4) == 0
    with Image.open(out) as found:
        times = [frame.info["duration"] for frame in ImageSequence.Iterator(found)]
    assert sum(times) == pytest.approx(1000 * count / fps, abs=1000 * count / fps / 50)
    assert min(times) >= 20


def test_durations_are_whole_hundredths_whose_sum_does_not_drift():
    assert gif.durations(3, 30) == [30, 40, 30]
    assert sum(gif.durations(240, 60 / 2)) == 8000
    assert set(gif.durations(500, 50)) == {20}


@pytest.mark.parametrize("executable", ["/nowhere/ffmpeg", "/bin/false", "/etc"])
def test_an_ffmpeg_that_does_not_run_is_one_line(video, tmp_path, monkeypatch, capsys, executable):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", executable)
    assert command("--video", video, "--out", tmp_path / "clip.gif") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: expected an ffmpeg that runs, to read and write videos; IMAGEIO_FFMPEG_EXE=")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--start", 9), "ends before --start 9.0"),
        (("--scale", 0), "--scale must be above 0, got 0.0"),
        (("--colors", 1), "--colors must be from 2 to 256, got 1"),
    ],
)
def test_a_clip_that_cannot_be_cut_is_refused_in_one_line(video, tmp_path, capsys, arguments, message):
    assert command("--video", video, "--out", tmp_path / "clip.gif", *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_clip_is_not_written_over_its_video(video, tmp_path, capsys):
    content = video.read_bytes()
    named = video.rename(tmp_path / "film.gif")
    assert command("--video", named, "--out", tmp_path / "film.gif") == 2
    assert "would be written over what is read" in capsys.readouterr().err
    assert named.read_bytes() == content


def test_a_file_that_is_no_video_is_refused_by_name(tmp_path, capsys):
    assert command("--video", tmp_path / "none.mp4", "--out", tmp_path / "clip.gif") == 2
    assert "there is no video" in capsys.readouterr().err
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    assert command("--video", tmp_path / "bad.mp4", "--out", tmp_path / "clip.gif") == 2
    assert "does not decode" in capsys.readouterr().err
    assert command("--video", tmp_path / "bad.mp4", "--out", tmp_path / "clip.mp4") == 2
    assert "expected --out to end in .gif" in capsys.readouterr().err
