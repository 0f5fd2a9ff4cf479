"""Relabelling keeps who it says it keeps; poorer images are as poor as they say."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from evaluation.errors import ProtocolError
from evaluation.protocols import (
    FAMILY,
    Degradation,
    Protocol,
    gaussian_blur,
    gaussian_noise,
    lower_resolution,
    relabel,
    small_tree,
)
from hierarchy.metrics import sibling_leaves
from hierarchy.tree import LabelTree
from tests.strategies import trees

PAIR = LabelTree.from_paths([("Fruit", "Apple"), ("Fruit", "Pear"), ("Milk",)])
FRUIT, MILK, APPLE, PEAR = 0, 1, 2, 3


def photo(width: int = 13, height: int = 9) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image).astype(np.int64)


@pytest.mark.parametrize(
    ("images", "share", "kept"),
    [
        *((30, share, kept) for share, kept in ((0.9, 3), (0.7, 9), (0.5, 15), (0.3, 21), (0, 30))),
        *(
            (67, share, kept)
            for share, kept in ((0.9, 7), (0.7, 21), (0.5, 34), (0.3, 47), (0, 67))
        ),
        (3, 1, 0),
    ],
)
@pytest.mark.parametrize("how", ["first", "random"])
def test_as_many_keep_their_label_as_published(
    images: int, share: float, kept: int, how: str
) -> None:
    found = relabel(np.full(images, APPLE), PAIR, share, how=how)  # type: ignore[arg-type]
    assert np.count_nonzero(found == APPLE) == kept
    assert np.count_nonzero(found == FRUIT) == images - kept


def test_the_first_in_order_keep_theirs_class_by_class() -> None:
    targets = np.array([APPLE, PEAR, APPLE, PEAR, APPLE, APPLE])
    found = relabel(targets, PAIR, 0.5, how="first")
    assert found.tolist() == [APPLE, PEAR, APPLE, FRUIT, FRUIT, FRUIT]
    assert targets.tolist() == [APPLE, PEAR, APPLE, PEAR, APPLE, APPLE]  # as it was


def test_the_seed_draws_who_keeps_it() -> None:
    targets = np.full(40, APPLE)
    one, same, other = (relabel(targets, PAIR, 0.5, seed=seed) for seed in (1, 1, 2))
    assert one.tolist() == same.tolist()
    assert one.tolist() != other.tolist()
    assert one.tolist() != relabel(targets, PAIR, 0.5, how="first").tolist()


@given(trees(), st.floats(0, 1), st.data())
def test_a_label_stays_or_becomes_its_parent_and_only_of_leaves(
    tree: LabelTree, share: float, data: st.DataObject
) -> None:
    nodes = st.integers(0, len(tree) - 1)
    targets = np.array(data.draw(st.lists(nodes, min_size=1, max_size=30)), dtype=np.int64)
    found = relabel(targets, tree, share)
    for before, after in zip(targets.tolist(), found.tolist(), strict=True):
        movable = before in tree.leaves and tree.parents[before] != -1
        assert after == before or (movable and after == tree.parents[before])


def test_a_leaf_that_is_a_top_has_no_parent_to_take() -> None:
    assert relabel(np.array([MILK, MILK]), PAIR, 1.0).tolist() == [MILK, MILK]


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_0_to_1(share: float) -> None:
    with pytest.raises(ProtocolError, match="0 to 1"):
        relabel(np.array([APPLE]), PAIR, share)


def test_there_are_two_ways_to_relabel() -> None:
    with pytest.raises(ProtocolError, match="random or first, got 'last'"):
        relabel(np.array([APPLE]), PAIR, 0.5, how="last")  # type: ignore[arg-type]


@pytest.mark.parametrize("factor", [0.25, 0.5, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("size", [(4, 4), (13, 9), (101, 57)])
def test_low_resolution_picks_the_pixels_that_torch_picks(
    factor: float, size: tuple[int, int]
) -> None:
    image = photo(*size)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255  # (1, 3, H, W)
    small = torch.nn.functional.interpolate(tensor, scale_factor=factor)
    expected = small[0].mul(255).round().byte().permute(1, 2, 0)
    assert pixels(lower_resolution(image, factor)).tolist() == expected.tolist()


def test_low_resolution_leaves_one_pixel_at_least() -> None:
    assert lower_resolution(photo(2, 3)).size == (1, 1)


def test_noise_has_the_spread_that_was_asked_for() -> None:
    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    noise = pixels(gaussian_noise(grey, 10, np.random.default_rng(0))) - 128
    assert noise.std() == pytest.approx(10, rel=0.02)
    assert abs(noise.mean()) < 0.15
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.03


def test_noise_does_not_wrap_around() -> None:
    white = Image.new("RGB", (50, 50), (255, 255, 255))
    assert pixels(gaussian_noise(white, 10, np.random.default_rng(0))).min() > 150


def test_blur_has_the_spread_that_was_asked_for() -> None:
    dot = np.zeros((61, 61), dtype=np.uint8)
    dot[20:41, 20:41] = 255  # wide enough that 8 bit carries its tails
    blurred = pixels(gaussian_blur(Image.fromarray(dot), 3)).astype(float)[30, :, 0]
    place = np.arange(61) - 30
    variance = (blurred * place**2).sum() / blurred.sum()
    assert variance == pytest.approx((21**2 - 1) / 12 + 3**2, rel=0.03)


def test_equal_degradations_have_equal_keys_and_others_differ() -> None:
    several = [
        Degradation(),
        Degradation(resolution=0.25),
        Degradation(resolution=0.2500001),
        Degradation(noise=8),
        Degradation(noise=8, seed=1),
        Degradation(blur=2),
    ]
    assert len({one.key for one in several}) == len(several)
    assert Degradation(noise=8).key == Degradation(noise=8.0).key
    assert Degradation(blur=2).key == Degradation(blur=2, seed=5).key  # the seed moves nothing


def test_each_image_has_its_own_noise_and_always_the_same() -> None:
    noisy, image = Degradation(noise=20), photo()
    one = pixels(noisy.apply(image, "a.jpg"))
    assert one.tolist() == pixels(noisy.apply(image, "a.jpg")).tolist()
    assert one.tolist() != pixels(noisy.apply(image, "b.jpg")).tolist()


def test_plain_changes_nothing() -> None:
    assert pixels(Degradation().apply(photo(), "a")).tolist() == pixels(photo()).tolist()


def test_the_order_is_blur_then_shrinking_then_noise() -> None:
    image = photo(40, 40)
    whole = Degradation(blur=1, resolution=0.5, noise=5)
    step = Degradation(blur=1).apply(image, "a")
    for part in (Degradation(resolution=0.5), Degradation(noise=5)):
        step = part.apply(step, "a")
    assert pixels(whole.apply(image, "a")).tolist() == pixels(step).tolist()


@pytest.mark.parametrize(
    "wrong",
    [{"blur": -1}, {"resolution": 0}, {"resolution": 2}, {"noise": -1}],
)
def test_numbers_out_of_range_are_refused_at_once(wrong: dict[str, float]) -> None:
    with pytest.raises(ProtocolError):
        Degradation(**wrong)  # type: ignore[arg-type]


def test_a_protocol_labels_so_many_images_of_each_leaf() -> None:
    targets = np.array([APPLE] * 9 + [PEAR] * 2 + [MILK] * 5)
    chosen, labels = Protocol(0.5, per_leaf=4).labels(targets, PAIR, 0)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert np.bincount(targets[chosen]).tolist() == [0, 4, 4, 2]
    assert np.bincount(labels).tolist() == [3, 4, 2, 1]  # half of 4 and of 2 are Fruit
    other, _ = Protocol(0.5, per_leaf=4).labels(targets, PAIR, 1)
    assert other.tolist() != chosen.tolist()
    everything, same = Protocol().labels(targets, PAIR, 0)
    assert everything.tolist() == list(range(16))
    assert same.tolist() == targets.tolist()


def test_protocols_have_names_of_their_own() -> None:
    several = [
        Protocol(),
        Protocol(0.9),
        Protocol(0.9, "first"),
        Protocol(0.9, low_res=True),
        Protocol(0.9, per_leaf=2),
        Protocol(0.9, leaves=10),
    ]
    assert len({one.name for one in several}) == len(several)
    assert Protocol(0.9, "first", low_res=True, per_leaf=2, leaves=10).name == (
        "90 %, first keep theirs, low resolution, 2 per leaf, 10 leaves"
    )


@pytest.mark.parametrize("wrong", [{"share": 2}, {"how": "last"}, {"per_leaf": 0}, {"leaves": 1}])
def test_a_protocol_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match="must be"):
        Protocol(**wrong)  # type: ignore[arg-type]


def test_a_small_tree_has_families_of_a_few_siblings() -> None:
    paths = [(f"{top}", f"{leaf}") for top in range(5) for leaf in range(6)]
    tree = LabelTree.from_paths([*paths, ("only", "child")])
    small, place = small_tree(tree, 10, seed=0)
    assert len(small.leaves) == 10
    assert sorted(len(below) for below in small.children if below) == [2, FAMILY, FAMILY]
    assert len(sibling_leaves(small)) == 10
    stay = [node for node in range(len(tree)) if place[node] >= 0]
    assert [small.paths[place[node]] for node in stay] == [tree.paths[node] for node in stay]
    assert sorted(place[stay].tolist()) == list(range(len(small)))
    assert small_tree(tree, 10, seed=0)[0] == small != small_tree(tree, 10, seed=1)[0]
    with pytest.raises(ProtocolError, match="at most 20 of this tree, got 21"):
        small_tree(tree, 21, seed=0)
