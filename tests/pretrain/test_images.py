"""Images come from games, folders and the generator; unreadable files are skipped and named, or refused."""

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from common.images import ImageError, read_image
from envs.episodes import DatasetInfo, Episode, EpisodeDataset, EpisodeWriter
from envs.protocol import MACHADO2018
from pretrain.data.augmentation import (
    augment,
    augment_geometry,
    box_downsample,
    crop_or_resize,
    jitter_colors,
    randomize_palette,
)
from pretrain.data.images import (
    EpisodeFrames,
    ImageFolder,
    SyntheticImages,
    open_image_source,
)
from pretrain.data.splits import split_rows
from pretrain.data.synthetic_images import KINDS, synthetic_image


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


@pytest.fixture
def games(tmp_path):
    info = DatasetInfo("Pong", ("noop",), MACHADO2018, "random", None, "abc", {})
    writer = EpisodeWriter(tmp_path / "pong", info)
    for seed in range(3):
        frames = np.full((2, 4, 4, 3), 10 * seed, np.uint8)
        frames[1, 1, 2] = 255
        writer.append(Episode(frames, np.zeros(2, int), np.zeros(2, np.float32), None, True, False, seed))
    return tmp_path / "pong"


def save(array, file, **options):
    Image.fromarray(array).save(file, **options)
    return file


def test_validation_games_are_not_trained_on(games):
    train, val = (EpisodeFrames(games, split, 1) for split in ("train", "val"))
    assert [train.image(i)[0, 0, 0] for i in range(len(train))] == [0, 0, 10, 10]
    assert [val.image(i)[0, 0, 0] for i in range(len(val))] == [20, 20]
    assert len(EpisodeFrames(games)) == len(EpisodeFrames(games, "train")) == 6


def test_splits_are_of_whole_games_and_share_none(two_games):
    data = EpisodeDataset(two_games[0])
    parts = {split: split_rows(data, split, 1, 1) for split in ("train", "val", "test")}
    games = {split: set(data.starts[rows].tolist()) for split, rows in parts.items()}
    assert [len(games[split]) for split in ("train", "val", "test")] == [2, 1, 1]
    assert np.concatenate([parts["train"], parts["val"], parts["test"]]).tolist() == list(range(len(data)))
    assert split_rows(data, "all", 9).tolist() == list(range(len(data)))
    with pytest.raises(UserError, match="holds 4 games: expected from 1 to 3 held out, got 4"):
        split_rows(data, "test", 2, 2)
    with pytest.raises(UserError, match="expected from 1 to 3 held out, got 0"):
        split_rows(data, "val", 0)
    with pytest.raises(UserError, match=r"expected a split \(train, val, test, all\), got 'testA'"):
        split_rows(data, "testA", 1)


def test_the_motion_mask_holds_the_pixels_that_differ_from_the_previous_frame_of_the_same_game(games):
    frames = EpisodeFrames(games, "val", 1)
    assert not frames.motion_mask(0).any()
    assert np.argwhere(frames.motion_mask(1)).tolist() == [[1, 2]]


def test_pictures_of_every_mode_are_read_as_rgb(tmp_path, picture):
    assert np.array_equal(read_image(save(picture, tmp_path / "rgb.png")), picture)
    grey = read_image(save(picture[..., 0], tmp_path / "grey.png"))
    assert np.array_equal(grey, picture[..., :1].repeat(3, axis=2))
    deep = read_image(save(picture[..., 0].astype(np.uint16) * 257, tmp_path / "deep.png"))
    assert np.array_equal(deep, grey)
    clear = np.concatenate([picture, np.zeros((6, 5, 1), np.uint8)], axis=2)
    assert not read_image(save(clear, tmp_path / "clear.png")).any()
    assert read_image(save(picture[:1, :1], tmp_path / "one.png")).shape == (1, 1, 3)


def test_a_picture_too_large_to_hold_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (10_000, 10_000)).save(tmp_path / "huge.png")
    with pytest.raises(ImageError, match=r"huge.png: expected at most 33,554,432 pixels, got 10000 x 10000"):
        read_image(tmp_path / "huge.png")


