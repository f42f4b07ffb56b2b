"""The model that pixel value prediction starts from: its embeddings, its encoder and its patch expansion."""

import torch

from pretrain.data.frame_captions import caption_tokenizer
from pretrain.pvp_config import PvpConfig, PvpData, PvpModel
from pretrain.pvp_questions import parse_grid
from vlm.clip import load_clip, load_vision_tower
from vlm.model import PixelVLM
from vlm.patch_expansion import add_expansion
from vlm.presets import build
from vlm.sinusoidal_init import (
    init_cell_positions,
    init_number_embeddings,
    init_patch_embedding,
    init_position_embeddings,
)
from vlm.training.attention_supervision import patch_edges
from vlm.training.fit import load_start


def start_model(config: PvpConfig) -> PixelVLM:
    """Return the model that a training starts from."""
    model, data = config.model, config.data
    if model.init:
        vlm = load_start(model)
    else:
        vlm = build(model.preset, config.run.seed, caption_tokenizer() if data.caption_weight else None)
        _init_encoder(vlm, model, data)
    if model.sinusoidal_init:
        init_number_embeddings(vlm, scale=model.number_scale, wavelengths=model.wavelengths)
    if model.patch_expansion > 1 and vlm.patch_expansion is None:
        _add_expansion(vlm, config)
    return vlm


def _init_encoder(vlm: PixelVLM, model: PvpModel, data: PvpData) -> None:
    """Initialize what a new model's positions and patches start as."""
    if model.vision_tower:
        load_vision_tower(vlm, load_clip(model.vision_tower))
        return
    if model.sinusoidal_init and vlm.image_config.square_size:
        cell_size = parse_grid(data.grid).cell_size(*data.size)
        init_position_embeddings(vlm.encoder, cell_size, model.position_amplitude, model.wavelengths)
    if model.patch_init_amplitude:
        init_patch_embedding(vlm.encoder, model.patch_init_amplitude)


def _add_expansion(vlm: PixelVLM, config: PvpConfig) -> None:
    """Add a patch expansion, whose cells start with positions where the configuration asks for them."""
    model, data = config.model, config.data
    generator = torch.Generator().manual_seed(config.run.seed)
    expansion = add_expansion(vlm, model.patch_expansion, model.skip_connection, generator)
    if model.cell_position_amplitude:
        rows, columns = (edges[1].item() for edges in patch_edges(vlm, *data.size, cells=True))
        cell_size = parse_grid(data.grid).cell_size(*data.size)
        init_cell_positions(expansion, (rows, columns), cell_size, model.cell_position_amplitude, model.wavelengths)
