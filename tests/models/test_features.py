"""Pictures are prepared as in training, and the caches lose nothing but time."""

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from torchvision.transforms.v2 import functional as tv  # type: ignore[import-untyped]

from models.backbone import Preparation, load_backbone
from models.engine import TorchEngine
from models.features import FeatureCache, ReferenceIndex, as_kept, prepare
from models.views import MIRRORED

A, B, C = (hashlib.sha256(name).hexdigest() for name in (b"a", b"b", b"c"))
HOUR = 3600.0


def some_maps(seed: int = 0) -> npt.NDArray[np.float32]:
    """Like a ReLU6's: mostly zero, at most 6."""
    values = np.random.default_rng(seed).normal(-3, 3, (16, 3, 3))
    return np.clip(values, 0, 6).astype(np.float32)


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def torchvision(image: Image.Image, p: Preparation) -> npt.NDArray[np.uint8]:
    filter_ = tv.InterpolationMode(p.interpolation)
    resized = tv.resize(image, [p.resize], interpolation=filter_)
    return np.asarray(tv.center_crop(resized, [p.crop])).transpose(2, 0, 1)


@pytest.mark.parametrize(
    "size", [(348, 348), (640, 427), (427, 641), (256, 256), (31, 45), (1, 1), (900, 120)]
)
@pytest.mark.parametrize(
    "preparation", [Preparation(), Preparation(292, 261, interpolation="bilinear")]
)
def test_preparing_equals_torchvision(size: tuple[int, int], preparation: Preparation) -> None:
    image = picture(*size)
    found = prepare(image, preparation)
    assert found.shape == (3, preparation.crop, preparation.crop)
    np.testing.assert_array_equal(found, torchvision(image, preparation))


def test_preparing_a_photo_equals_torchvision(shared: Path) -> None:
    file = min((shared / "data/grocery/train/Fruit/Banana").glob("*.jpg"))
    image = Image.open(file).convert("RGB")
    np.testing.assert_array_equal(prepare(image, Preparation()), torchvision(image, Preparation()))


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (3000, 7)])
def test_a_strip_takes_no_more_memory_than_others(size: tuple[int, int]) -> None:
    """Resized as it is, 20,000 x 1 would become 5 million x 256 pixels: 3.9 GB."""
    found = prepare(Image.new("RGB", size, (10, 20, 30)), Preparation())
    assert found.reshape(3, -1).tolist() == [[value] * 224**2 for value in (10, 20, 30)]


def test_grey_becomes_three_channels() -> None:
    found = prepare(Image.new("L", (50, 40), 7), Preparation())
    assert found.shape == (3, 224, 224)
    assert (found == 7).all()


values = arrays(
    np.float32,
    array_shapes(min_dims=3, max_dims=3, max_side=5),
    elements=st.floats(-100, 100, width=32),
)


@settings(deadline=None)
@given(values)
def test_keeping_errs_by_half_a_step_at_most(maps: npt.NDArray[np.float32]) -> None:
    step = (float(maps.max()) - float(maps.min())) / 255
    half_precision = np.abs(maps).max() * 2.0**-11  # the answer is float16
    found = as_kept(maps)
    assert found.dtype == np.float16
    assert np.abs(found - maps.astype(np.float64)).max() <= step / 2 + 1.01 * half_precision + 1e-6


@settings(deadline=None)
@given(values)
def test_keeping_again_changes_nothing_that_matters(maps: npt.NDArray[np.float32]) -> None:
    once = as_kept(maps)
    step = (float(maps.max()) - float(maps.min())) / 255
    twice = as_kept(once).astype(np.float64)
    assert np.abs(twice - once).max() <= step / 2 + np.abs(maps).max() * 2.0**-10 + 1e-6


@settings(deadline=None)
@given(arrays(np.float32, (2, 2, 2), elements=st.floats(allow_nan=False, width=32)))
@example(np.full((1, 1, 2), [-3e38, 3e38], np.float32))
@example(np.full((1, 1, 2), [1, np.inf], np.float32))
def test_no_number_fails(maps: npt.NDArray[np.float32]) -> None:
    found = as_kept(maps).astype(np.float64)
    if np.isfinite(maps).all():
        cut = np.clip(maps, -65504.0, 65504.0)
        assert np.abs(found - cut).max() <= float(np.ptp(cut)) / 510 + 33
    else:
        assert not np.isfinite(found).all()


def test_zero_stays_zero_and_order_stays() -> None:
    maps = some_maps()
    found = as_kept(maps)
    assert (found[maps == 0] == 0).all()
    assert (np.diff(found.reshape(-1)[np.argsort(maps.reshape(-1))]) >= 0).all()


