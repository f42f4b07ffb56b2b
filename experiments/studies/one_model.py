"""One model that plays, answers for pixels and segments: what it reads, and what its masks find.

    python -m experiments.run one-model

The sets of `experiments.studies.reader`, but with the games that this model plays apart from those that no training of
it saw, and `pretrain.referring.evaluation` on held-out recordings. Its scores are those of `agents.score`; the report
puts all of them into one table. The picture shows its answers for pixels, and its masks beside the true ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from envs.games import find_game
from experiments.image_grid import image_grid
from experiments.studies import reader
from experiments.studies.jobs import Job
from experiments.studies.reader import ReaderConfig
from pretrain.reconstruct import comparison_grid
from pretrain.referring import evaluation
from pretrain.referring.scene_dataset import SceneDataset
from vlm import checkpoint
from vlm.released_checkpoints import RELEASED_POLICY
from vlm.segmentation.mask_drawing import draw_mask
from vlm.segmentation.referring_segmenter import ReferringSegmenter, load_segmenter

MASKS = "masks"  # the set of the row of referring segmentation


@dataclass(frozen=True)
class OneModelConfig(ReaderConfig):
    """All settings of the evaluation; `training_games` are those that it plays."""

    checkpoint: Path = RELEASED_POLICY
    held_out_games: tuple[str, ...] = ("Seaquest", "Qbert", "Frostbite", "Asteroids")
    training_games: tuple[str, ...] = ("Carnival", "MsPacman")
    mask_games: tuple[str, ...] = (
        "Carnival", "MsPacman", "Alien", "Assault", "Atlantis", "Breakout", "DemonAttack", "Phoenix", "Pong",
        "SpaceInvaders",
    )  # fmt: skip
    mask_episodes: int = 2  # the last recordings of each, which no training of masks saw
    expressions: int = 400
    mask_seed: int = 10_000


ONE_MODEL = OneModelConfig()


def prepare(config: OneModelConfig = ONE_MODEL) -> None:
    """Record the frames of every game that are missing."""
    reader.prepare(config)
    for game in config.mask_games:
        reader.frames(config, game)


def jobs(seeds: Sequence[int] | None, work: Path, config: OneModelConfig = ONE_MODEL) -> list[Job]:
    """Return a job for each set of pixels, and one for the masks."""
    key = {"checkpoint": checkpoint.content_hash(config.checkpoint), "set": MASKS}
    return [*reader.jobs(seeds, work, config), Job(key, 60, partial(measure_masks, config, work))]


def measure_masks(config: OneModelConfig, work: Path) -> list[dict[str, Any]]:
    """Return the row of referring segmentation."""
    row = evaluation.evaluate(
        evaluation.Args(
            data=tuple(config.data_dir / f"random-{game}" for game in config.mask_games),
            out=work / MASKS,
            checkpoint=config.checkpoint,
            count=config.expressions,
            val_episodes=config.mask_episodes,
            seed=config.mask_seed,
            num_images=0,
        )
    )
    assert row
    return [{name: value for name, value in row.items() if name != "checkpoint"}]


def draw(seeds: Sequence[int] | None, work: Path, config: OneModelConfig = ONE_MODEL) -> Image.Image | None:
    """Return photographs and games beside the answers for pixels, and below them frames with their masks."""
    segmenter = load_segmenter(config.checkpoint)
    shown = [_masks(config, game, segmenter) for game in config.mask_games[: reader.IMAGES_DRAWN]]
    return image_grid([*reader.comparisons(config), shown])


def _masks(config: OneModelConfig, game: str, segmenter: ReferringSegmenter) -> Image.Image:
    """Return a frame of a game, the true mask of the first expression that means an object, and what is found."""
    test = SceneDataset(
        [config.data_dir / f"random-{game}"],
        "test",
        val_episodes=config.mask_episodes,
        count=config.expressions,
        history=segmenter.vlm.history,
        seed=config.mask_seed,
    )
    item = next(item for item in map(test.__getitem__, range(len(test))) if item.masks[0].any())
    frame, expression = item.frames[-1], item.expressions[0]
    found = segmenter.predict(item.frames, item.expressions)[0] > 0.5
    masks = {expression: item.masks[0], "found": found}
    drawn = {name: draw_mask(frame, mask, scale=1) for name, mask in masks.items()}
    return comparison_grid({find_game(game).title: frame, **drawn})
