"""Hand-made data sets: recorded games whose frames are given."""

import numpy as np
import pytest

from envs.episodes import DatasetInfo, Episode, EpisodeWriter
from envs.protocol import MACHADO2018

COLOURS = ((200, 72, 72), (66, 114, 194), (187, 187, 53), (66, 158, 130), (236, 236, 236))


@pytest.fixture(scope="session")
def record_frames():
    """A function that records episodes of given frames uint8[N, H, W, 3] and returns the data set's directory."""

    def record(directory, game, episodes, first_seed=1):
        writer = EpisodeWriter(directory, DatasetInfo(game, ("noop", "fire"), MACHADO2018, "random", None, "abc", {}))
        for seed, frames in enumerate(episodes, first_seed):
            count = len(frames)
            writer.append(Episode(frames, np.zeros(count, int), np.zeros(count, np.float32), None, True, False, seed))
        return directory

    return record


def draw_frame(rng, floor):
    """One to four rectangles of one size, each in a cell of its own, on a plain floor: uint8[210, 160, 3]."""
    frame = np.full((210, 160, 3), floor, dtype=np.uint8)
    for cell in rng.permutation(9)[: rng.integers(1, 5)]:
        row, column = 30 + 65 * (cell // 3), 22 + 53 * (cell % 3)
        frame[row : row + 10, column : column + 8] = COLOURS[rng.integers(len(COLOURS))]
    return frame


@pytest.fixture(scope="session")
def two_games(record_frames, tmp_path_factory):
    """Directories of two games, four episodes of ten frames each, of rectangles that differ in colour and place."""
    place, rng = tmp_path_factory.mktemp("games"), np.random.default_rng(0)
    return tuple(
        record_frames(place / game, game, [np.stack([draw_frame(rng, floor) for _ in range(10)]) for _ in range(4)])
        for game, floor in (("Pong", (0, 0, 0)), ("Breakout", (0, 28, 136)))
    )
