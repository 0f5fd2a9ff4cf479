"""Many images become vectors: in order, each once, whatever happens to some of them."""

import hashlib
import io
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from inference.augmentation import LEARNT_FROM, MIRRORED, PLAIN, crop, prepare
from inference.backbone import Backbone, Preparation, load_backbone
from inference.engine import Engine, EngineVectors, OpenVINOEngine, Pixels, TorchEngine
from inference.feature_cache import FeatureCache, Vectors
from inference.feature_extractor import FeatureExtractor, Item, Network
from inference.reference_index import ReferenceIndex
from studio.errors import ImageError
from studio.image_decoder import Fit, ImageLimits
from studio.image_fetcher import FetchedImage, ImageFetcher
from studio.image_sandbox import InProcessDecoder

SMALL = Preparation(36, 32)
SMALLER = Preparation(28, 24)


class Counting(Engine):
    """An engine that notes how many images each call had."""

    name = "counting"

    def __init__(self, inner: Engine) -> None:
        self.inner = inner
        self.calls: list[int] = []

    def vectors(self, batch: Pixels) -> EngineVectors:
        self.calls.append(len(batch))
        return self.inner.vectors(batch)


class Shelf:
    """Images in memory, handed out as the fetcher does, counted."""

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


def network(name: str, channels: int, grid: int, preparation: Preparation) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(channels)
        module = nn.Sequential(nn.Conv2d(3, channels, 8, stride=8), nn.ReLU6()).eval()
    backbone = Backbone(name, channels, grid, preparation, f"{name}-0", module)
    return Network(backbone, TorchEngine(backbone))


@pytest.fixture(scope="module")
def tiny() -> Network:
    return network("tiny", 8, 4, SMALL)


@pytest.fixture(scope="module")
def both(tiny: Network) -> list[Network]:
    """Two networks that are shown images of other sizes."""
    return [tiny, network("tinier", 5, 3, SMALLER)]


def counted(tiny: Network) -> tuple[Network, Counting]:
    engine = Counting(tiny.engine)
    return Network(tiny.backbone, engine), engine


def expected(tiny: Network, data: bytes, *, augmentation: int = PLAIN) -> Vectors:
    """One image, by hand."""
    image, preparation = Image.open(io.BytesIO(data)), tiny.backbone.preparation
    if augmentation > MIRRORED:
        pixels = crop(image, preparation, augmentation, hashlib.sha256(data).hexdigest())
    else:
        whole = prepare(image, preparation)
        pixels = whole[..., ::-1] if augmentation == MIRRORED else whole
    vector: Vectors = tiny.engine.vectors(pixels[None])[0].astype(np.float16)
    return vector


def assert_close(found: Any, right: Vectors) -> None:
    """Equal up to float16's last digits: batches of other sizes may round otherwise."""
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, right, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 200])
def test_every_item_gets_its_own_vector_in_order(count: int, tiny: Network) -> None:
    source = shelf(count)
    found = FeatureExtractor(source, [tiny]).vectors(items(count))
    assert len(found) == count
    for i, vector in enumerate(found):
        assert_close(vector, expected(tiny, source.blobs[f"{i}.png"]))


def test_pictures_are_inferred_in_true_batches(tiny: Network) -> None:
    net, engine = counted(tiny)
    FeatureExtractor(shelf(100), [net]).vectors(items(100))
    assert sum(engine.calls) == 100
    assert all(8 <= size <= 32 for size in engine.calls[:-1])  # what is left may be fewer


def test_the_fetcher_learns_the_task(tiny: Network) -> None:
    source = shelf(3)
    FeatureExtractor(source, [tiny]).vectors([("0.png", 17), ("1.png", None)])
    assert source.tasks == {"0.png": 17, "1.png": None}


def test_mirrored_vectors_are_those_of_the_flipped_image(tiny: Network) -> None:
    source = shelf(2)
    extractor = FeatureExtractor(source, [tiny])
    for i, vector in enumerate(extractor.vectors(items(2), augmentation=MIRRORED)):
        assert_close(vector, expected(tiny, source.blobs[f"{i}.png"], augmentation=MIRRORED))


