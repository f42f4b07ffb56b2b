"""Show the mask of an expression in a frame of a game or in an image of your own.

python -m pretrain.referring.show --game MsPacman --expression "the red ghost"
python -m pretrain.referring.show --image mine.png --expression "the blue object" --init runs/refer/last --out a.png
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from common.command import command, run
from common.errors import UserError
from common.files import atomic_file
from common.images import read_image
from common.outputs import require_output_files
from envs.atari import make_envs
from envs.games import find_game
from envs.protocol import MACHADO2018
from vlm.released_checkpoints import RELEASED_POLICY
from vlm.segmentation.mask_drawing import draw_mask
from vlm.segmentation.referring_segmenter import load_segmenter

FIRST_STEPS = 40  # of no action, before a game's frame is taken


@dataclass(frozen=True)
class Args:
    """Draw the mask of an expression."""

    expression: str
    """The words."""
    game: str | None = None
    """The game whose frame is shown."""
    image: Path | None = None
    """A PNG or JPEG file in place of a game."""
    init: Path = RELEASED_POLICY
    """The checkpoint that predicts the mask."""
    points: bool = False
    """Predict the mask by points in text instead of the mask head."""
    seed: int = 0
    """The seed of the game."""
    out: Path = Path("runs/refer.png")
    """The PNG to write."""

    def __post_init__(self) -> None:
        if not self.expression.strip() or (self.game is None) == (self.image is None):
            raise UserError("expected --expression and either --game or --image")
        if self.out.suffix != ".png":
            raise UserError(f"expected --out to end in .png, got {self.out}")


def first_frame(game_name: str, seed: int) -> np.ndarray:
    """Return a frame uint8[H, W, 3] of a game's first seconds."""
    with make_envs(find_game(game_name), 1, MACHADO2018) as envs:
        frames = envs.reset([seed])
        for _ in range(FIRST_STEPS):
            frames = envs.step(np.zeros(1, dtype=int)).frames
        return frames[0]


def show(args: Args) -> Path:
    """Write the image with the mask drawn in; return its file."""
    require_output_files([args.out], [args.image] if args.image else [])
    segmenter = load_segmenter(args.init, points=args.points)
    image = read_image(args.image) if args.image else first_frame(str(args.game), args.seed)
    probability = segmenter.predict(image[None], [args.expression])[0]
    with atomic_file(args.out) as temporary:
        Image.fromarray(draw_mask(image, probability > 0.5)).save(temporary, "PNG")
    pixels = int((probability > 0.5).sum())
    print(f"{args.expression!r}: {pixels} pixels, the highest probability is {probability.max():.2f}")
    return args.out


main = command(Args, show, __doc__, "the image is {}")

if __name__ == "__main__":
    sys.exit(run(main))
