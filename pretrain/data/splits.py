"""Train, validation and test rows of a recorded dataset, by whole games."""

import numpy as np
from jaxtyping import Int

from common.errors import UserError
from envs.episodes import EpisodeDataset

SPLITS = ("train", "val", "test", "all")


def split_rows(data: EpisodeDataset, split: str, num_val: int, num_test: int = 0) -> Int[np.ndarray, " rows"]:
    """Return the rows of one of `SPLITS`; "all" ignores the numbers of games.

    The last `num_test` games are the test split and the `num_val` games before them the validation split.

    Raises:
        UserError: the split is unknown, or holds no game.
    """
    if split not in SPLITS:
        raise UserError(f"expected a split ({', '.join(SPLITS)}), got {split!r}")
    if split == "all":
        return np.arange(len(data))
    starts = np.unique(data.starts)
    held_out = num_val + num_test
    if held_out >= len(starts) or (split == "val" and not num_val):
        raise UserError(
            f"{data.path} holds {len(starts)} games: expected from 1 to {len(starts) - 1} held out, got {held_out}"
        )
    edges = np.append(starts, len(data))
    val, test = edges[len(starts) - held_out], edges[len(starts) - num_test]
    first, end = {"train": (0, val), "val": (val, test), "test": (test, len(data))}[split]
    return np.arange(first, end)