def test_an_image_costs_one_fetch_and_one_decoding_for_all_networks_and_augmentations(
    both: list[Network], tmp_path: Path
) -> None:
    decoded: Counter[bytes] = Counter()

    class Counted(InProcessDecoder):
        def decode(self, data: bytes, **how: Any) -> Image.Image:
            decoded[data] += 1
            return super().decode(data, **how)

        def planes(self, data: bytes, fits: Sequence[Fit], **how: Any) -> list[bytes]:
            decoded[data] += 1
            return super().planes(data, fits, **how)

    source = shelf(40)
    extractor = FeatureExtractor(source, both, decode=Counted(), **caches(tmp_path))
    keys = ensured(extractor, 40, LEARNT_FROM)
    assert set(source.fetched.values()) == set(decoded.values()) == {1}
    assert len(source.fetched) == len(decoded) == 40
    for augmentation in LEARNT_FROM:
        found = extractor.read(items(40), keys, augmentation=augmentation)
        for i, vector in enumerate(found):
            own = [expected(one, png(i), augmentation=augmentation) for one in both]
            assert_close(vector, np.concatenate(own))
    assert set(source.fetched.values()) == {1}


def test_only_augmentations_that_are_missing_are_inferred(tiny: Network, tmp_path: Path) -> None:
    net, engine = counted(tiny)
    extractor = FeatureExtractor(shelf(5), [net], **caches(tmp_path))
    extractor.vectors(items(5))
    assert sum(engine.calls) == 5
    for _ in range(2):
        ensured(extractor, 5, (PLAIN, MIRRORED, 2))
        assert sum(engine.calls) == 15


def test_several_networks_stand_side_by_side(both: list[Network], tmp_path: Path) -> None:
    extractor = FeatureExtractor(shelf(40), both, **caches(tmp_path))
    assert (extractor.name, extractor.channels) == ("tiny+tinier", 13)
    assert extractor.fingerprint == "tiny-0+tinier-0"
    for found in (extractor.vectors(items(40)), extractor.vectors(items(40))):
        for i, vector in enumerate(found):
            assert_close(vector, np.concatenate([expected(one, png(i)) for one in both]))


def test_a_network_that_joins_costs_its_own_vectors_only(
    both: list[Network], tmp_path: Path
) -> None:
    (first, first_engine), (second, second_engine) = map(counted, both)
    FeatureExtractor(shelf(6), [first], **caches(tmp_path)).vectors(items(6))
    found = FeatureExtractor(shelf(6), [second, first], **caches(tmp_path)).vectors(items(6))
    assert (sum(first_engine.calls), sum(second_engine.calls)) == (6, 6)
    for i, vector in enumerate(found):
        assert_close(vector, np.concatenate([expected(one, png(i)) for one in both[::-1]]))


def caches(root: Path) -> dict[str, Any]:
    return {
        "cache": FeatureCache(root),
        "index": ReferenceIndex(root / "index"),
    }


def test_the_second_time_nothing_is_fetched_or_inferred(tiny: Network, tmp_path: Path) -> None:
    source, (net, engine) = shelf(20), counted(tiny)
    extractor = FeatureExtractor(source, [net], **caches(tmp_path))
    first = extractor.vectors(items(20))
    source.fetched.clear()
    engine.calls.clear()
    second = FeatureExtractor(source, [net], **caches(tmp_path)).vectors(items(20))
    assert not source.fetched
    assert not engine.calls
    for one, other in zip(first, second, strict=True):
        assert isinstance(one, np.ndarray)
        np.testing.assert_array_equal(one, other)


def test_only_what_is_missing_is_inferred(tiny: Network, tmp_path: Path) -> None:
    source, (net, engine) = shelf(20), counted(tiny)
    extractor = FeatureExtractor(source, [net], **caches(tmp_path))
    extractor.vectors(items(12))
    engine.calls.clear()
    found = extractor.vectors(items(20))
    assert sum(engine.calls) == 8
    for i, vector in enumerate(found):
        assert_close(vector, expected(tiny, source.blobs[f"{i}.png"]))


