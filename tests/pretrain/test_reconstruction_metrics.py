"""Metrics agree with values worked out by hand."""

import numpy as np
import pytest

from pretrain.reconstruction_metrics import (
    baselines,
    blurred,
    cells_containing,
    mean_absolute_error,
    mean_color,
    patch_mean_image,
    psnr,
    rare_color_mask,
    ssim,
)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)


def test_errors_are_means_over_pixels_for_each_channel():
    true = np.zeros((1, 2, 3), np.uint8)
    predicted = np.array([[[10, 0, 255], [30, 4, 255]]], np.uint8)
    assert mean_absolute_error(predicted, true).tolist() == [20, 2, 255]
    assert mean_absolute_error(true, predicted).tolist() == [20, 2, 255]


def test_psnr_is_infinite_for_the_same_image_and_0_for_the_opposite_of_black():
    black = np.zeros((2, 2, 3), np.uint8)
    assert psnr(black, black) == float("inf")
    assert psnr(black + np.uint8(255), black) == 0
    assert psnr(black + np.uint8(51), black) == pytest.approx(20 * np.log10(5))


def test_ssim_is_1_for_the_same_image_and_follows_its_definition_window_by_window(image):
    noisy = (image * 0.5 + 40).astype(np.uint8)
    assert ssim(image, image) == pytest.approx(1)
    window = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    weights = np.outer(window, window) / window.sum() ** 2
    values = []
    for row in range(24 - 10):
        for column in range(20 - 10):
            for channel in range(3):
                a, b = (x[row : row + 11, column : column + 11, channel].astype(float) for x in (image, noisy))
                ma, mb = (weights * a).sum(), (weights * b).sum()
                va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
                both = (weights * (a - ma) * (b - mb)).sum()
                value = (2 * ma * mb + 6.5025) * (2 * both + 58.5225)
                values.append(value / ((ma**2 + mb**2 + 6.5025) * (va + vb + 58.5225)))
    assert ssim(noisy, image) == pytest.approx(np.mean(values))
    assert ssim(noisy, image) == pytest.approx(ssim(image, noisy))
    assert np.isfinite(ssim(image[:1, :1], noisy[:1, :1]))


def test_the_mean_color_counts_every_image_once():
    small, large = np.full((1, 1, 3), 10, np.uint8), np.full((9, 9, 3), 30, np.uint8)
    assert mean_color([small, large]).tolist() == [20, 20, 20]


def test_a_grid_cell_gets_the_mean_of_the_patch_that_holds_its_center(image):
    found = patch_mean_image(image, 8, "6x4")  # cells of 4 x 5 pixels
    assert found.shape == (6, 4, 3)
    assert found[0, 0] == pytest.approx(image[:8, :8].reshape(-1, 3).mean(0))
    assert found[5, 3] == pytest.approx(image[16:24, 16:20].reshape(-1, 3).mean(0))  # a patch cut by the edge
    assert found[2, 1] == pytest.approx(image[8:16, :8].reshape(-1, 3).mean(0))  # middle at 10, 7.5


def test_a_blurred_image_keeps_its_layout_and_loses_its_contours():
    halves = np.zeros((32, 32, 3), np.uint8)
    halves[:, 16:] = 200
    spots = np.zeros((32, 32, 3), np.uint8)
    spots[::2, ::2] = 200
    assert mean_absolute_error(blurred(halves), halves).mean() < 15
    assert blurred(spots).std() == 0
    assert blurred(spots)[0, 0, 0] == 50


def test_rare_colors_and_the_grid_cells_that_contain_them():
    image = np.zeros((20, 20, 3), np.uint8)
    image[10:] = 90
    image[3, 17] = 255
    mask = rare_color_mask(image)
    assert np.argwhere(mask).tolist() == [[3, 17]]
    assert np.argwhere(cells_containing(mask, "4")).tolist() == [[0, 3]]


def test_baselines_with_more_knowledge_have_smaller_errors():
    rows, columns = np.mgrid[:64, :64]
    image = np.stack([rows * 3, columns * 3, 120 + 0 * rows], axis=-1).astype(np.uint8)
    found = baselines(image, image, 16, "native", training_mean=np.array([0.0, 0.0, 0.0]))
    errors = {name: np.abs(guess.astype(float) - image).mean() for name, guess in found.items()}
    assert errors["training mean"] > errors["image mean"] > errors["patch mean"] > errors["blurred"] > 0
    assert "training mean" not in baselines(image, image, 16, "native")
