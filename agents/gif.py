"""Cut a small animated GIF out of a video, for pages that show images only.

    python -m agents.gif --video videos/Carnival-vlm-seed0-game0.mp4 --start 10 --seconds 8 --out clip.gif

The clip keeps the video's speed at a lower frame rate and size. All frames share one palette, so that a static
background compresses well.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import tyro
from PIL import Image

from common.command import run
from common.errors import UserError
from common.files import atomic_file


@dataclass
class Args:
    """Cut an animated GIF out of a video."""

    video: Path
    """The video, of `agents.play` or any other."""
    out: Path
    """The GIF."""
    start: float = 0.0
    """Start of the clip, in seconds."""
    seconds: float = 8.0
    """Length of the clip."""
    fps: float = 7.5
    """Frames per second, at most those of the video."""
    scale: float = 0.5
    """Factor of both sides."""
    colors: int = 64
    """Size of the palette that all frames share."""

    def __post_init__(self) -> None:
        for name in ("seconds", "fps", "scale"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name} must be above 0, got {getattr(self, name)}")
        if self.start < 0:
            raise UserError(f"--start must be at least 0, got {self.start}")
        if not 2 <= self.colors <= 256:
            raise UserError(f"--colors must be from 2 to 256, got {self.colors}")
        if self.out.suffix != ".gif":
            raise UserError(f"expected --out to end in .gif, got {self.out}")


def read_clip(args: Args) -> tuple[list[Image.Image], float]:
    """Return the clip's frames at their final size, and the frames per second."""
    if not args.video.is_file():
        raise UserError(f"there is no video {args.video}")
    try:
        reader: Any = imageio.get_reader(args.video, format="FFMPEG")
        with reader:
            video_fps = float(reader.get_meta_data()["fps"])
            stride = max(1, round(video_fps / args.fps))
            first, last = round(args.start * video_fps), round((args.start + args.seconds) * video_fps)
            frames = [frame for number, frame in enumerate(reader.iter_data()) if first <= number < last]
    except (OSError, RuntimeError) as error:
        raise UserError(f"{args.video} does not decode: {error}") from error
    if not frames:
        raise UserError(f"{args.video} ends before --start {args.start}")
    return [_resize(frame, args.scale) for frame in frames[::stride]], video_fps / stride


def _resize(frame: np.ndarray, scale: float) -> Image.Image:
    height, width, _ = frame.shape
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Image.fromarray(frame).resize(size, Image.Resampling.BOX)


def write_gif(args: Args) -> int:
    """Write the GIF; return its number of frames."""
    frames, fps = read_clip(args)
    palette = frames[len(frames) // 2].quantize(args.colors)
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    duration = round(1000 / fps)  # milliseconds
    with atomic_file(args.out) as temporary:
        first.save(temporary, "GIF", save_all=True, append_images=others, duration=duration, loop=0, optimize=True)
    return len(frames)


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    count = write_gif(args)
    print(f"{args.out}: {count} frames, {args.out.stat().st_size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