def test_a_picture_known_under_another_reference_is_not_inferred(
    tiny: Network, tmp_path: Path
) -> None:
    source, (net, engine) = shelf(1), counted(tiny)
    source.blobs["copy.png"] = source.blobs["0.png"]
    extractor = FeatureExtractor(source, [net], **caches(tmp_path))
    extractor.vectors([("0.png", None)])
    extractor.vectors([("copy.png", None)])
    assert engine.calls == [1]


def test_one_augmentation_in_the_cache_is_not_both(tiny: Network, tmp_path: Path) -> None:
    source = shelf(3)
    extractor = FeatureExtractor(source, [tiny], **caches(tmp_path))
    extractor.vectors(items(3))
    for i, vector in enumerate(extractor.vectors(items(3), augmentation=MIRRORED)):
        assert_close(vector, expected(tiny, source.blobs[f"{i}.png"], augmentation=MIRRORED))


def test_pruned_features_are_fetched_again(tiny: Network, tmp_path: Path) -> None:
    source, parts = shelf(3), caches(tmp_path)
    extractor = FeatureExtractor(source, [tiny], **parts)
    extractor.vectors(items(3))
    parts["cache"].prune(0)
    assert all(isinstance(one, np.ndarray) for one in extractor.vectors(items(3)))
    assert set(source.fetched.values()) == {2}


def test_an_old_reference_is_fetched_again_and_may_have_changed(
    tiny: Network, tmp_path: Path
) -> None:
    source = shelf(2)
    extractor = FeatureExtractor(source, [tiny], max_age_s=-1, **caches(tmp_path))
    extractor.vectors([("0.png", None)])
    source.blobs["0.png"] = source.blobs["1.png"]
    (found,) = extractor.vectors([("0.png", None)])
    assert_close(found, expected(tiny, source.blobs["1.png"]))


