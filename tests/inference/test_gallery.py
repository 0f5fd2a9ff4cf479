"""Many pictures become features: in order, each once, whatever happens to some of them."""

import hashlib
import io
import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from hierarchy.quantised import QuantisedMaps
from inference.backbone import Backbone, Card, Preparation, load_backbone
from inference.engine import Engine, Maps, OpenVINOEngine, Pixels, TorchEngine
from inference.features import FeatureCache, prepare
from inference.gallery import FloatMaps, Gallery, Item
from inference.references import ReferenceIndex
from inference.views import LEARNT_FROM, MIRRORED, PLAIN, crop
from studio.errors import ImageError
from studio.image_decoder import Fit, ImageLimits
from studio.image_fetcher import FetchedImage, ImageFetcher
from studio.image_sandbox import InProcessDecoder

SMALL = Preparation(36, 32)


class Counting(Engine):
    """An engine that notes how many pictures each call had."""

    name = "counting"

    def __init__(self, inner: Engine) -> None:
        self.inner = inner
        self.calls: list[int] = []

    def maps(self, batch: Pixels) -> Maps:
        self.calls.append(len(batch))
        return self.inner.maps(batch)


class Shelf:
    """Pictures in memory, handed out as the fetcher does, counted."""

    def __init__(self, blobs: dict[str, bytes]) -> None:
        self.blobs = blobs
        self.fetched: Counter[str] = Counter()
        self.tasks: dict[str, int | None] = {}

    def __call__(self, ref: str, task_id: int | None) -> FetchedImage:
        self.fetched[ref] += 1
        self.tasks[ref] = task_id
        if ref not in self.blobs:
            raise ImageError("HTTP 404: not found")
        data = self.blobs[ref]
        return FetchedImage(hashlib.sha256(data).hexdigest(), data)


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def shelf(count: int) -> Shelf:
    return Shelf({f"{i}.png": png(i) for i in range(count)})


def items(count: int) -> list[Item]:
    return [(f"{i}.png", i) for i in range(count)]


@pytest.fixture(scope="module")
def tiny() -> Engine:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.ReLU6()).eval()
    return TorchEngine(Backbone(Card("tiny", 8, 4, SMALL, "tiny-0"), module))


def expected(engine: Engine, data: bytes, *, view: int = PLAIN) -> FloatMaps:
    """One picture, by hand."""
    image = Image.open(io.BytesIO(data))
    if view > MIRRORED:
        pixels = crop(image, SMALL, view, hashlib.sha256(data).hexdigest())
    else:
        whole = prepare(image, SMALL)
        pixels = whole[..., ::-1] if view == MIRRORED else whole
    return np.asarray(QuantisedMaps.of(engine.maps(pixels[None])).restored()[0])


def assert_close(found: Any, right: FloatMaps) -> None:
    """Equal up to one step of 256: batches of other sizes may round otherwise."""
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, right, atol=float(np.ptp(right)) / 255 + 1e-3)


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 200])
def test_every_item_gets_its_own_maps_in_order(count: int, tiny: Engine) -> None:
    source = shelf(count)
    found = Gallery(source, tiny, SMALL).maps(items(count))
    assert len(found) == count
    for i, maps in enumerate(found):
        assert_close(maps, expected(tiny, source.blobs[f"{i}.png"]))


def test_pictures_are_inferred_in_true_batches(tiny: Engine) -> None:
    engine = Counting(tiny)
    Gallery(shelf(100), engine, SMALL).maps(items(100))
    assert sum(engine.calls) == 100
    assert all(8 <= size <= 32 for size in engine.calls[:-1])  # what is left may be fewer


def test_the_fetcher_learns_the_task(tiny: Engine) -> None:
    source = shelf(3)
    Gallery(source, tiny, SMALL).maps([("0.png", 17), ("1.png", None)])
    assert source.tasks == {"0.png": 17, "1.png": None}


def test_mirrored_maps_are_those_of_the_flipped_picture(tiny: Engine) -> None:
    source = shelf(2)
    gallery = Gallery(source, tiny, SMALL)
    for i, maps in enumerate(gallery.maps(items(2), view=MIRRORED)):
        assert_close(maps, expected(tiny, source.blobs[f"{i}.png"], view=MIRRORED))


