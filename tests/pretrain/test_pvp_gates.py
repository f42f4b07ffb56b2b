"""The gates tell which link of pixel value prediction fails."""

import numpy as np
import pytest

from pretrain.data.synthetic_images import mosaic
from pretrain.pvp_gates import channel_ratio, failing_gate, patch_metrics, patch_of_cells, summary, token_probe_mae
from vlm.presets import build

GOOD = {
    "token_probe_mae": 3.0,
    "mae_of_patch_means": 4.0,
    "within_patch_correlation": 0.95,
    "channel_ratio": 1.2,
    "mae_small_objects": 8.0,
}
PATCHES = np.array([[0, 0, 1, 1], [0, 0, 1, 1]]).ravel()  # of 2 x 4 cells
TRUE = np.random.default_rng(0).integers(0, 256, (2, 4, 3)).astype(float)


def test_the_first_gate_that_is_not_passed_is_named():
    assert failing_gate(GOOD) is None
    assert failing_gate(GOOD | {"mae_small_objects": 30.0}) == "objects"
    assert failing_gate(GOOD | {"within_patch_correlation": 0.1, "mae_small_objects": 30.0}) == "within"
    assert failing_gate(GOOD | {"token_probe_mae": None, "mae_of_patch_means": 9.0}) == "patches"
    assert "fails at within" in summary("games", GOOD | {"within_patch_correlation": 0.1})
    assert "all gates passed" in summary("games", GOOD)


def test_perfect_answers_pass_within_patches():
    found = patch_metrics(TRUE, TRUE, PATCHES)
    assert found["mae_of_patch_means"] == 0
    assert found["within_patch_correlation"] == pytest.approx(1)


def test_answering_the_patch_mean_is_right_on_patches_and_tells_nothing_within():
    means = np.stack([TRUE[:, :2].mean((0, 1)), TRUE[:, 2:].mean((0, 1))])[PATCHES].reshape(2, 4, 3)
    found = patch_metrics(means, TRUE, PATCHES)
    assert found["mae_of_patch_means"] == pytest.approx(0)
    assert found["within_patch_correlation"] is None
    assert found["mae_of_true_patch_means"] == pytest.approx(np.abs(means - TRUE).mean())


def test_cells_swapped_within_a_patch_keep_its_mean_and_lose_the_correlation():
    true = np.zeros((2, 4, 3))
    true[0] = 100.0
    found = patch_metrics(true[::-1], true, PATCHES)
    assert found["mae_of_patch_means"] == 0
    assert found["within_patch_correlation"] == pytest.approx(-1)


def test_the_worst_channel_is_compared_with_the_best():
    assert channel_ratio({"mae_red": 4.0, "mae_green": 6.0, "mae_blue": 10.0}) == 2.5


def test_cells_belong_to_the_patch_that_covers_them():
    patches = patch_of_cells(build("tiny"), 64, 64, "4").reshape(4, 4)
    assert patches.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]


def test_cells_of_pixels_belong_to_their_patches_where_the_last_ones_are_cut():
    vlm = build("tiny-clip")  # patches of 36 pixels
    patches = patch_of_cells(vlm, 210, 160, "9px").reshape(24, 18)
    rows, columns = np.arange(24) * 9 // 36, np.arange(18) * 9 // 36
    assert np.array_equal(patches, rows[:, None] * 6 + columns)


def test_the_probe_reads_colours_off_tokens_and_needs_a_token_a_cell():
    rng, vlm = np.random.default_rng(0), build("tiny-clip")
    images = [mosaic(rng, 216, 216, 6) for _ in range(12)]
    error = token_probe_mae(vlm, images, "6")
    assert error < 40  # chance is about 64
    assert token_probe_mae(vlm, images, "12") is None
    assert token_probe_mae(vlm, images[:3], "6") is None
