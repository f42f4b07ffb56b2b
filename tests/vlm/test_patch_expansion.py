"""Patch expansion gives image tokens as cells, and leaves what plays as it was."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from common.errors import UserError
from vlm import checkpoint
from vlm.patch_expansion import NAME, PatchExpansion, add_expansion
from vlm.presets import build
from vlm.training.attention_supervision import patch_edges
from vlm.training.learning_rates import role_parameters

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 2, 210, 160, 3), dtype=np.uint8)


def expanded(preset="tiny", factor=2, skip=False):
    vlm = build(preset)
    add_expansion(vlm, factor, skip, torch.Generator().manual_seed(0))
    return vlm


def test_cells_stand_row_by_row_over_the_image():
    expansion = PatchExpansion(4, 2)
    with torch.no_grad():
        expansion.linear.weight.zero_()
        expansion.linear.bias.copy_(torch.arange(4.0).repeat_interleave(4))  # the cell's number within its token
        expansion.row_embedding.weight.zero_()
        expansion.column_embedding.weight.zero_()
    cells = expansion(torch.zeros(1, 6, 4), rows=2, columns=3)[0, :, 0].view(4, 6)
    assert cells.tolist() == [[0, 1, 0, 1, 0, 1], [2, 3, 2, 3, 2, 3]] * 2


def test_each_cell_gets_its_own_row_and_column():
    expansion = PatchExpansion(4, 2)
    with torch.no_grad():
        expansion.linear.weight.zero_()
        expansion.linear.bias.zero_()
        expansion.row_embedding.weight[:] = 10 * torch.arange(128.0)[:, None]
        expansion.column_embedding.weight[:] = torch.arange(128.0)[:, None]
    cells = expansion(torch.zeros(1, 2, 4), rows=1, columns=2)[0, :, 0]
    assert cells.tolist() == [0, 1, 2, 3, 10, 11, 12, 13]


def test_a_new_expansion_starts_near_copies_of_the_token():
    vlm = expanded()
    pixels = vlm.preprocess(FRAMES)
    tokens, cells = vlm.encode_images(pixels).tokens, vlm.encode_cells(pixels).tokens
    rows, columns = vlm.cell_grid(*pixels.shape[2:])
    copies = tokens.view(2, rows // 2, columns // 2, -1).repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1, 2)
    assert cells.shape == (2, rows * columns, vlm.token_width)
    assert torch.corrcoef(torch.stack([cells.flatten(), copies.flatten()]))[0, 1] > 0.9


def test_a_skip_connection_adds_the_encoders_map_at_each_cell():
    vlm = expanded("tiny", factor=4, skip=True)
    expansion, pixels = vlm.patch_expansion, vlm.preprocess(FRAMES)
    assert vlm.expands_maps
    assert not expanded().expands_maps
    features = vlm.encode_images(pixels, output_hidden_states=True)
    (own,) = (state for state in features.hidden_states if state.shape[2:] == (28, 20))
    cells = vlm.encode_cells(pixels).tokens
    added = expansion.skip(own.movedim(1, -1)).flatten(1, 2)
    with torch.no_grad():
        expansion.skip.weight.zero_()
    torch.testing.assert_close(cells - vlm.encode_cells(pixels).tokens, added, rtol=1e-3, atol=1e-4)


def test_a_skip_connection_says_which_map_it_misses():
    vlm = expanded("tiny", factor=4, skip=True)
    with pytest.raises(UserError, match="expected a map of the encoder with 28 x 20 cells, got maps of \\[\\]"):
        vlm.expand(vlm.encode_images(vlm.preprocess(FRAMES)))
    with pytest.raises(UserError, match="expected a map of the encoder with"):
        expanded("tiny", factor=3, skip=True)


def test_without_expansion_cells_are_the_tokens():
    vlm = build("tiny")
    pixels = vlm.preprocess(FRAMES)
    assert torch.equal(vlm.encode_cells(pixels).tokens, vlm.encode_images(pixels).tokens)
    assert vlm.cell_grid(224, 160) == vlm.token_grid(224, 160)


def test_edges_of_cells_halve_those_of_patches():
    vlm = expanded()
    patches, cells = patch_edges(vlm, 210, 160), patch_edges(vlm, 210, 160, cells=True)
    for coarse, fine in zip(patches, cells, strict=True):
        assert torch.equal(coarse, fine[::2])


def test_it_trains_at_the_connectors_rate():
    names = [name for name, _ in role_parameters(expanded())["connector"]]
    assert f"{NAME}.linear.weight" in names


@pytest.mark.parametrize(("factor", "skip"), [(2, False), (4, True)])
def test_a_checkpoint_keeps_it_and_plain_transformers_loads_the_rest(tmp_path, capfd, factor, skip):
    vlm = expanded(factor=factor, skip=skip)
    checkpoint.save(vlm, tmp_path / "model")
    loaded = checkpoint.load(tmp_path / "model", torch.device("cpu"))
    pixels = vlm.preprocess(FRAMES)
    assert torch.equal(vlm.encode_cells(pixels).tokens, loaded.encode_cells(pixels).tokens)
    assert "UNEXPECTED" not in capfd.readouterr().err
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    features = plain.get_image_features(pixel_values=pixels).pooler_output
    torch.testing.assert_close(torch.stack(list(features)).flatten(1, -2), vlm.encode_images(pixels).tokens)


def test_other_unknown_weights_are_still_refused(tmp_path):
    vlm = expanded()
    vlm.model.add_module("stranger", torch.nn.Linear(2, 2))
    checkpoint.save(vlm, tmp_path / "model")
    with pytest.raises(checkpoint.CheckpointError, match="stranger"):
        checkpoint.load(tmp_path / "model")
