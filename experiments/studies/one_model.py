"""One model that plays, answers for pixels and segments: what it reads, and what its masks find.

    python -m experiments.run one-model

The sets of `experiments.studies.reader`, but with the games that this model plays apart from those that no training of
it saw, and `pretrain.referring.evaluation` on held-out recordings, on new objects on new photographs (`python -m
pretrain.data.cutouts --out data/cutouts` fetches them) and in games whose masks were never trained on. Its scores are
those of `agents.score`; the report puts all of them into one table. The picture shows its answers for pixels, and its
masks beside the true ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
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

MaskSets = dict[str, tuple[tuple[Path, ...], str]]  # the folders of each set, and their split


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
    cutouts: Path = Path("data/cutouts")
    expressions: int = 400
    mask_seed: int = 10_000


ONE_MODEL = OneModelConfig()


def prepare(config: OneModelConfig = ONE_MODEL) -> None:
    """Record the frames of every game that are missing."""
    reader.prepare(config)
    for game in config.mask_games:
        reader.frames(config, game)


def jobs(seeds: Sequence[int] | None, work: Path, config: OneModelConfig = ONE_MODEL) -> list[Job]:
    """Return a job for each set of pixels, and one for each of masks."""
    key = {"checkpoint": checkpoint.content_hash(config.checkpoint)}
    masks = [Job({**key, "set": name}, 60, partial(measure_masks, config, name, work)) for name in mask_sets(config)]
    return [*reader.jobs(seeds, work, config), *masks]


def mask_sets(config: OneModelConfig) -> MaskSets:
    """Return the sets of referring segmentation."""
    known, unknown = (
        tuple(config.data_dir / f"random-{game}" for game in games)
        for games in (config.mask_games, config.held_out_games)
    )
    return {
        "expressions about games": (known, "test"),
        "expressions about photographs": ((config.cutouts,), "test"),
        "expressions about held-out games": (unknown, "all"),
    }


def measure_masks(config: OneModelConfig, name: str, work: Path) -> list[dict[str, Any]]:
    """Return the row of a set of referring segmentation; `ciou_of_all` is that of masks of the whole picture."""
    places, split = mask_sets(config)[name]
    args = evaluation.Args(
        data=places,
        split=split,
        out=work / name.replace(" ", "-"),
        checkpoint=config.checkpoint,
        count=config.expressions,
        val_episodes=config.mask_episodes,
        seed=config.mask_seed,
        num_images=0,
    )
    row = evaluation.evaluate(args)
    assert row
    test = evaluation.load_test_set(args, history=1)
    masks = [test[index].masks[0] for index in range(len(test))]
    row["ciou_of_all"] = sum(int(mask.sum()) for mask in masks) / sum(mask.size for mask in masks)
    return [{name: value for name, value in row.items() if name != "checkpoint"}]


def draw(seeds: Sequence[int] | None, work: Path, config: OneModelConfig = ONE_MODEL) -> Image.Image | None:
    """Return photographs and games beside the answers for pixels, and below them pictures with their masks."""
    segmenter = load_segmenter(config.checkpoint)
    games = [
        _masks(config, segmenter, config.data_dir / f"random-{game}", find_game(game).title)
        for game in config.mask_games[: reader.IMAGES_DRAWN]
    ]
    things = [_masks(config, segmenter, config.cutouts, "new objects", n) for n in range(reader.IMAGES_DRAWN)]
    return image_grid([*reader.comparisons(config), games, things])


def _masks(
    config: OneModelConfig, segmenter: ReferringSegmenter, place: Path, title: str, number: int = 0
) -> Image.Image:
    """Return a picture, the true mask of expression `number` of those that mean an object, and what is found."""
    test = SceneDataset(
        [place],
        "test",
        val_episodes=config.mask_episodes,
        count=config.expressions,
        history=segmenter.vlm.history,
        seed=config.mask_seed,
    )
    meant = (item for item in map(test.__getitem__, range(len(test))) if item.masks[0].any())
    item = next(islice(meant, number, None))
    frame, expression = item.frames[-1], item.expressions[0]
    found = segmenter.predict(item.frames, item.expressions)[0] > 0.5
    masks = {expression: item.masks[0], "found": found}
    drawn = {name: draw_mask(frame, mask, scale=1) for name, mask in masks.items()}
    return comparison_grid({title: frame, **drawn})
