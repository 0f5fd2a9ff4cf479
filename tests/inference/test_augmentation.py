"""Crops to learn from: always the same for one image, inside it, and all different."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inference import augmentation
from inference.augmentation import LEARNT_FROM, MIRRORED, PLAIN, crop
from inference.backbone import Preparation

SMALL = Preparation(
    resize=36, crop=32, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)
CROPS = LEARNT_FROM[2:]


def gradient(width: int = 90, height: int = 60) -> Image.Image:
    """Red grows to the right, green downwards: a crop's corner says where it was cut."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, x * 0 + 90], axis=-1).astype(np.uint8))


def test_images_are_learnt_from_as_they_are_first() -> None:
    assert LEARNT_FROM[:2] == (PLAIN, MIRRORED)


@pytest.mark.parametrize("kind", CROPS)
def test_a_crop_is_the_same_each_time(kind: int) -> None:
    first, again = (crop(gradient(), SMALL, kind, "a" * 64) for _ in range(2))
    assert first.shape == (3, 32, 32)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)


def test_other_augmentations_and_other_images_are_cut_otherwise() -> None:
    found = [crop(gradient(), SMALL, kind, image_key * 64) for kind in CROPS for image_key in "ab"]
    assert len({pixels.tobytes() for pixels in found}) == len(found)


def test_some_crops_are_mirrored_and_some_are_not() -> None:
    turned = [
        bool(pixels[0, :, 0].mean() > pixels[0, :, -1].mean())
        for image_key in map(str, range(40))
        for pixels in [crop(gradient(), SMALL, 2, image_key)]
    ]
    assert 8 < sum(turned) < 32


@settings(max_examples=60)
@given(width=st.integers(1, 400), height=st.integers(1, 400), seed=st.integers(0, 10**6))
def test_a_box_lies_in_the_picture_and_keeps_a_fair_share(
    width: int, height: int, seed: int
) -> None:
    left, top, right, bottom = augmentation._box((width, height), np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    whole = (left, top, right, bottom) == (0, 0, width, height)
    rounding = (right - left + bottom - top + 1) / (width * height)
    assert whole or 0.3 - rounding <= (right - left) * (bottom - top) / (width * height)


@pytest.mark.parametrize("kind", [-1, PLAIN, MIRRORED])
def test_only_crops_are_cropped(kind: int) -> None:
    with pytest.raises(ValueError, match=r"crops are the augmentations from 2"):
        crop(gradient(), SMALL, kind, "a" * 64)