def test_all_views_of_a_picture_cost_one_fetch_and_one_decoding(
    tiny: Engine,
) -> None:
    decoded: Counter[bytes] = Counter()

    class Counted(InProcessDecoder):
        def decode(self, data: bytes, **how: Any) -> Image.Image:
            decoded[data] += 1
            return super().decode(data, **how)

        def planes(self, data: bytes, fit: Fit, **how: Any) -> bytes:
            decoded[data] += 1
            return super().planes(data, fit, **how)

    source = shelf(40)
    gallery = Gallery(source, tiny, SMALL, decode=Counted())
    found = dict(gallery.stream_views(items(40), LEARNT_FROM))
    assert set(source.fetched.values()) == set(decoded.values()) == {1}
    assert len(found) == len(decoded) == 40
    for i, views in found.items():
        assert isinstance(views, dict)
        assert tuple(views) == LEARNT_FROM
        for view, maps in views.items():
            right = expected(tiny, source.blobs[f"{i}.png"], view=view)
            assert_close(maps.restored()[0], right)


def test_only_views_that_are_missing_are_inferred(tiny: Engine, tmp_path: Path) -> None:
    class Counting(Engine):
        name, passed = "counting", 0

        def maps(self, batch: Pixels) -> Maps:
            self.passed += len(batch)
            return tiny.maps(batch)

    engine = Counting()
    gallery = Gallery(shelf(5), engine, SMALL, **caches(tmp_path))
    gallery.maps(items(5))
    assert engine.passed == 5
    list(gallery.stream_views(items(5), (PLAIN, MIRRORED, 2)))
    assert engine.passed == 15
    list(gallery.stream_views(items(5), (PLAIN, MIRRORED, 2)))
    assert engine.passed == 15


def caches(root: Path) -> dict[str, Any]:
    return {
        "cache": FeatureCache(root / "features", "tiny-0"),
        "index": ReferenceIndex(root / "index"),
    }


def test_the_second_time_nothing_is_fetched_or_inferred(tiny: Engine, tmp_path: Path) -> None:
    source, engine = shelf(20), Counting(tiny)
    gallery = Gallery(source, engine, SMALL, **caches(tmp_path))
    first = gallery.maps(items(20))
    source.fetched.clear()
    engine.calls.clear()
    second = Gallery(source, engine, SMALL, **caches(tmp_path)).maps(items(20))
    assert not source.fetched
    assert not engine.calls
    for one, other in zip(first, second, strict=True):
        assert isinstance(one, np.ndarray)
        np.testing.assert_array_equal(one, other)


def test_only_what_is_missing_is_inferred(tiny: Engine, tmp_path: Path) -> None:
    source, engine = shelf(20), Counting(tiny)
    gallery = Gallery(source, engine, SMALL, **caches(tmp_path))
    gallery.maps(items(12))
    engine.calls.clear()
    found = gallery.maps(items(20))
    assert sum(engine.calls) == 8
    for i, maps in enumerate(found):
        assert_close(maps, expected(tiny, source.blobs[f"{i}.png"]))


def test_a_picture_known_under_another_reference_is_not_inferred(
    tiny: Engine, tmp_path: Path
) -> None:
    source, engine = shelf(1), Counting(tiny)
    source.blobs["copy.png"] = source.blobs["0.png"]
    gallery = Gallery(source, engine, SMALL, **caches(tmp_path))
    gallery.maps([("0.png", None)])
    gallery.maps([("copy.png", None)])
    assert engine.calls == [1]


def test_one_view_in_the_cache_is_not_both(tiny: Engine, tmp_path: Path) -> None:
    source = shelf(3)
    gallery = Gallery(source, tiny, SMALL, **caches(tmp_path))
    gallery.maps(items(3))
    for i, maps in enumerate(gallery.maps(items(3), view=MIRRORED)):
        assert_close(maps, expected(tiny, source.blobs[f"{i}.png"], view=MIRRORED))


