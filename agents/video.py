"""Video of true frames with the agent's words beside them, streamed to the encoder as the game goes on.

The left of the picture is the game, scaled up without smoothing; the right tells the game, the model's text action,
the score of every legal action as a bar, and the running score. Frames come at the game's own speed. The file is
written under another name and renamed when it is whole; `check_video` decodes it again.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from agents.rollout import Transition
from common.errors import UserError
from vlm.segmentation.mask_drawing import SHOWN, draw_mask

EMULATOR_FRAMES_PER_SECOND = 60
SCALE = 3
PANEL = 288
INK, DIM, BACK, BAR, CHOSEN = (236, 236, 240), (150, 152, 164), (18, 19, 26), (62, 84, 122), (255, 176, 46)


@dataclass(frozen=True)
class OverlayFrame:
    """What a viewer asked to see: words, and their mask bool[H, W] in the frame at hand."""

    words: str
    mask: np.ndarray


def draw_turn(
    turn: Transition, title: str, agent: str, action_names: tuple[str, ...], shown: OverlayFrame | None = None
) -> np.ndarray:
    """Return the picture of a turn, uint8[rows, columns, 3], both sides multiples of 16 as encoders like them."""
    height, width, _ = turn.frame.shape
    rows = -(-SCALE * height // 16) * 16
    picture = Image.new("RGB", (SCALE * width + PANEL, rows), BACK)
    mask = shown.mask if shown else np.zeros((height, width), dtype=bool)
    game = Image.fromarray(draw_mask(turn.frame, mask, SCALE, dim=False))
    picture.paste(game, (0, (rows - SCALE * height) // 2))
    draw = ImageDraw.Draw(picture)
    _draw_panel(draw, SCALE * width + 18, turn, title, agent, action_names)
    if shown:
        said = f"{_short(shown.words, 34)}: {int(mask.sum())} pixels"
        draw.text((SCALE * width + 18, rows - 30), said, SHOWN, ImageFont.load_default(13))
    return np.asarray(picture)


def _draw_panel(
    draw: ImageDraw.ImageDraw, left: int, turn: Transition, title: str, agent: str, action_names: tuple[str, ...]
) -> None:
    small, text, large = (ImageFont.load_default(size) for size in (13, 16, 26))
    right = left + PANEL - 36
    draw.text((left, 18), title, INK, large)
    draw.text((left, 52), f"agent: {agent}", DIM, small)
    draw.text((left, 88), "score", DIM, small)
    draw.text((left, 104), f"{turn.score - turn.reward:,.0f}", INK, large)
    draw.text((left + 130, 88), "time", DIM, small)
    seconds = turn.step * 4 // EMULATOR_FRAMES_PER_SECOND
    draw.text((left + 130, 104), f"{seconds // 60}:{seconds % 60:02d}", INK, large)
    draw.text((left, 152), "it says", DIM, small)
    draw.text((left, 168), f"“{_short(turn.text, 19)}”", (255, 96, 96) if turn.invalid else CHOSEN, large)
    shares = bar_lengths(turn.scores, len(action_names))
    step = min(24, 360 // len(action_names))
    for i, (name, share) in enumerate(zip(action_names, shares, strict=True)):
        top = 222 + i * step
        colour = CHOSEN if i == turn.action else BAR
        draw.rectangle((left + 118, top + 3, right, top + step - 6), (34, 36, 48))
        if share > 0:
            draw.rectangle((left + 118, top + 3, left + 118 + share * (right - left - 118), top + step - 6), colour)
        draw.text((left, top), name, INK if i == turn.action else DIM, text if step > 20 else small)


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[:letters] + "…"


def bar_lengths(scores: np.ndarray | None, count: int) -> np.ndarray:
    """Return float[count] in [0, 1]: probabilities as they are, a planner's values from worst to best."""
    if scores is None:
        return np.zeros(count)
    finite = np.isfinite(scores)
    if not finite.any():
        return np.zeros(count)
    if finite.all() and scores.min() >= 0 and abs(scores.sum() - 1) < 1e-3:
        return scores
    low, high = scores[finite].min(), scores[finite].max()
    return np.where(finite, (np.where(finite, scores, low) - low + 1e-9) / (high - low + 1e-9), 0.0)


class VideoWriter:
    """Streams the turns of one game into an mp4 at true speed; holds one frame in memory, not a game.

    A turn lasts `frame_skip` emulator frames, so that 60 / frame_skip pictures make a second.
    """

    def __init__(self, file: Path, title: str, agent: str, action_names: tuple[str, ...], frame_skip: int):
        self.file, self.frames = Path(file), 0
        self._look = (title, agent, action_names)
        self._aside = self.file.with_name(f".{os.getpid()}.{self.file.name}")
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self._writer = imageio.get_writer(
            self._aside,
            format="FFMPEG",
            fps=EMULATOR_FRAMES_PER_SECOND / frame_skip,
            codec="libx264",
            macro_block_size=16,
            output_params=["-preset", "veryfast", "-crf", "20", "-threads", "1"],
        )

    def step(self, turn: Transition, shown: OverlayFrame | None = None) -> None:
        """Add a turn; a disk that is full, or an encoder that died, is told in one line."""
        try:
            self._writer.append_data(draw_turn(turn, *self._look, shown))
        except OSError as error:
            raise UserError(f"{self.file} could not be filmed further (is the disk full?): {error}") from error
        self.frames += 1

    def close(self) -> None:
        """Finish the file, so that what was filmed plays, and give it its name."""
        self._writer.close()
        if not self.frames:
            self._aside.unlink(missing_ok=True)
            return
        check_video(self._aside, self.frames)
        os.replace(self._aside, self.file)

    def discard(self) -> None:
        """Leave no half-written file behind."""
        self._writer.close()
        self._aside.unlink(missing_ok=True)


def check_video(file: Path, frames: int) -> None:
    """Decode a video and count its frames; too few mean that it was not written whole."""
    try:
        reader: Any = imageio.get_reader(file, format="FFMPEG")
        with reader:
            found = sum(1 for _ in reader.iter_data())
    except (OSError, RuntimeError) as error:
        raise UserError(f"{file} does not decode: {error}") from error
    if found != frames:
        raise UserError(f"{file} holds {found} frames where {frames} were filmed; is the disk full?")