def test_photos_features_lose_less_than_bfloat16_would(shared: Path) -> None:
    """Largest error below bfloat16's own rounding; 0.5 % of a map's length."""
    backbone = load_backbone()
    files = sorted((shared / "data/grocery/train/Fruit/Lemon").glob("*.jpg"))[:4]
    pixels = np.stack([prepare(Image.open(f), backbone.preparation) for f in files])
    for maps in TorchEngine(backbone).maps(pixels):
        error = as_kept(maps).astype(np.float32) - maps
        rounding = torch.from_numpy(maps).bfloat16().float().numpy() - maps
        assert np.abs(error).max() < np.abs(rounding).max()
        assert np.linalg.norm(error) < 0.005 * np.linalg.norm(maps)


def test_what_is_put_is_got(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "net-1")
    put = cache.put(A, some_maps())
    got = FeatureCache(tmp_path, "net-1").get(A)
    assert got is not None
    np.testing.assert_array_equal(got, put)
    np.testing.assert_array_equal(got, as_kept(some_maps()))


def test_pictures_views_and_backbones_are_kept_apart(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "net-1")
    plain, mirrored, other = (as_kept(some_maps(seed)) for seed in range(3))
    cache.put(A, some_maps(0))
    cache.put(A, some_maps(1), view=MIRRORED)
    cache.put(B, some_maps(2))
    for found, expected in (
        (cache.get(A), plain),
        (cache.get(A, view=MIRRORED), mirrored),
        (cache.get(B), other),
    ):
        assert found is not None
        np.testing.assert_array_equal(found, expected)
    assert cache.get(B, view=MIRRORED) is None
    assert FeatureCache(tmp_path, "net-2").get(A) is None


@pytest.mark.parametrize("damage", ["cut", "empty", "changed", "other"])
def test_a_damaged_file_counts_as_missing_and_is_removed(damage: str, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "net")
    cache.put(A, some_maps())
    (path,) = tmp_path.rglob("*.safetensors")
    data = path.read_bytes()
    content = {
        "cut": data[:-1],
        "empty": b"",
        # One step of the map is another one: the file is still a valid safetensors file.
        "changed": data.replace(
            np.rint(some_maps()[0, 0] / 6 * 255).astype(np.uint8).tobytes(), b"\1\2\3"
        ),
        "other": b"\x02\0\0\0\0\0\0\0{}",
    }[damage]
    assert content != data
    path.write_bytes(content)
    assert cache.get(A) is None
    assert not path.exists()


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_a_changed_file_is_missing_or_still_right(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("cache")
    cache = FeatureCache(root, "net")
    put = cache.put(A, some_maps())
    (path,) = root.rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    found = cache.get(A)
    assert found is None or np.array_equal(found, put)


def test_maps_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "net")
    maps = some_maps()
    maps[0, 0, 0] = np.inf
    assert cache.put(A, maps)[0, 0, 0] == np.inf
    assert cache.get(A) is None


def test_a_folder_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = FeatureCache(tmp_path / "file" / "cache", "net")
    for digest in (A, B):
        np.testing.assert_array_equal(cache.put(digest, some_maps()), as_kept(some_maps()))
        assert cache.get(digest) is None
    assert cache.prune(0) == 0
    assert caplog.text.count("feature cache does not work") == 1


def test_a_full_disk_fails_nobody_and_leaves_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    cache = FeatureCache(tmp_path, "net")
    (tmp_path / "net" / A[:2]).mkdir(parents=True)
    np.testing.assert_array_equal(cache.put(A, some_maps()), as_kept(some_maps()))
    assert "No space left" in caplog.text
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", A.upper(), A + "0"])
def test_only_digests_become_file_names(digest: str, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "net")
    with pytest.raises(ValueError, match="expected a SHA-256"):
        cache.get(digest)
    with pytest.raises(ValueError, match="expected a SHA-256"):
        cache.put(digest, some_maps())


