"""Video of true frames beside a panel with the agent's answer, streamed to the encoder during play.

The left of the image is the frame, enlarged without smoothing; the right shows the game, the agent's text action, the
score of every legal action as a bar, and the running score. Between them there may be what a model answers for every
cell of a grid over the frame, above the truth. The video runs at the game's own speed.
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from imageio_ffmpeg import count_frames_and_secs, get_ffmpeg_exe
from PIL import Image, ImageDraw, ImageFont

from agents.frame_stack import FrameStack
from agents.rollout import Transition
from agents.seen_frame import SeenFrame
from common.errors import UserError
from common.files import replace_file, temporary_path
from common.text import printable
from vlm.segmentation.mask_drawing import MASK_COLOR, draw_mask

EMULATOR_FRAMES_PER_SECOND = 60
SCALE = 3
PANEL_WIDTH = 288
SEEN_WIDTH, SEEN_MARGIN, SEEN_CAPTION = 240, 10, 22  # of the grids between frame and panel
BLOCK = 16  # both sides of a video's frames are multiples of an encoder's macroblock
TEXT, DIM_TEXT, BACKGROUND = (236, 236, 240), (150, 152, 164), (18, 19, 26)
BAR, EMPTY_BAR, CHOSEN, INVALID = (62, 84, 122), (34, 36, 48), (255, 176, 46), (255, 96, 96)


@dataclass(frozen=True)
class OverlayFrame:
    """An expression and its mask bool[H, W] in the current frame."""

    expression: str
    mask: np.ndarray


class MaskOverlay:
    """Segments an expression in the frames of one episode after the other, with a `ReferringSegmenter`."""

    def __init__(self, segmenter: Any, expression: str):
        self.segmenter, self.expression = segmenter, expression
        self._frame_stack = FrameStack(segmenter.vlm.history)

    def segment(self, transition: Transition) -> OverlayFrame:
        """Return the mask in a transition's frame."""
        self._frame_stack.reset(np.array([transition.step == 0]))
        stack = self._frame_stack.add(transition.frame[None])[0]
        return OverlayFrame(self.expression, self.segmenter.predict(stack, [self.expression])[0] > 0.5)