def test_broken_pictures_are_skipped_and_named(tmp_path, picture, capsys):
    folder = tmp_path / "folder" / "deeper"
    folder.mkdir(parents=True)
    whole = save(np.tile(picture, (20, 20, 1)), folder / "a.png")
    (folder / "b.png").write_bytes(whole.read_bytes()[:300])
    (folder / "c.JPG").touch()
    (folder / "d.png").write_text("no picture")
    (folder / "notes.txt").write_text("not a picture")
    source = open_image_source(str(tmp_path / "folder"))
    assert [file.name for file in source.files] == ["a.png"]
    output = capsys.readouterr().out
    assert "3 of 4 pictures" in output
    assert all(name in output for name in ("b.png", "c.JPG is empty", "d.png"))
    whole.unlink()
    with pytest.raises(ImageError, match="none of the 3 pictures in"):
        ImageFolder(tmp_path / "folder")


def test_locations_without_pictures_are_refused(tmp_path):
    with pytest.raises(ImageError, match="expected a folder"):
        open_image_source(str(tmp_path / "missing"))
    with pytest.raises(ImageError, match="found none"):
        open_image_source(str(tmp_path))
    with pytest.raises(ImageError, match="which is not a file"):
        read_image(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_synthetic_image_has_its_size_and_something_on_it(kind):
    for cells in (2, 8, 32):
        image = KINDS[kind](np.random.default_rng(1), 21, 16, cells)
        assert (image.shape, image.dtype) == ((21, 16, 3), np.uint8)
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 1


def test_synthetic_images_depend_on_seed_and_index_alone_and_are_plain_at_level_zero():
    source = SyntheticImages(3)
    assert np.array_equal(source.image(5), source.image(5))
    assert not np.array_equal(source.image(5), source.image(6))
    assert not np.array_equal(source.image(5), SyntheticImages(4).image(5))
    flat = synthetic_image(np.random.default_rng(0), 8, 8, level=0)
    assert (flat == flat[0, 0]).all()


def test_an_image_is_resized_by_whole_factors():
    image = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    assert np.array_equal(crop_or_resize(image, 4, 4), image)
    assert np.array_equal(crop_or_resize(image, 2, 2), box_downsample(image, 2))
    assert box_downsample(image, 2)[0, 0].tolist() == [8, 8, 10]  # the means of 0, 3, 12, 15 and so on: 7.5, 8.5, 9.5
    assert np.array_equal(crop_or_resize(image, 8, 6), image.repeat(2, axis=0).repeat(2, axis=1)[:, 1:7])
    drawn = {crop_or_resize(image, 3, 3, np.random.default_rng(seed))[0, 0, 0] for seed in range(20)}
    assert drawn == {0, 3, 12, 15}


def test_a_random_palette_keeps_shapes_and_changes_colors(picture):
    flat = np.zeros((6, 5, 3), np.uint8)
    flat[2:4, 1:3] = (9, 9, 9)
    changed = randomize_palette(flat, np.random.default_rng(0))
    inside = (changed == changed[2, 1]).all(-1)
    assert np.array_equal(inside, (flat == 9).all(-1))
    assert not np.array_equal(changed, flat)
    many = np.arange(300 * 3, dtype=np.int64).reshape(20, 15, 3).astype(np.uint8)
    many[..., 1] = np.arange(300).reshape(20, 15) // 256
    assert np.array_equal(randomize_palette(many, np.random.default_rng(0)), many)


def test_color_jitter_maps_equal_colors_to_equal_colors_and_geometry_keeps_the_colors(picture):
    twice = np.concatenate([picture, picture])
    changed = jitter_colors(twice, np.random.default_rng(2))
    assert np.array_equal(changed[:6], changed[6:])
    assert not np.array_equal(changed, twice)
    for seed in range(9):
        moved = augment_geometry(picture, np.random.default_rng(seed))
        assert moved.shape == picture.shape
        assert {*map(tuple, moved.reshape(-1, 3))} <= {*map(tuple, picture.reshape(-1, 3))}


def test_augmentation_depends_on_its_generator_alone_and_with_probability_zero_does_nothing(picture):
    one, two = (augment(picture, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, picture)
    assert np.array_equal(augment(picture, np.random.default_rng(7), probability=0), picture)


def test_all_frames_of_a_stack_are_augmented_alike(picture):
    previous = picture[::-1].copy()
    for seed in range(6):
        both = augment(np.stack([previous, picture]), np.random.default_rng(seed))
        same = augment(np.stack([picture, picture]), np.random.default_rng(seed))
        assert both.shape == (2, 6, 5, 3)
        assert np.array_equal(same[0], same[1])
    assert np.array_equal(crop_or_resize(np.stack([previous, picture]), 3, 2)[1], crop_or_resize(picture, 3, 2))
