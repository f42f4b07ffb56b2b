"""What numbers, positions and patches start as."""

import numpy as np
import torch

from vlm.patch_expansion import PatchExpansion
from vlm.presets import build
from vlm.sinusoidal_init import (
    SCALE_WIDTH,
    init_cell_positions,
    init_number_embeddings,
    init_patch_embedding,
    init_position_embeddings,
    sinusoidal_encoding,
)
from vlm.tokenizer import token_ids


def number_rows(vlm):
    ids = torch.tensor([token_ids(vlm.tokenizer, str(n)) for n in range(256)]).flatten()
    return vlm.model.get_input_embeddings().weight[ids]


def test_numbers_with_a_scale_hold_their_value_and_its_square():
    vlm = build("nano-clip")
    init_number_embeddings(vlm, scale=0.2)
    rows, numbers = number_rows(vlm).detach(), torch.arange(256.0)
    value, square = rows[:, 0], rows[:, SCALE_WIDTH]
    assert torch.equal(rows[:, :SCALE_WIDTH], value[:, None].expand(-1, SCALE_WIDTH))
    assert abs(np.corrcoef(value, numbers)[0, 1]) > 0.9999
    assert abs(np.corrcoef(square, (numbers - 127.5) ** 2)[0, 1]) > 0.9999
    for part in (value, square):
        assert abs(part.mean()) < 1e-5
        assert torch.isclose(part.square().mean().sqrt(), torch.tensor(0.2), atol=1e-4)


def test_a_gaussian_over_numbers_is_linear_in_an_ordered_scale():
    vlm = build("nano-clip")
    init_number_embeddings(vlm, scale=0.2)
    rows = number_rows(vlm)
    log_gaussian = -((torch.arange(256.0) - 100) ** 2) / (2 * 30**2)
    parts = torch.stack([rows[:, 0], rows[:, SCALE_WIDTH], torch.ones(256)], dim=1)
    solution = torch.linalg.lstsq(parts, log_gaussian[:, None]).solution
    assert torch.allclose(parts @ solution, log_gaussian[:, None], atol=1e-3)


def test_without_a_scale_numbers_are_waves_alone():
    vlm = build("nano-clip")
    init_number_embeddings(vlm, amplitude=0.15, wavelengths=(4, 256))
    rows = number_rows(vlm)
    assert torch.allclose(rows, 0.15 * sinusoidal_encoding(torch.arange(256), rows.shape[1], (4, 256)))


def test_positions_of_patches_and_cells_match_the_numbers_that_ask_for_them():
    tower = build("nano-clip").encoder  # patches of 18 pixels
    init_position_embeddings(tower, (9.0, 9.0), wavelengths=(4, 256))
    width = tower.embeddings.position_embedding.weight.shape[1]
    row, column = 3, 5
    found = tower.embeddings.position_embedding.weight[1 + row * 12 + column]
    middle = [torch.tensor((at + 0.5) * 18 / 9 - 0.5) for at in (row, column)]
    expected = torch.cat([sinusoidal_encoding(at, width // 2, (4, 256)) for at in middle])
    assert torch.allclose(found, expected, atol=1e-5)
    expansion = PatchExpansion(16, 2)
    init_cell_positions(expansion, (9.0, 9.0), (9.0, 9.0), amplitude=0.15, wavelengths=(4, 256))
    first, second = expansion.row_embedding.weight[7], expansion.column_embedding.weight[4]
    code = 0.15 * sinusoidal_encoding(torch.arange(256), 8, (4, 256))
    assert torch.allclose(first, torch.cat([code[7], torch.zeros(8)]), atol=1e-5)
    assert torch.allclose(second, torch.cat([torch.zeros(8), code[4]]), atol=1e-5)


def test_patches_start_as_orthogonal_waves_of_single_channels():
    vlm = build("play-clip")  # six channels share 192 dimensions: 25 waves each
    init_patch_embedding(vlm.encoder, 2.0)
    weight = vlm.encoder.embeddings.patch_embedding.weight.detach()
    used = weight.flatten(1).norm(dim=1) > 0
    assert int(used.sum()) == 6 * 25
    assert all(int((kernel.flatten(1).norm(dim=1) > 0).sum()) == 1 for kernel in weight[used])
    gram = weight[used].flatten(1) @ weight[used].flatten(1).T
    assert (gram - gram.diag().diag()).abs().max() < 1e-4 * gram.diag().min()
    constant = weight[0, 0]
    assert torch.allclose(constant, constant[0, 0].expand_as(constant))
