"""A small animated clip of a video, for a page that shows pictures and plays no films.

    python -m agents.gif --video videos/Carnival-vlm-seed0-game0.mp4 --start 10 --seconds 8 --out clip.gif

The clip runs at the video's own speed with fewer pictures a second, made smaller and brought to one palette, so that
what stands still costs next to nothing.
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
    """Where the clip begins, in seconds."""
    seconds: float = 8.0
    """How long it is."""
    rate: float = 7.5
    """Pictures a second; a video of fewer keeps its own."""
    scale: float = 0.5
    """What the sides are multiplied by."""
    colours: int = 64
    """Colours of the palette that all pictures share."""

    def __post_init__(self) -> None:
        for name in ("seconds", "rate", "scale"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name} must be above 0, got {getattr(self, name)}")
        if self.start < 0:
            raise UserError(f"--start must be at least 0, got {self.start}")
        if not 2 <= self.colours <= 256:
            raise UserError(f"--colours must be from 2 to 256, got {self.colours}")
        if self.out.suffix != ".gif":
            raise UserError(f"expected --out to end in .gif, got {self.out}")


def read_pictures(args: Args) -> tuple[list[Image.Image], float]:
    """Return the clip's pictures at their size, and how many of them make a second."""
    if not args.video.is_file():
        raise UserError(f"there is no video {args.video}")
    try:
        reader: Any = imageio.get_reader(args.video, format="FFMPEG")
        with reader:
            rate = float(reader.get_meta_data()["fps"])
            every = max(1, round(rate / args.rate))
            first, last = round(args.start * rate), round((args.start + args.seconds) * rate)
            found = [frame for number, frame in enumerate(reader.iter_data()) if first <= number < last]
    except (OSError, RuntimeError) as error:
        raise UserError(f"{args.video} does not decode: {error}") from error
    if not found:
        raise UserError(f"{args.video} ends before --start {args.start}")
    return [_shrink(frame, args.scale) for frame in found[::every]], rate / every


def _shrink(frame: np.ndarray, scale: float) -> Image.Image:
    height, width, _ = frame.shape
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Image.fromarray(frame).resize(size, Image.Resampling.BOX)


def write_clip(args: Args) -> int:
    """Write the GIF; return the number of its pictures."""
    pictures, rate = read_pictures(args)
    palette = pictures[len(pictures) // 2].quantize(args.colours)
    flat = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    with atomic_file(args.out) as temporary:
        flat[0].save(
            temporary, "GIF", save_all=True, append_images=flat[1:], duration=round(1000 / rate), loop=0, optimize=True
        )
    return len(flat)


def main(argv: list[str] | None = None) -> int:
    """Run the command; see the head of this file."""
    args = tyro.cli(Args, args=argv, description=__doc__)
    count = write_clip(args)
    print(f"{args.out}: {count} pictures, {args.out.stat().st_size / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
