"""Pictures are made once, kept whole, varied alike for equal draws, and handed over in order."""

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inference.augmentation import prepare
from inference.backbone import Preparation
from worker.photos import Shelf, from_plain, plain, prefetched, small, stacked, varied

SHOWN = Preparation(resize=36, crop=32)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Large, soft blotches: what photos are made of, as far as a JPEG is concerned."""
    few = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC)


# The shelf


def test_what_is_asked_for_is_made_once(tmp_path: Path) -> None:
    made = list[int]()

    def make(key: int) -> bytes:
        made.append(key)
        return bytes([key]) * (key + 1)

    with Shelf(tmp_path / "new", make) as shelf:
        assert [shelf[key] for key in (2, 0, 2, 1, 0)] == [
            b"\2\2\2",
            b"\0",
            b"\2\2\2",
            b"\1\1",
            b"\0",
        ]
    assert made == [2, 0, 1]


def test_nothing_is_left_on_disk_that_a_killed_process_would_leave(tmp_path: Path) -> None:
    with Shelf[int](tmp_path, lambda _: b"kept") as shelf:
        assert shelf[1] == b"kept"
        assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_made_is_told_and_tried_again(tmp_path: Path) -> None:
    there = list[int]()

    def make(key: int) -> bytes:
        if key not in there:
            raise FileNotFoundError(key)
        return b"there"

    with Shelf(tmp_path, make) as shelf:
        with pytest.raises(FileNotFoundError):
            shelf[3]
        there.append(3)
        assert shelf[3] == b"there"


def test_threads_share_a_shelf(tmp_path: Path) -> None:
    with Shelf[int](tmp_path, lambda key: str(key).encode() * 1000) as shelf:
        keys = [at % 17 for at in range(400)]
        found = list(prefetched(keys, shelf.__getitem__, threads=8, ahead=50))
    assert found == [str(key).encode() * 1000 for key in keys]


# What is kept


def test_what_is_judged_is_what_is_served() -> None:
    image = picture(70, 50)
    np.testing.assert_array_equal(from_plain(plain(image, SHOWN), SHOWN), prepare(image, SHOWN))


@pytest.mark.parametrize(
    ("size", "kept"), [((300, 200), (68, 45)), ((40, 30), (40, 30)), ((65_000, 20), (60_000, 19))]
)
def test_a_kept_picture_is_no_larger_than_is_needed(
    size: tuple[int, int], kept: tuple[int, int], tmp_path: Path
) -> None:
    """Its short side has room for crops, and its shape stays; one that is small stays as it is."""
    file = tmp_path / "kept.jpg"
    file.write_bytes(small(picture(*size), SHOWN))
    with Image.open(file) as found:
        assert found.size == kept
        assert found.format == "JPEG"


def test_equal_draws_vary_alike_and_others_do_not() -> None:
    kept = small(picture(90, 60), SHOWN)
    one, same, other = (varied(kept, SHOWN, draw) for draw in ("0 1 2", "0 1 2", "0 2 2"))
    assert one.shape == (3, 32, 32)
    assert one.dtype == np.uint8
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_varied_picture_still_shows_its_picture() -> None:
    """Red stays red, whatever crop and light are drawn."""
    kept = small(Image.new("RGB", (80, 60), (200, 30, 30)), SHOWN)
    for draw in range(20):
        red, green, blue = varied(kept, SHOWN, str(draw)).mean(axis=(1, 2))
        assert red > 2 * green
        assert red > 2 * blue


# Handing over


@pytest.mark.parametrize("threads", [0, 3])
def test_results_come_in_order(threads: int) -> None:
    assert list(prefetched(range(50), lambda n: n * n, threads=threads, ahead=5)) == [
        n * n for n in range(50)
    ]


def test_no_more_is_under_way_than_was_said() -> None:
    started = list[int]()

    def items() -> Iterator[int]:
        for item in range(100):
            started.append(item)
            yield item

    with closing(prefetched(items(), lambda n: n, threads=2, ahead=7)) as ready:
        assert [next(ready) for _ in range(3)] == [0, 1, 2]
        assert len(started) == 9  # the two behind the first result, and the 7


@pytest.mark.parametrize("threads", [0, 2])
def test_a_failure_is_told_where_the_result_would_have_been(threads: int) -> None:
    def work(item: int) -> int:
        if item == 3:
            raise KeyError(item)
        return item

    ready = prefetched(range(9), work, threads=threads, ahead=4)
    assert [next(ready) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(ready)


def test_leaving_early_ends_the_threads() -> None:
    before = threading.active_count()
    with closing(prefetched(range(1000), lambda n: n, threads=4, ahead=100)) as ready:
        next(ready)
    assert threading.active_count() == before


def test_pictures_are_put_together_by_size() -> None:
    pixels = (np.full((3, 2, 2), n, dtype=np.uint8) for n in range(5))
    whole = list(stacked(pixels, [3, 2]))
    assert [batch.shape for batch in whole] == [(3, 3, 2, 2), (2, 3, 2, 2)]
    assert [batch[:, 0, 0, 0].tolist() for batch in whole] == [[0, 1, 2], [3, 4]]
