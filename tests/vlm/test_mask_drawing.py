"""A mask is made visible by its border, and by dimming what lies outside."""

import numpy as np

from vlm.segmentation.mask_drawing import draw_mask


def test_an_overlay_keeps_what_is_found_and_draws_its_border():
    image, mask = np.full((8, 8, 3), 100, np.uint8), np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    picture = draw_mask(image, mask)
    assert picture[0, 0].tolist() == [45] * 3
    assert picture[12, 12].tolist() == [100] * 3
    assert picture[6, 6].tolist() == [255, 0, 255]
    plain = draw_mask(image, mask, scale=1, dim=False)
    assert plain[0, 0].tolist() == plain[3, 3].tolist() == [100] * 3
    assert plain[2, 2].tolist() == [255, 0, 255]
    assert image.max() == 100  # the image itself is not drawn on
