"""Cut a small animated GIF out of a video, for pages that show images only.

    python -m agents.gif --video videos/Carnival-vlm-seed0-game0.mp4 --start 10 --seconds 8 --out clip.gif

The clip keeps the video's speed at a lower frame rate and size: a GIF's frames last whole hundredths of a second, two
at least. All frames share one palette, so that a static background compresses well.
"""

import itertools
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
from PIL import Image

from agents.video import require_ffmpeg
from common.command import command, require_at_least, run
from common.errors import UserError
from common.files import atomic_file
from common.outputs import require_output_files

MAX_FPS = 50  # a frame that lasts less than two hundredths of a second is shown for ten


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
    """Frames per second, at most those of the video, and 50."""
    scale: float = 0.5
    """Factor of both sides."""
    colors: int = 64
    """Size of the palette that all frames share."""

    def __post_init__(self) -> None:
        for name in ("seconds", "fps", "scale"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name} must be above 0, got {getattr(self, name)}")
        require_at_least(self, 0, "start")
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
            stride = max(1, round(video_fps / args.fps), math.ceil(video_fps / MAX_FPS))
            first, last = round(args.start * video_fps), round((args.start + args.seconds) * video_fps)
            frames = [Image.fromarray(frame) for i, frame in enumerate(reader.iter_data()) if first <= i < last]
    except (OSError, RuntimeError) as error:
        raise UserError(f"{args.video} does not decode: {error}") from error
    if not frames:
        raise UserError(f"{args.video} ends before --start {args.start}")
    size = [max(1, round(side * args.scale)) for side in frames[0].size]
    return [frame.resize(size, Image.Resampling.BOX) for frame in frames[::stride]], video_fps / stride


def durations(count: int, fps: float) -> list[int]:
    """Return how long each frame lasts, in milliseconds, so that every frame begins within 5 ms of its time."""
    starts = [10 * round(100 * number / fps) for number in range(count + 1)]
    return [end - start for start, end in itertools.pairwise(starts)]


def write_gif(args: Args) -> str:
    """Write the GIF; return a line about it."""
    require_output_files([args.out], [args.video])
    require_ffmpeg()
    frames, fps = read_clip(args)
    palette = frames[len(frames) // 2].quantize(args.colors)
    first, *others = (frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames)
    options = {"save_all": True, "append_images": others, "loop": 0, "optimize": True}
    with atomic_file(args.out) as temporary:
        first.save(temporary, "GIF", duration=durations(len(frames), fps), **options)
    return f"{args.out}: {len(frames)} frames, {args.out.stat().st_size / 1024:.0f} KiB"


main = command(Args, write_gif, __doc__, "{}")

if __name__ == "__main__":
    sys.exit(run(main))
