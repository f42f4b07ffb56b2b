"""Small datasets: two games, whose frames differ in color, number and place of rectangles; RefCOCO with one image."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from envs.episodes import DatasetInfo, Episode, EpisodeWriter
from envs.protocol import MACHADO2018
from pretrain.referring.refer_files import IMAGES

COLOURS = ((200, 72, 72), (66, 114, 194), (187, 187, 53), (66, 158, 130), (236, 236, 236))


def draw_frame(rng, floor):
    """One to four rectangles of one size, each in a cell of its own, on a plain floor: uint8[210, 160, 3]."""
    frame = np.full((210, 160, 3), floor, dtype=np.uint8)
    for cell in rng.permutation(9)[: rng.integers(1, 5)]:
        row, column = 30 + 65 * (cell // 3), 22 + 53 * (cell % 3)
        frame[row : row + 10, column : column + 8] = COLOURS[rng.integers(len(COLOURS))]
    return frame


@pytest.fixture(scope="session")
def two_games(tmp_path_factory):
    """Directories of two games, four episodes of ten frames each."""
    place, rng = tmp_path_factory.mktemp("games"), np.random.default_rng(0)
    for game, floor in (("Pong", (0, 0, 0)), ("Breakout", (0, 28, 136))):
        info = DatasetInfo(game, ("noop", "fire"), MACHADO2018, "random", None, "abc", {})
        writer = EpisodeWriter(place / game, info)
        for seed in range(1, 5):
            frames = np.stack([draw_frame(rng, floor) for _ in range(10)])
            writer.append(Episode(frames, np.zeros(10, int), np.zeros(10, np.float32), None, True, False, seed))
    return place / "Pong", place / "Breakout"


@pytest.fixture
def write_refcoco(tmp_path):
    """A function that writes RefCOCO in REFER's layout, with one image, one object and two expressions."""

    def write(image, polygon, split):
        root, name = tmp_path / "refer", "COCO_train2014_000000000011.jpg"
        (root / IMAGES).mkdir(parents=True)
        (root / "refcoco").mkdir()
        Image.fromarray(image).save(root / IMAGES / name, format="PNG")
        sentences = [{"sent_id": i, "sent": text} for i, text in enumerate(("thing", "object"))]
        refs = [{"ref_id": 1, "ann_id": 5, "image_id": 11, "split": split, "sentences": sentences}]
        (root / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps(refs))
        height, width = image.shape[:2]
        instances = {
            "images": [{"id": 11, "file_name": name, "height": height, "width": width}],
            "annotations": [{"id": 5, "segmentation": [polygon]}],
        }
        (root / "refcoco" / "instances.json").write_text(json.dumps(instances))
        return root

    return write
