"""The 3x3 convolution that answers, against PyTorch's."""

import pytest
import torch

from hierarchy.winograd import WholeGrid, fits


@pytest.mark.parametrize("side", [(4, 4), (5, 7), (7, 7), (8, 6), (8, 8)])
def test_it_is_the_sliding_kernel(side: tuple[int, int]) -> None:
    maps = torch.rand(3, 20, *side, generator=torch.Generator().manual_seed(1)) * 6
    weight = torch.randn(11, 20, 3, 3, generator=torch.Generator().manual_seed(2)) / 13
    found = WholeGrid(weight, *side)(maps)
    right = torch.nn.functional.conv2d(maps.double(), weight.double())
    assert found.shape == ((side[0] - 2) * (side[1] - 2), 3, 11)
    found = found.permute(1, 2, 0).reshape(right.shape)
    assert (found - right).abs().max() < 2e-5 * right.abs().max()


@pytest.mark.parametrize("side", [(3, 7), (7, 3), (9, 7), (7, 9), (0, 0)])
def test_a_grid_that_does_not_fit_is_refused(side: tuple[int, int]) -> None:
    assert not fits(*side)
    with pytest.raises(ValueError, match=f"4 to 8 positions a side, got {side[0]} x {side[1]}"):
        WholeGrid(torch.zeros(2, 2, 3, 3), *side)
