"""Array shapes in signatures are checked in tests."""

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from vlm.decoding.packing import forward_packed
from vlm.image_input import resize_image
from vlm.presets import build


def test_an_array_of_another_shape_is_refused():
    with pytest.raises(TypeCheckError, match="resize_image"):
        resize_image(np.zeros((8, 8), np.uint8), (4, 4))
    vlm = build("tiny")
    features = vlm.encode_images(vlm.preprocess(torch.zeros(1, 2, 32, 32, 3, dtype=torch.uint8)))
    with pytest.raises(TypeCheckError, match="suffixes"):
        forward_packed(vlm, features, torch.tensor([1]), torch.ones(1, 4, dtype=torch.long))