@pytest.mark.parametrize("fingerprint", ["", "..", ".hidden", "a/b"])
def test_only_fingerprints_become_folder_names(fingerprint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a fingerprint"):
        FeatureCache(tmp_path, fingerprint)


def age(root: Path, digest: str, seconds: float) -> None:
    (path,) = root.rglob(f"{digest}*")
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_pruning_removes_the_least_recently_used(tmp_path: Path) -> None:
    old, new = FeatureCache(tmp_path, "old-net"), FeatureCache(tmp_path, "new-net")
    old.put(A, some_maps())
    new.put(B, some_maps())
    new.put(C, some_maps())
    for digest, hours in ((A, 9), (B, 10), (C, 8)):
        age(tmp_path, digest, hours * HOUR)
    assert new.get(B) is not None  # used now
    size = new.size()
    assert size.files == 3
    one = size.nbytes // 3
    assert new.prune(2 * one) == one
    assert old.get(A) is None
    assert new.prune(one) == one
    assert new.get(C) is None
    assert new.get(B) is not None


def test_pruning_below_the_limit_removes_nothing(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "net")
    cache.put(A, some_maps())
    assert cache.prune(cache.size().nbytes) == 0
    assert cache.size().files == 1


def test_pruning_clears_up_after_killed_processes(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "net")
    cache.put(A, some_maps())
    folder = tmp_path / "net" / A[:2]
    for name, hours in ((".dead.part", 2), (".alive.part", 0)):
        (folder / name).write_bytes(b"half")
        then = time.time() - hours * HOUR
        os.utime(folder / name, (then, then))
    cache.prune(10**9)
    assert not (folder / ".dead.part").exists()
    assert (folder / ".alive.part").exists()
    assert cache.get(A) is not None


def test_an_absent_folder_is_an_empty_cache(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "none", "net")
    assert (cache.get(A), cache.size().files, cache.prune(0)) == (None, 0, 0)
    assert not (tmp_path / "none").exists()


def test_writers_and_readers_at_once_see_whole_files(tmp_path: Path) -> None:
    both = {as_kept(some_maps(seed)).tobytes() for seed in (0, 1)}

    def work(turn: int) -> bytes | None:
        cache = FeatureCache(tmp_path, "net")
        cache.put(A, some_maps(turn % 2))
        found = cache.get(A)
        return found.tobytes() if found is not None else None

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(work, range(200))) <= both


def test_two_thousand_features_are_read_in_seconds(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "net")
    maps = np.clip(np.random.default_rng(0).normal(-3, 3, (1280, 7, 7)), 0, 6)
    digests = [hashlib.sha256(bytes([i])).hexdigest() for i in range(200)]
    for digest in digests:
        cache.put(digest, maps)
    start = time.perf_counter()
    assert all(cache.get(digest) is not None for digest in digests for _ in range(10))
    assert time.perf_counter() - start < 10  # 0.5 s on two idle cores


def test_a_reference_is_known_after_it_was_seen(tmp_path: Path) -> None:
    index = ReferenceIndex(tmp_path)
    assert index.known("s3://bucket/a.jpg", HOUR) is None
    index.remember("s3://bucket/a.jpg", A)
    assert ReferenceIndex(tmp_path).known("s3://bucket/a.jpg", HOUR) == A
    assert index.known("s3://bucket/b.jpg", HOUR) is None


def test_a_reference_is_forgotten_after_its_time(tmp_path: Path) -> None:
    index = ReferenceIndex(tmp_path)
    index.remember("/data/a.jpg", A)
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    then = time.time() - 2 * HOUR
    os.utime(path, (then, then))
    assert index.known("/data/a.jpg", HOUR) is None
    assert index.known("/data/a.jpg", 3 * HOUR) == A


def test_seeing_a_reference_again_renews_it(tmp_path: Path) -> None:
    index = ReferenceIndex(tmp_path)
    index.remember("/data/a.jpg", A)
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    os.utime(path, (1, 1))
    index.remember("/data/a.jpg", B)
    assert index.known("/data/a.jpg", HOUR) == B


@pytest.mark.parametrize("content", [b"", b"half", b"\xff\xfe", A.encode() + b"\n"])
def test_a_damaged_entry_counts_as_unknown(content: bytes, tmp_path: Path) -> None:
    index = ReferenceIndex(tmp_path)
    index.remember("/data/a.jpg", A)
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    path.write_bytes(content)
    assert index.known("/data/a.jpg", HOUR) is None


def test_references_are_not_written_down(tmp_path: Path) -> None:
    ReferenceIndex(tmp_path).remember("https://host/a.jpg?signature=secret", A)
    stored = [(path.name, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(stored) == 1
    assert "secret" not in str(stored)


def test_odd_references_are_taken(tmp_path: Path) -> None:
    index = ReferenceIndex(tmp_path)
    for ref, digest in (("", A), ("ä/\0/../\ud800", B), ("x" * 10_000, C)):
        index.remember(ref, digest)
        assert index.known(ref, HOUR) == digest


def test_pruning_an_index_forgets_what_is_old(tmp_path: Path) -> None:
    index = ReferenceIndex(tmp_path)
    index.remember("old", A)
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    os.utime(path, (1, 1))
    index.remember("new", B)
    assert index.prune(HOUR) == 1
    assert index.known("old", 1e12) is None
    assert index.known("new", HOUR) == B


def test_an_index_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    index = ReferenceIndex(tmp_path / "file" / "index")
    for ref in ("a", "b"):
        index.remember(ref, A)
        assert index.known(ref, HOUR) is None
    assert caplog.text.count("reference index does not work") == 1
