"""Quantised maps and the integer convolution that reads them."""

import numpy as np
import numpy.typing as npt
import pytest
import torch

from hierarchy import LabelTree
from hierarchy.network import FrozenHead
from hierarchy.quantised import IntegerConvolution, QuantisedMaps, in_bytes, joined

TREE = LabelTree.from_paths([("Bird", "Duck"), ("Bird", "Owl"), ("Fish",)])


def some_maps(count: int, *shape: int, least: float = 0.0, seed: int = 0) -> QuantisedMaps:
    """As a ReLU leaves them, or not."""
    maps = np.random.default_rng(seed).normal(0.5, 1, (count, *shape)).astype(np.float32)
    return QuantisedMaps.of(np.maximum(maps, least))


def exactly(maps: QuantisedMaps) -> npt.NDArray[np.float64]:
    """What the steps stand for."""
    low, step = maps.scale.astype(np.float64).T[:, :, None, None, None]
    return np.asarray(low + step * maps.steps)


@pytest.mark.parametrize("least", [0.0, -5.0])
@pytest.mark.parametrize("shape", [(64, 7, 7), (33, 1, 1), (8, 3, 5)])
def test_the_integer_convolution_is_the_convolution(
    shape: tuple[int, int, int], least: float
) -> None:
    maps = some_maps(70, *shape, least=least)
    torch.manual_seed(1)
    weight = torch.randn(20, shape[0]) * torch.logspace(-3, 3, 20)[:, None]
    weight[7] = 0
    bias = torch.randn(20)
    found = IntegerConvolution(weight, bias)(maps)
    right = np.einsum("dc,bchw->bdhw", weight.double().numpy(), exactly(maps))
    right += bias.double().numpy()[:, None, None]
    assert found.shape == right.shape
    error = np.abs(found.numpy() - right).max(axis=(0, 2, 3))
    largest = weight.abs().amax(dim=1).numpy() * np.sqrt(shape[0])
    assert (error <= 2e-5 * largest + 1e-6).all()


def test_weights_that_are_bytes_are_one_number_each() -> None:
    numbers, step = in_bytes(torch.randn(20, 32) * torch.logspace(-3, 3, 20)[:, None])
    assert numbers.abs().max() <= 127
    assert torch.equal(numbers * step, (numbers * step).bfloat16().double())
    exact = IntegerConvolution(numbers * step, torch.zeros(20))
    assert len(exact._steps) == 1
    again = in_bytes(numbers * step)
    assert torch.equal(again[0], numbers)
    assert torch.equal(again[1], step)


def test_a_weight_of_thousands_leaves_the_others_their_digits() -> None:
    """As a PCA of few pictures gives to a channel that hardly moved in them."""
    torch.manual_seed(0)
    weight = torch.randn(8, 64).bfloat16().float()
    weight[:, 5] *= 4096
    maps = some_maps(3, 64, 7, 7)
    maps.steps[:, 5] = 0  # nor moves now
    found = IntegerConvolution(weight, torch.zeros(8))(maps)
    right = np.einsum("dc,bchw->bdhw", weight.double().numpy(), exactly(maps))
    assert np.abs(found.numpy() - right).max() <= 4e-3 * np.abs(right).max()


def test_no_maps_give_none() -> None:
    maps = some_maps(0, 32, 7, 7)
    assert IntegerConvolution(torch.randn(8, 32), torch.randn(8))(maps).shape == (0, 8, 7, 7)


def test_a_map_gets_the_same_alone_as_among_others() -> None:
    maps = some_maps(70, 32, 7, 7)
    convolve = IntegerConvolution(torch.randn(8, 32), torch.randn(8))
    together = convolve(maps)
    for row in (0, 31, 32, 69):
        assert torch.equal(convolve(maps[row : row + 1])[0], together[row])


def test_all_weights_may_be_far_from_zero() -> None:
    """Sums of 1,280 products of the largest numbers do not overflow."""
    maps = QuantisedMaps(
        np.full((2, 1280, 7, 7), 255, np.uint8), np.array([[0, 1], [-1, 1]], "<f4")
    )
    weight = torch.stack([torch.full((1280,), 3.0), torch.full((1280,), -3.0)])
    found = IntegerConvolution(weight, torch.zeros(2))(maps)
    right = torch.tensor([[255.0, -255.0], [254.0, -254.0]]) * 3 * 1280
    torch.testing.assert_close(found, right[:, :, None, None].expand_as(found), rtol=1e-5, atol=0)


@pytest.mark.parametrize("sizes", [{}, {"spatial": 0}, {"pooled": 0}])
def test_a_head_answers_quantised_maps_as_it_does_numbers(sizes: dict[str, int]) -> None:
    torch.manual_seed(0)
    head = FrozenHead(TREE, 32, reduced=16, width=8, hidden=8, **sizes).eval()
    maps = some_maps(40, 32, 7, 7)
    with torch.inference_mode():
        found = head.of_quantised(maps)
        torch.testing.assert_close(found, head(maps.floats()), atol=1e-4, rtol=1e-3)
        head.train().eval()
        assert (
            head.reduce is None or head.reduce.bias is None or head.reduce.bias.add_(1) is not None
        )
        torch.testing.assert_close(
            head.of_quantised(maps), head(maps.floats()), atol=1e-4, rtol=1e-3
        )


def test_means_are_those_of_the_numbers() -> None:
    maps = some_maps(70, 16, 7, 7, least=-9)
    np.testing.assert_allclose(maps.means, exactly(maps).mean(axis=(2, 3)), rtol=1e-6, atol=1e-7)


def test_parts_are_joined_in_order() -> None:
    parts = [some_maps(count, 4, 2, 2, seed=count) for count in (1, 3)]
    whole = joined(parts)
    np.testing.assert_array_equal(whole.restored()[1:], parts[1].restored())
    assert len(whole) == 4
    assert joined(parts[:1]) is parts[0]