@dataclass(frozen=True)
class Panel:
    """The panel beside the frames: the constants of a video, and how they are drawn with a transition."""

    title: str
    agent: str
    action_names: tuple[str, ...]
    frame_skip: int

    def draw(self, draw: ImageDraw.ImageDraw, left: int, transition: Transition) -> None:
        """Draw the panel of a transition from column `left` on."""
        small, large = ImageFont.load_default(13), ImageFont.load_default(26)
        seconds = transition.step * self.frame_skip // EMULATOR_FRAMES_PER_SECOND
        draw.text((left, 18), self.title, TEXT, large)
        draw.text((left, 52), f"agent: {printable(self.agent)}", DIM_TEXT, small)
        draw.text((left, 88), "score", DIM_TEXT, small)
        draw.text((left, 104), f"{transition.score - transition.reward:,.0f}", TEXT, large)
        draw.text((left + 130, 88), "time", DIM_TEXT, small)
        draw.text((left + 130, 104), f"{seconds // 60}:{seconds % 60:02d}", TEXT, large)
        draw.text((left, 152), "answer", DIM_TEXT, small)
        color = INVALID if transition.invalid else CHOSEN
        draw.text((left, 168), f"“{_shorten(transition.text, 19)}”", color, large)
        self._draw_bars(draw, left, transition)

    def _draw_bars(self, draw: ImageDraw.ImageDraw, left: int, transition: Transition) -> None:
        bar_left, bar_right = left + 118, left + PANEL_WIDTH - 36
        spacing = min(24, 360 // len(self.action_names))
        font = ImageFont.load_default(16 if spacing > 20 else 13)
        lengths = bar_lengths(transition.scores, len(self.action_names))
        for i, (name, length) in enumerate(zip(self.action_names, lengths, strict=True)):
            top, chosen = 222 + i * spacing, i == transition.action
            bottom = top + spacing - 6
            draw.rectangle((bar_left, top + 3, bar_right, bottom), EMPTY_BAR)
            if length > 0:
                bar_end = bar_left + length * (bar_right - bar_left)
                draw.rectangle((bar_left, top + 3, bar_end, bottom), CHOSEN if chosen else BAR)
            draw.text((left, top), name, TEXT if chosen else DIM_TEXT, font)


def draw_transition(
    transition: Transition, panel: Panel, overlay: OverlayFrame | None = None, seen: SeenFrame | None = None
) -> np.ndarray:
    """Return the video frame of a transition, uint8[rows, columns, 3]."""
    height, width, _ = transition.frame.shape
    rows, seen_width = -(-SCALE * height // BLOCK) * BLOCK, SEEN_WIDTH if seen else 0
    image = Image.new("RGB", (SCALE * width + seen_width + PANEL_WIDTH, rows), BACKGROUND)
    mask = overlay.mask if overlay else np.zeros((height, width), dtype=bool)
    frame = Image.fromarray(draw_mask(transition.frame, mask, SCALE, dim=False))
    image.paste(frame, (0, (rows - SCALE * height) // 2))
    if seen:
        draw_seen(image, SCALE * width, seen)
    draw, left = ImageDraw.Draw(image), SCALE * width + seen_width + 18
    panel.draw(draw, left, transition)
    if overlay:
        label = f"{_shorten(overlay.expression, 34)}: {int(mask.sum())} pixels"
        draw.text((left, rows - 30), label, MASK_COLOR, ImageFont.load_default(13))
    return np.asarray(image)


def draw_seen(image: Image.Image, left: int, seen: SeenFrame) -> None:
    """Draw the answers above the truth, enlarged without smoothing, each with a caption, from column `left` on."""
    font, half, (rows, columns, _) = ImageFont.load_default(13), image.height // 2, seen.grid.true.shape
    size = (SEEN_WIDTH - SEEN_MARGIN, half - SEEN_CAPTION - SEEN_MARGIN)
    captions = (
        f"the model's answers: mean error {seen.grid.mae:.1f}",
        f"the truth, {rows} x {columns}, step {seen.step}",
    )
    for index, (cells, caption) in enumerate(zip((seen.grid.predicted, seen.grid.true), captions, strict=True)):
        top = index * half + SEEN_MARGIN // 2
        ImageDraw.Draw(image).text((left + SEEN_MARGIN, top), caption, TEXT, font)
        enlarged = Image.fromarray(cells).resize(size, Image.Resampling.NEAREST)
        image.paste(enlarged, (left + SEEN_MARGIN, top + SEEN_CAPTION))


def _shorten(text: str, length: int) -> str:
    text = printable(text)  # a new line would run over what is below
    return text if len(text) <= length else text[:length] + "…"


def bar_lengths(scores: np.ndarray | None, count: int) -> np.ndarray:
    """Return float[count] in [0, 1]: probabilities unchanged, a search's values scaled from worst to best."""
    if scores is None or not (finite := np.isfinite(scores)).any():
        return np.zeros(count)
    if finite.all() and scores.min() >= 0 and abs(scores.sum() - 1) < 1e-3:
        return scores
    low, high = scores[finite].min(), scores[finite].max()
    return np.where(finite, (np.where(finite, scores, low) - low + 1e-9) / (high - low + 1e-9), 0.0)


def require_ffmpeg() -> None:
    """Refuse to begin without an ffmpeg that runs; the message says how to get one."""
    try:
        subprocess.run([get_ffmpeg_exe(), "-version"], check=True, capture_output=True, timeout=60)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        given = os.environ.get("IMAGEIO_FFMPEG_EXE")
        remedy = f"IMAGEIO_FFMPEG_EXE={given} is none: unset it" if given else "pip install imageio-ffmpeg"
        raise UserError(f"expected an ffmpeg that runs, to read and write videos; {remedy} ({error})") from error


class VideoWriter:
    """Streams one episode into an mp4; holds one frame in memory. The file gets its name when it is complete."""

    def __init__(self, file: Path, panel: Panel):
        self.file, self.panel, self.num_frames = Path(file), panel, 0
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = temporary_path(self.file)
        self._writer = imageio.get_writer(
            self._temporary,
            format="FFMPEG",
            fps=EMULATOR_FRAMES_PER_SECOND / panel.frame_skip,
            codec="libx264",
            macro_block_size=BLOCK,
            output_params=["-preset", "veryfast", "-crf", "20", "-threads", "1"],
        )

    def step(self, transition: Transition, overlay: OverlayFrame | None = None, seen: SeenFrame | None = None) -> None:
        """Add a transition; `UserError` reports a full disk or an encoder that died."""
        try:
            self._writer.append_data(draw_transition(transition, self.panel, overlay, seen))
        except OSError as error:
            raise UserError(f"{self.file} could not be written further (is the disk full?): {error}") from error
        self.num_frames += 1

    def close(self) -> None:
        """Finish the file, check it and give it its name; a video without frames is discarded."""
        if not self.num_frames:
            self.discard()
            return
        self._writer.close()
        check_video(self._temporary, self.num_frames)
        replace_file(self._temporary, self.file)

    def discard(self) -> None:
        """Delete the unfinished file."""
        self._writer.close()
        self._temporary.unlink(missing_ok=True)


def check_video(file: Path, num_frames: int) -> None:
    """Decode a video and count its frames; `UserError` if it is incomplete."""
    try:
        decoded, _ = count_frames_and_secs(str(file))  # imageio's reader gives up after ten seconds of any clock
    except (OSError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UserError(f"{file} does not decode: {reason}") from error
    if decoded != num_frames:
        raise UserError(f"{file} holds {decoded} frames where {num_frames} were written; is the disk full?")
