"""A convolution computed as a matrix product is the library's convolution."""

import numpy as np
import pytest
import torch
from torch import nn

from vlm.convolution import ProductConv2d, use_products
from vlm.presets import build


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "height", "width"),
    [(9, 8, 4, 40, 24), (5, 3, 2, 27, 20), (9, 3, 4, 9, 7), (3, 3, 0, 10, 8)],
)
def test_values_and_gradients_are_those_of_the_convolution(kernel, stride, padding, height, width):
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 8, kernel, stride, padding).double()
    ours = nn.Conv2d(6, 8, kernel, stride, padding).double()
    ours.load_state_dict(plain.state_dict())
    use_products(ours)
    assert type(ours) is ProductConv2d
    image = torch.randn(2, 6, height, width, dtype=torch.float64)
    found = []
    for layer in (plain, ours):
        given = image.clone().requires_grad_()
        made = layer(given)
        made.sin().sum().backward()
        found.append((made, given.grad, layer.weight.grad, layer.bias.grad))
    for expected, got in zip(*found, strict=True):
        assert torch.allclose(expected, got, atol=1e-9)


def test_a_model_computes_and_saves_the_same_with_products():
    vlm = build("tiny")
    pixels = vlm.pixels(np.random.default_rng(0).integers(0, 256, (2, 2, 210, 160, 3), dtype=np.uint8))
    names = list(vlm.model.state_dict())
    with torch.no_grad():
        before = vlm.image_embeddings(pixels)
        use_products(vlm.model)
        assert torch.allclose(vlm.image_embeddings(pixels), before, atol=1e-4)
    assert list(vlm.model.state_dict()) == names
    assert sum(type(module) is ProductConv2d for module in vlm.encoder.modules()) == 5
