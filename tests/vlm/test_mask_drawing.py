"""A mask is drawn as its border on a dimmed background."""

import numpy as np

from vlm.segmentation.mask_drawing import draw_mask


def test_the_mask_keeps_its_pixels_inside_its_border():
    image, mask = np.full((8, 8, 3), 100, np.uint8), np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    drawn = draw_mask(image, mask)
    assert drawn[0, 0].tolist() == [45] * 3
    assert drawn[12, 12].tolist() == [100] * 3
    assert drawn[6, 6].tolist() == [255, 0, 255]
    plain = draw_mask(image, mask, scale=1, dim=False)
    assert plain[0, 0].tolist() == plain[3, 3].tolist() == [100] * 3
    assert plain[2, 2].tolist() == [255, 0, 255]
    assert image.max() == 100  # the image itself is not drawn on