def test_bad_pictures_cost_themselves_only(tiny: Network) -> None:
    source = shelf(50)
    whole = source.blobs["7.png"]
    source.blobs |= {"7.png": whole[: len(whole) // 2], "8.png": b"<html>", "9.png": b""}
    del source.blobs["10.png"]
    for i, found in enumerate(FeatureExtractor(source, [tiny]).vectors(items(50))):
        if i in {7, 8, 9, 10}:
            assert isinstance(found, ImageError)
            assert found.reason
        else:
            assert_close(found, expected(tiny, source.blobs[f"{i}.png"]))


def test_limits_are_kept(tiny: Network) -> None:
    extractor = FeatureExtractor(shelf(1), [tiny], limits=ImageLimits(max_pixels=100))
    (found,) = extractor.vectors(items(1))
    assert isinstance(found, ImageError)
    assert "pixels" in found.reason


def test_an_error_of_ours_is_not_hidden(tiny: Network) -> None:
    def fetch(ref: str, task_id: int | None) -> FetchedImage:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        FeatureExtractor(fetch, [tiny]).vectors(items(5))


def test_progress_counts_up_to_all(tiny: Network) -> None:
    steps: list[tuple[int, int]] = []
    source = shelf(40)
    del source.blobs["3.png"]
    FeatureExtractor(source, [tiny]).vectors(
        items(40), progress=lambda n, of: steps.append((n, of))
    )
    assert steps == [(n, 40) for n in range(1, 41)]


def test_a_stream_gives_each_position_once(tiny: Network) -> None:
    positions = [position for position, _ in FeatureExtractor(shelf(70), [tiny]).stream(items(70))]
    assert sorted(positions) == list(range(70))


def test_a_stream_runs_only_a_little_ahead(tiny: Network) -> None:
    """Ten thousand items; after the first result, at most the window has been fetched."""
    source = shelf(4)
    many = [(f"{i % 4}.png", None) for i in range(10_000)]
    stream = FeatureExtractor(source, [tiny]).stream(many)
    next(stream)
    stream.close()
    assert sum(source.fetched.values()) <= 256


def test_leaving_a_stream_leaves_no_thread_behind(tiny: Network) -> None:
    for _ in FeatureExtractor(shelf(60), [tiny]).stream(items(60)):
        break
    assert not [thread for thread in threading.enumerate() if "prefetch" in thread.name]


def test_fetching_goes_on_while_the_engine_runs(tiny: Network) -> None:
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

        def vectors(self, batch: Pixels) -> EngineVectors:
            if self.overlapped is None:
                self.overlapped = later.wait(timeout=20)
            return tiny.engine.vectors(batch)

    engine = Slow()
    FeatureExtractor(fetch, [Network(tiny.backbone, engine)], threads=1).vectors(items(100))
    assert engine.overlapped


def test_one_slow_picture_does_not_hold_up_the_others(tiny: Network) -> None:
    source = shelf(80)
    release = threading.Event()

    def fetch(ref: str, task_id: int | None) -> FetchedImage:
        if ref == "0.png":
            assert release.wait(timeout=20)
        return source(ref, task_id)

    seen = []
    for position, _ in FeatureExtractor(fetch, [tiny]).stream(items(80)):
        seen.append(position)
        release.set()
    assert seen[0] != 0
    assert 0 in seen


def test_requests_may_share_an_extractor(tiny: Network, tmp_path: Path) -> None:
    source = shelf(40)
    extractor = FeatureExtractor(source, [tiny], threads=3, **caches(tmp_path))
    right = [expected(tiny, source.blobs[f"{i}.png"]) for i in range(40)]
    with ThreadPoolExecutor(6) as pool:
        for found in pool.map(extractor.vectors, [items(40)] * 6):
            for one, other in zip(found, right, strict=True):
                assert_close(one, other)


def test_a_cache_that_cannot_be_written_changes_nothing(tiny: Network, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    source = shelf(5)
    found = FeatureExtractor(source, [tiny], **caches(tmp_path / "file")).vectors(items(5))
    for i, vector in enumerate(found):
        assert_close(vector, expected(tiny, source.blobs[f"{i}.png"]))


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
        thread.join(60)


def test_photos_over_http_with_one_missing(shared: Path, photo_server: str) -> None:
    """Real fetcher, real photos, real backbone: only the missing one has no features."""
    backbone = load_backbone()
    folder = shared / "data/grocery/train/Fruit"
    files = [*sorted(folder.glob("Banana/*.jpg"))[:6], *sorted(folder.glob("Lemon/*.jpg"))[:6]]
    refs: list[Item] = [(f"{photo_server}/{f.relative_to(folder)}", None) for f in files]
    refs.insert(5, (f"{photo_server}/Banana/none.jpg", None))
    with ImageFetcher(None, None, ImageLimits(), allow_private=True) as fetcher:
        extractor = FeatureExtractor(
            lambda ref, task: fetcher.fetch(ref, task_id=task),
            [Network(backbone, OpenVINOEngine(backbone))],
        )
        found = extractor.vectors(refs)
    missing = found.pop(5)
    assert isinstance(missing, ImageError)
    assert "404" in missing.reason
    right = TorchEngine(backbone).vectors(
        np.stack([prepare(Image.open(file), backbone.preparation) for file in files])
    )
    for vector, one in zip(found, right, strict=True):
        assert isinstance(vector, np.ndarray)
        assert np.linalg.norm(vector - one) < 0.01 * np.linalg.norm(one)


def test_an_image_at_hand_has_the_vector_it_would_have_by_its_address(
    tiny: Network, tmp_path: Path
) -> None:
    net, counting = counted(tiny)
    extractor = FeatureExtractor(shelf(2), [net], cache=FeatureCache(tmp_path))
    (known,) = extractor.vectors([("0.png", None)])
    held = [FetchedImage(hashlib.sha256(png(seed)).hexdigest(), png(seed)) for seed in (0, 1)]
    np.testing.assert_array_equal(extractor.vectors_of_image(held[0]), known)
    assert counting.calls == [1]  # the cache had it
    fresh = extractor.vectors_of_image(held[1])
    assert counting.calls == [1, 1]
    np.testing.assert_array_equal(fresh, extractor.vectors([("1.png", None)])[0])
    assert counting.calls == [1, 1]


def test_a_file_at_hand_that_is_no_image_is_told(tiny: Network) -> None:
    extractor = FeatureExtractor(shelf(0), [tiny])
    with pytest.raises(ImageError):
        extractor.vectors_of_image(FetchedImage("0" * 64, b"no picture"))


def test_an_image_is_prepared_for_each_network(both: list[Network]) -> None:
    picture = FetchedImage(hashlib.sha256(png(3)).hexdigest(), png(3))
    found = FeatureExtractor(shelf(0), both).prepared(picture)
    for pixels, one in zip(found, both, strict=True):
        image = Image.open(io.BytesIO(png(3)))
        np.testing.assert_array_equal(pixels, prepare(image, one.backbone.preparation))


def test_loaded_images_are_inferred_in_order(both: list[Network], tmp_path: Path) -> None:
    extractor = FeatureExtractor(shelf(4), both, **caches(tmp_path))
    extractor.vectors(items(2))
    loaded = extractor.load([*items(4), ("gone.png", None)])
    assert isinstance(loaded.pop(), ImageError)
    found = extractor.infer([one for one in loaded if not isinstance(one, ImageError)])
    for i, vector in enumerate(found):
        assert_close(vector, np.concatenate([expected(one, png(i)) for one in both]))
    assert extractor.infer([]).shape == (0, 13)


def ensured(extractor: FeatureExtractor, count: int, augmentations: tuple[int, ...]) -> list[str]:
    found = dict(extractor.ensure(items(count), augmentations))
    keys = [found[at] for at in range(count)]
    assert not any(isinstance(one, ImageError) for one in keys)
    return [str(one) for one in keys]


def test_ensuring_fills_the_cache_once_and_then_reads_no_vector(
    tiny: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (net, counting), kinds = counted(tiny), (PLAIN, MIRRORED, 2)
    keys = ensured(FeatureExtractor(shelf(5), [net], **caches(tmp_path)), 5, kinds)
    assert keys == [hashlib.sha256(png(seed)).hexdigest() for seed in range(5)]
    assert sum(counting.calls) == 15
    parts = caches(tmp_path)
    monkeypatch.setattr(parts["cache"], "read", lambda *_, **__: pytest.fail("read"))
    assert ensured(FeatureExtractor(shelf(5), [net], **parts), 5, kinds) == keys
    assert sum(counting.calls) == 15


@pytest.mark.parametrize("augmentation", [PLAIN, MIRRORED])
def test_what_was_ensured_is_read_in_bulk_as_one_by_one(
    tiny: Network, tmp_path: Path, augmentation: int
) -> None:
    net, counting = counted(tiny)
    extractor = FeatureExtractor(shelf(4), [net], **caches(tmp_path))
    keys = ensured(extractor, 4, (PLAIN, MIRRORED))
    passes, order = sum(counting.calls), [2, 0, 3]
    some, names = [items(4)[at] for at in order], [keys[at] for at in order]
    vectors = extractor.read(some, names, augmentation=augmentation)
    for at, one in zip(order, vectors, strict=True):
        whole = extractor.vectors(items(4), augmentation=augmentation)
        np.testing.assert_array_equal(one, whole[at])
    assert sum(counting.calls) == passes


def test_what_was_pruned_after_it_was_ensured_is_had_again(tiny: Network, tmp_path: Path) -> None:
    (net, counting), parts = counted(tiny), caches(tmp_path)
    extractor = FeatureExtractor(shelf(3), [net], **parts)
    keys = ensured(extractor, 3, (PLAIN,))
    vectors = extractor.read(items(3), keys)
    parts["cache"].prune(0)
    np.testing.assert_allclose(extractor.read(items(3), keys), vectors, atol=2e-3)
    assert sum(counting.calls) == 6


def test_without_a_cache_what_was_ensured_is_made_again(tiny: Network) -> None:
    extractor = FeatureExtractor(shelf(2), [tiny])
    keys = ensured(extractor, 2, (PLAIN,))
    assert_close(extractor.read(items(2), keys)[1], expected(tiny, png(1)))


def test_ensuring_tells_of_what_cannot_be_had(tiny: Network, tmp_path: Path) -> None:
    extractor = FeatureExtractor(shelf(1), [tiny], **caches(tmp_path))
    found = dict(extractor.ensure([("0.png", None), ("gone.png", None)], (PLAIN,)))
    assert isinstance(found[0], str)
    assert isinstance(found[1], ImageError)
    with pytest.raises(ImageError):
        extractor.read([("gone.png", None)], ["0" * 64])
