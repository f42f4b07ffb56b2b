"""Pasted objects are where their masks say, expressions name one of them, and test objects are apart."""

import json

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from envs.expressions import list_expressions, nouns_of
from pretrain.referring.evaluation import main as evaluate
from pretrain.referring.pasted_scenes import PastedScenes, covered, is_cutout_folder, main_color
from pretrain.referring.scene_dataset import SceneDataset
from pretrain.referring.scenes import GameScenes
from pretrain.referring.train import main as train

THINGS = {  # file: color, nouns
    "train/p/cherry.png": ((220, 20, 20), ["cherry", "fruit"]),
    "train/p/lime.png": ((40, 200, 40), ["lime", "fruit"]),
    "train/p/whale.png": ((20, 20, 220), ["whale", "animal"]),
    "train/p/wolf.png": ((90, 90, 90), ["wolf", "animal"]),
    "train/p/cup.png": ((240, 240, 240), ["cup"]),
    "test/p/plum.png": ((120, 30, 170), ["plum", "fruit"]),
    "test/p/seal.png": ((10, 10, 10), ["grey seal", "animal"]),
    "test/p/ode.png": ((200, 200, 0), ["ode"]),
}


@pytest.fixture
def cutouts(tmp_path):
    """A folder of cut-outs: ellipses of one color, and photographs of grey noise."""
    place = tmp_path / "cutouts"
    rows, columns = np.mgrid[:40, :60]
    disc = ((rows - 19.5) / 20) ** 2 + ((columns - 29.5) / 30) ** 2 <= 1
    for file, (color, _) in THINGS.items():
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((40, 60, 4), np.uint8)
        pixels[disc] = (*color, 255)
        Image.fromarray(pixels).save(place / file)
    for split in ("train", "test"):
        (place / "backgrounds" / split).mkdir(parents=True)
        noise = np.random.default_rng(0).integers(125, 130, (256, 300, 3), dtype=np.uint8)
        Image.fromarray(noise).save(place / "backgrounds" / split / "noise.png")
    nouns = {file: found for file, (_, found) in THINGS.items()}
    (place / "sources.json").write_text(json.dumps([{"package": "p", "nouns": nouns}]))
    return place


def test_the_pixels_of_an_object_are_its_own(cutouts):
    scenes = PastedScenes(cutouts, "train")
    color_of = {found[0]: color for color, found in THINGS.values()}
    for seed in range(20):
        scene = scenes.draw(np.random.default_rng(seed), 2)
        assert scene.frames.shape == (2, 210, 160, 3)
        rest = np.ones((210, 160), bool)
        for thing in scene.objects:
            inside = scene.frames[-1][thing.mask].astype(int)
            assert np.abs(inside - color_of[thing.name]).max(-1).mean() < 12
            rest &= ~thing.mask
        assert np.abs(scene.frames[-1][rest].astype(int) - 127).max(-1).mean() < 8
        assert 1 <= len(scene.objects) <= 5


def test_what_a_front_object_covers_is_not_the_back_ones(cutouts):
    overlaps = 0
    for seed in range(60):
        objects = PastedScenes(cutouts, "train").draw(np.random.default_rng(seed), 1).objects
        assert sum(thing.mask.astype(int) for thing in objects).max() == 1
        boxes = [thing.box for thing in objects]
        shares = [covered(one, other) for i, one in enumerate(boxes) for other in boxes[i + 1 :]]
        overlaps += any(shares)
        assert max(shares, default=0) <= 0.2
    assert overlaps


def test_tests_show_other_objects_of_known_words(cutouts):
    scenes = PastedScenes(cutouts, "test")
    assert [thing.nouns for thing in scenes.cutouts] == [("fruit",), ("animal",)]
    found = {noun for seed in range(20) for thing in scenes.draw(np.random.default_rng(seed), 1).objects
             for noun in nouns_of(thing)}  # fmt: skip
    assert found == {"fruit", "purple fruit", "animal", "black animal"}
    with pytest.raises(UserError, match=r"expected a split of .*cutouts \(train, test\), got 'val'"):
        PastedScenes(cutouts, "val")


def test_expressions_name_one_object_or_none(cutouts):
    data = SceneDataset([cutouts], "train", 200, no_target_fraction=0.2)
    empty = 0
    for index in range(len(data)):
        sample = data[index]
        empty += not sample.masks.any()
        if sample.masks.any() and sample.expressions[0] == "the cherry":
            assert np.abs(sample.frames[-1][sample.masks[0]].astype(int) - THINGS["train/p/cherry.png"][0]).mean() < 12
    assert 20 <= empty <= 60
    again = SceneDataset([cutouts], "train", 200, no_target_fraction=0.2)[7]
    assert np.array_equal(again.frames, data[7].frames)
    assert again.expressions == data[7].expressions


def test_objects_of_several_colors_are_not_asked_for_by_one(cutouts):
    pixels = np.array([[200, 20, 20]] * 6 + [[20, 20, 200]] * 4, np.uint8)
    assert main_color(pixels) == "red"
    assert main_color(pixels[1:]) == ""
    Image.new("RGBA", (50, 50), (0, 0, 0, 0)).save(cutouts / "train/p/cup.png")
    flag = np.zeros((40, 40, 4), np.uint8)
    flag[:20, 4:36], flag[20:, 4:36] = (200, 20, 20, 255), (20, 20, 200, 255)
    Image.fromarray(flag).save(cutouts / "train/p/cup.png")
    cups = [t for seed in range(40) for t in PastedScenes(cutouts, "train").draw(np.random.default_rng(seed), 1).objects
            if t.name == "cup"]  # fmt: skip
    assert cups
    assert {nouns_of(cup) for cup in cups} == {("cup",)}


def test_scenes_of_games_and_of_cutouts_are_drawn_from_together(cutouts, two_games):
    data = SceneDataset([two_games[0], cutouts], "train", 8)
    assert [type(source) for source in data.sources] == [GameScenes, PastedScenes]
    assert [data[index].source for index in range(4)] == ["Pong", "pasted"] * 2


def test_a_damaged_folder_is_told(cutouts):
    assert is_cutout_folder(cutouts)
    (cutouts / "sources.json").write_text("[3]")
    with pytest.raises(UserError, match=r"expected .*sources.json of pretrain.data.cutouts, got TypeError"):
        PastedScenes(cutouts, "train")


def test_masks_are_trained_and_evaluated_on_cutouts(cutouts, tmp_path):
    words = ["--preset", "tiny", "--steps", "2", "--images", "2", "--expressions", "2", "--out", str(tmp_path / "run")]
    assert train(["--data", str(cutouts), *words, "--trainer", "bf16=false"]) == 0
    words = ["--checkpoint", str(tmp_path / "run/last"), "--count", "6", "--out", str(tmp_path / "evaluation")]
    assert evaluate(["--data", str(cutouts), *words]) == 0
    metrics = json.loads((tmp_path / "evaluation/metrics.json").read_text())
    assert 0 <= metrics["rows"][0]["ciou"] <= 1


def test_two_objects_of_one_noun_need_more_than_the_noun(cutouts):
    scenes = PastedScenes(cutouts, "train")
    for seed in range(60):
        objects = scenes.draw(np.random.default_rng(seed), 1).objects
        fruits = [thing for thing in objects if "fruit" in nouns_of(thing)]
        words = {expression.words for expression in list_expressions(objects)}
        assert ("the fruit" in words) == (len(fruits) == 1)
