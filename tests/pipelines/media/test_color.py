"""One luma for arrays and tensors, and exactly the numbers that stored figures were computed with."""

import numpy as np
import torch

from pipelines.media.color import luma


def test_both_kinds_of_pixels_have_the_same_luma_up_to_rounding():
    rgb = np.random.default_rng(0).integers(0, 256, (50, 3), np.uint8)
    rgb[:2] = [[0, 0, 0], [255, 255, 255]]
    whole, exact = luma(rgb), luma(torch.from_numpy(rgb).double())
    assert whole.dtype == np.int16
    assert whole[:2].tolist() == [0, 255]
    assert np.abs(whole - exact.numpy()).max() < 1.3


def test_a_channel_axis_can_be_moved_to_the_end_without_a_change():
    pixels = torch.rand(2, 3, 4, 5, 6)
    expected = 0.299 * pixels[:, 0] + 0.587 * pixels[:, 1] + 0.114 * pixels[:, 2]
    assert torch.equal(luma(pixels.movedim(1, -1)), expected)