def test_pruned_features_are_fetched_again(tiny: Engine, tmp_path: Path) -> None:
    source, parts = shelf(3), caches(tmp_path)
    gallery = Gallery(source, tiny, SMALL, **parts)
    gallery.maps(items(3))
    parts["cache"].prune(0)
    assert all(isinstance(maps, np.ndarray) for maps in gallery.maps(items(3)))
    assert set(source.fetched.values()) == {2}


def test_an_old_reference_is_fetched_again_and_may_have_changed(
    tiny: Engine, tmp_path: Path
) -> None:
    source = shelf(2)
    gallery = Gallery(source, tiny, SMALL, max_age_s=-1, **caches(tmp_path))
    gallery.maps([("0.png", None)])
    source.blobs["0.png"] = source.blobs["1.png"]
    (found,) = gallery.maps([("0.png", None)])
    assert_close(found, expected(tiny, source.blobs["1.png"]))


def test_bad_pictures_cost_themselves_only(tiny: Engine) -> None:
    source = shelf(50)
    whole = source.blobs["7.png"]
    source.blobs |= {"7.png": whole[: len(whole) // 2], "8.png": b"<html>", "9.png": b""}
    del source.blobs["10.png"]
    for i, found in enumerate(Gallery(source, tiny, SMALL).maps(items(50))):
        if i in {7, 8, 9, 10}:
            assert isinstance(found, ImageError)
            assert found.reason
        else:
            assert_close(found, expected(tiny, source.blobs[f"{i}.png"]))


def test_limits_are_kept(tiny: Engine) -> None:
    gallery = Gallery(shelf(1), tiny, SMALL, limits=ImageLimits(max_pixels=100))
    (found,) = gallery.maps(items(1))
    assert isinstance(found, ImageError)
    assert "pixels" in found.reason


def test_an_error_of_ours_is_not_hidden(tiny: Engine) -> None:
    def fetch(ref: str, task_id: int | None) -> FetchedImage:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        Gallery(fetch, tiny, SMALL).maps(items(5))


def test_progress_counts_up_to_all(tiny: Engine) -> None:
    steps: list[tuple[int, int]] = []
    source = shelf(40)
    del source.blobs["3.png"]
    Gallery(source, tiny, SMALL).maps(items(40), progress=lambda n, of: steps.append((n, of)))
    assert steps == [(n, 40) for n in range(1, 41)]


def test_a_picture_that_is_gone_is_its_own_error_in_all_views(tiny: Engine) -> None:
    found = dict(Gallery(shelf(1), tiny, SMALL).stream_views(items(2), LEARNT_FROM))
    assert isinstance(found[0], dict)
    assert isinstance(found[1], ImageError)


def test_a_stream_gives_each_position_once(tiny: Engine) -> None:
    positions = [position for position, _ in Gallery(shelf(70), tiny, SMALL).stream(items(70))]
    assert sorted(positions) == list(range(70))


def test_a_stream_runs_only_a_little_ahead(tiny: Engine) -> None:
    """Ten thousand items; after the first result, at most the window has been fetched."""
    source = shelf(4)
    many = [(f"{i % 4}.png", None) for i in range(10_000)]
    stream = Gallery(source, tiny, SMALL).stream(many)
    next(stream)
    stream.close()
    assert sum(source.fetched.values()) <= 256


def test_leaving_a_stream_leaves_no_thread_behind(tiny: Engine) -> None:
    for _ in Gallery(shelf(60), tiny, SMALL).stream(items(60)):
        break
    assert not [thread for thread in threading.enumerate() if "gallery" in thread.name]


def test_fetching_goes_on_while_the_engine_runs(tiny: Engine) -> None:
    """The first batch is held in the engine until a later picture has been fetched."""
    source = shelf(100)
    later = threading.Event()

    def fetch(ref: str, task_id: int | None) -> FetchedImage:
        if ref == "90.png":
            later.set()
        return source(ref, task_id)

    class Slow(Engine):
        name = "slow"
        overlapped: bool | None = None

        def maps(self, batch: Pixels) -> Maps:
            if self.overlapped is None:
                self.overlapped = later.wait(timeout=20)
            return tiny.maps(batch)

    engine = Slow()
    Gallery(fetch, engine, SMALL, threads=1).maps(items(100))
    assert engine.overlapped


def test_one_slow_picture_does_not_hold_up_the_others(tiny: Engine) -> None:
    source = shelf(80)
    release = threading.Event()

    def fetch(ref: str, task_id: int | None) -> FetchedImage:
        if ref == "0.png":
            assert release.wait(timeout=20)
        return source(ref, task_id)

    seen = []
    for position, _ in Gallery(fetch, tiny, SMALL).stream(items(80)):
        seen.append(position)
        release.set()
    assert seen[0] != 0
    assert 0 in seen


def test_requests_may_share_a_gallery(tiny: Engine, tmp_path: Path) -> None:
    source = shelf(40)
    gallery = Gallery(source, tiny, SMALL, threads=3, **caches(tmp_path))
    right = [expected(tiny, source.blobs[f"{i}.png"]) for i in range(40)]
    with ThreadPoolExecutor(6) as pool:
        for found in pool.map(gallery.maps, [items(40)] * 6):
            for one, other in zip(found, right, strict=True):
                assert_close(one, other)


def test_a_cache_that_cannot_be_written_changes_nothing(tiny: Engine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    source = shelf(5)
    found = Gallery(source, tiny, SMALL, **caches(tmp_path / "file")).maps(items(5))
    for i, maps in enumerate(found):
        assert_close(maps, expected(tiny, source.blobs[f"{i}.png"]))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def photo_server(shared: Path) -> Iterator[str]:
    """The Grocery photos over HTTP."""
    handler = partial(Quiet, directory=str(shared / "data/grocery/train/Fruit"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_photos_over_http_with_one_missing(shared: Path, photo_server: str) -> None:
    """Real fetcher, real photos, real backbone: only the missing one has no features."""
    backbone = load_backbone()
    folder = shared / "data/grocery/train/Fruit"
    files = [*sorted(folder.glob("Banana/*.jpg"))[:6], *sorted(folder.glob("Lemon/*.jpg"))[:6]]
    refs: list[Item] = [(f"{photo_server}/{f.relative_to(folder)}", None) for f in files]
    refs.insert(5, (f"{photo_server}/Banana/none.jpg", None))
    with ImageFetcher(None, None, ImageLimits(), allow_private=True) as fetcher:
        gallery = Gallery(
            lambda ref, task: fetcher.fetch(ref, task_id=task),
            OpenVINOEngine(backbone),
            backbone.preparation,
        )
        found = gallery.maps(refs)
    missing = found.pop(5)
    assert isinstance(missing, ImageError)
    assert "404" in missing.reason
    right = TorchEngine(backbone).maps(
        np.stack([prepare(Image.open(file), backbone.preparation) for file in files])
    )
    for maps, one in zip(found, right, strict=True):
        assert isinstance(maps, np.ndarray)
        assert np.linalg.norm(maps - one) < 0.01 * np.linalg.norm(one)


def test_a_picture_at_hand_has_the_features_it_would_have_by_its_address(
    tiny: Engine, tmp_path: Path
) -> None:
    counting = Counting(tiny)
    kept = FeatureCache(tmp_path, "tiny")
    gallery = Gallery(shelf(2), counting, SMALL, cache=kept)
    (known,) = gallery.maps([("0.png", None)])
    assert not isinstance(known, ImageError)
    held = [FetchedImage(hashlib.sha256(png(seed)).hexdigest(), png(seed)) for seed in (0, 1)]
    assert np.array_equal(gallery.maps_of_picture(held[0]).restored()[0], known)
    assert counting.calls == [1]  # the cache had it
    fresh = gallery.maps_of_picture(held[1])
    assert counting.calls == [1, 1]
    (again,) = gallery.maps([("1.png", None)])
    assert not isinstance(again, ImageError)
    assert np.array_equal(fresh.restored()[0], again)


def test_a_file_at_hand_that_is_no_picture_is_told(tiny: Engine) -> None:
    gallery = Gallery(shelf(0), tiny, SMALL)
    with pytest.raises(ImageError):
        gallery.maps_of_picture(FetchedImage("0" * 64, b"no picture"))


def ensured(gallery: Gallery, count: int, views: tuple[int, ...]) -> list[str]:
    found = dict(gallery.ensure(items(count), views))
    digests = [found[at] for at in range(count)]
    assert not any(isinstance(digest, ImageError) for digest in digests)
    return [str(digest) for digest in digests]


def test_ensuring_fills_the_cache_once_and_then_reads_no_map(
    tiny: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting, views = Counting(tiny), (PLAIN, MIRRORED, 2)
    parts = caches(tmp_path)
    digests = ensured(Gallery(shelf(5), counting, SMALL, **parts), 5, views)
    assert digests == [hashlib.sha256(png(seed)).hexdigest() for seed in range(5)]
    assert sum(counting.calls) == 15
    gallery = Gallery(shelf(5), counting, SMALL, **caches(tmp_path))
    opened: list[str] = []
    really = os.open

    def noting(path: Any, *rest: Any, **more: Any) -> int:
        opened.append(str(path))
        return really(path, *rest, **more)

    monkeypatch.setattr(os, "open", noting)
    assert ensured(gallery, 5, views) == digests
    assert sum(counting.calls) == 15
    assert not [path for path in opened if path.endswith((".maps", ".means"))]


@pytest.mark.parametrize("view", [PLAIN, MIRRORED])
def test_what_was_ensured_is_read_in_bulk_as_one_by_one(
    tiny: Engine, tmp_path: Path, view: int
) -> None:
    counting = Counting(tiny)
    gallery = Gallery(shelf(4), counting, SMALL, **caches(tmp_path))
    digests = ensured(gallery, 4, (PLAIN, MIRRORED))
    passes = sum(counting.calls)
    order = [2, 0, 3]
    some, names = [items(4)[at] for at in order], [digests[at] for at in order]
    maps = gallery.kept(some, names, view=view)
    for at, one in zip(order, maps, strict=True):
        np.testing.assert_array_equal(one, gallery.maps(items(4), view=view)[at])
    means = gallery.means(some, names, view=view)
    np.testing.assert_allclose(means, maps.mean(axis=(2, 3), dtype=np.float64), atol=2e-3)
    assert sum(counting.calls) == passes


def test_what_was_pruned_after_it_was_ensured_is_had_again(tiny: Engine, tmp_path: Path) -> None:
    counting, parts = Counting(tiny), caches(tmp_path)
    gallery = Gallery(shelf(3), counting, SMALL, **parts)
    digests = ensured(gallery, 3, (PLAIN,))
    maps = gallery.kept(items(3), digests)
    parts["cache"].prune(0)
    np.testing.assert_allclose(gallery.kept(items(3), digests), maps, atol=1e-2)
    assert sum(counting.calls) == 6
    parts["cache"].prune(0)
    assert gallery.means(items(3), digests).shape == maps.shape[:2]
    assert sum(counting.calls) == 9


def test_without_a_cache_what_was_ensured_is_made_again(tiny: Engine) -> None:
    gallery = Gallery(shelf(2), tiny, SMALL)
    digests = ensured(gallery, 2, (PLAIN,))
    assert_close(gallery.kept(items(2), digests)[1], expected(tiny, png(1)))
    assert gallery.means(items(2), digests).shape[0] == 2


def test_ensuring_tells_of_what_cannot_be_had(tiny: Engine, tmp_path: Path) -> None:
    gallery = Gallery(shelf(1), tiny, SMALL, **caches(tmp_path))
    found = dict(gallery.ensure([("0.png", None), ("gone.png", None)], (PLAIN,)))
    assert isinstance(found[0], str)
    assert isinstance(found[1], ImageError)
    with pytest.raises(ImageError):
        gallery.kept([("gone.png", None)], ["0" * 64])


def test_an_error_that_looks_like_an_empty_queue_is_told(tiny: Engine) -> None:
    def fetch(ref: str, task_id: int | None) -> FetchedImage:
        raise Empty(ref)

    with pytest.raises(Empty):
        Gallery(fetch, tiny, SMALL).maps(items(20))
