"""Pictures are prepared as in training, and the caches lose nothing but time."""

import hashlib
import os
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from torchvision.transforms.v2 import functional as tv  # type: ignore[import-untyped]

from hierarchy.quantised import QuantisedMaps
from inference import segments
from inference.backbone import Preparation, load_backbone
from inference.engine import TorchEngine
from inference.features import FeatureCache, prepare
from inference.views import MIRRORED, PLAIN

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


def kept(maps: npt.NDArray[np.floating]) -> npt.NDArray[np.float16]:
    """One picture's maps as they come back."""
    (found,) = QuantisedMaps.of(maps[None]).restored()
    return np.asarray(found)


def put_in(
    cache: FeatureCache, digest: str, maps: npt.NDArray[np.floating], *, view: int = PLAIN
) -> npt.NDArray[np.float16]:
    """Keep one picture's maps; what they come back as."""
    (found,) = cache.put([(digest, view)], maps[None]).restored()
    return np.asarray(found)


def got_from(
    cache: FeatureCache, digest: str, *, view: int = PLAIN
) -> npt.NDArray[np.float16] | None:
    """One picture's maps."""
    found = cache.get(digest, view=view)
    return None if found is None else found.restored()[0]


def read_from(
    cache: FeatureCache, digests: list[str], *, view: int = PLAIN
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float16]]:
    """Which there are, and several pictures' maps."""
    found, maps = cache.maps(digests, view=view)
    return found, maps.restored()


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
    found = kept(maps)
    assert found.dtype == np.float16
    assert np.abs(found - maps.astype(np.float64)).max() <= step / 2 + 1.01 * half_precision + 1e-6


@settings(deadline=None)
@given(values)
def test_keeping_again_changes_nothing_that_matters(maps: npt.NDArray[np.float32]) -> None:
    once = kept(maps)
    step = (float(maps.max()) - float(maps.min())) / 255
    twice = kept(once).astype(np.float64)
    assert np.abs(twice - once).max() <= step / 2 + np.abs(maps).max() * 2.0**-10 + 1e-6


@settings(deadline=None)
@given(arrays(np.float32, (2, 2, 2), elements=st.floats(allow_nan=False, width=32)))
@example(np.full((1, 1, 2), [-3e38, 3e38], np.float32))
@example(np.full((1, 1, 2), [1, np.inf], np.float32))
def test_no_number_fails(maps: npt.NDArray[np.float32]) -> None:
    found = kept(maps).astype(np.float64)
    if np.isfinite(maps).all():
        cut = np.clip(maps, -65504.0, 65504.0)
        assert np.abs(found - cut).max() <= float(np.ptp(cut)) / 510 + 33
    else:
        assert not np.isfinite(found).all()


def test_zero_stays_zero_and_order_stays() -> None:
    maps = some_maps()
    found = kept(maps)
    assert (found[maps == 0] == 0).all()
    assert (np.diff(found.reshape(-1)[np.argsort(maps.reshape(-1))]) >= 0).all()


def test_photos_features_lose_less_than_bfloat16_would(shared: Path) -> None:
    """Largest error below bfloat16's own rounding; 0.5 % of a map's length."""
    backbone = load_backbone()
    files = sorted((shared / "data/grocery/train/Fruit/Lemon").glob("*.jpg"))[:4]
    pixels = np.stack([prepare(Image.open(f), backbone.preparation) for f in files])
    for maps in TorchEngine(backbone).maps(pixels):
        error = kept(maps).astype(np.float32) - maps
        rounding = torch.from_numpy(maps).bfloat16().float().numpy() - maps
        assert np.abs(error).max() < np.abs(rounding).max()
        assert np.linalg.norm(error) < 0.005 * np.linalg.norm(maps)


def test_what_is_put_is_got(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "net-1")
    put = put_in(cache, A, some_maps())
    got = got_from(FeatureCache(tmp_path, "net-1"), A)
    assert got is not None
    np.testing.assert_array_equal(got, put)
    np.testing.assert_array_equal(got, kept(some_maps()))


def test_pictures_views_and_backbones_are_kept_apart(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "net-1")
    plain, mirrored, other = (kept(some_maps(seed)) for seed in range(3))
    put_in(cache, A, some_maps(0))
    put_in(cache, A, some_maps(1), view=MIRRORED)
    put_in(cache, B, some_maps(2))
    for found, expected in (
        (got_from(cache, A), plain),
        (got_from(cache, A, view=MIRRORED), mirrored),
        (got_from(cache, B), other),
    ):
        assert found is not None
        np.testing.assert_array_equal(found, expected)
    assert cache.get(B, view=MIRRORED) is None
    assert FeatureCache(tmp_path, "net-2").get(A) is None


@pytest.mark.parametrize("suffix", [".maps", ".means", ".index"])
@pytest.mark.parametrize("damage", ["cut", "empty", "changed", "gone"])
def test_what_is_damaged_counts_as_missing_and_may_be_put_again(
    damage: str, suffix: str, tmp_path: Path
) -> None:
    put_in(FeatureCache(tmp_path, "net"), A, some_maps())
    (path,) = tmp_path.rglob(f"*{suffix}")
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        half = len(data) // 2
        changed = data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]
        path.write_bytes({"cut": data[:-1], "empty": b"", "changed": changed}[damage])
    cache = FeatureCache(tmp_path, "net")
    assert not (cache.maps([A])[0].all() and cache.means([A])[0].all())
    put = put_in(cache, A, some_maps())
    assert cache.maps([A])[0].all()
    assert cache.means([A])[0].all()
    got = got_from(FeatureCache(tmp_path, "net"), A)
    assert got is not None
    np.testing.assert_array_equal(got, put)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_a_changed_file_is_missing_or_still_right(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("cache")
    put = put_in(FeatureCache(root, "net"), A, some_maps())
    path = data.draw(st.sampled_from(sorted(root.rglob("*.*"))))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    cache = FeatureCache(root, "net")
    found = got_from(cache, A)
    assert found is None or np.array_equal(found, put)
    there, means = cache.means([A])
    assert not there[0] or np.allclose(means[0], put.mean(axis=(1, 2), dtype=np.float32), atol=2e-3)


def test_damage_drops_one_row_and_leaves_its_neighbours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = FeatureCache(tmp_path, "net")
    for seed, digest in enumerate((A, B, C)):
        put_in(cache, digest, some_maps(seed))
    (path,) = tmp_path.rglob("*.maps")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found, maps = read_from(cache, [C, A, B])
    assert found.tolist() == [True, True, False]
    np.testing.assert_array_equal(maps[0], kept(some_maps(2)))
    assert "damaged" in caplog.text
    assert not cache.holds([B])[0]
    assert not FeatureCache(tmp_path, "net").holds([B])[0]  # for everyone


def test_maps_and_means_are_read_in_bulk_in_the_order_asked_for(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "net")
    put = {digest: put_in(cache, digest, some_maps(seed)) for seed, digest in enumerate((A, B))}
    found, maps = read_from(cache, [B, C, A, B])
    assert found.tolist() == [True, False, True, True]
    for at, digest in ((0, B), (2, A), (3, B)):
        np.testing.assert_array_equal(maps[at], put[digest])
    there, means = cache.means([B, C, A, B])
    assert there.tolist() == [True, False, True, True]
    for at, digest in ((0, B), (2, A), (3, B)):
        expected = put[digest].mean(axis=(1, 2), dtype=np.float64)
        np.testing.assert_allclose(means[at], expected, atol=2e-3)


def test_pictures_whose_digests_begin_alike_are_not_taken_for_each_other(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "net")
    one, other = "ab" * 8 + "0" * 48, "ab" * 8 + "1" * 48
    put = put_in(cache, one, some_maps(0))
    assert cache.get(other) is None
    got = got_from(cache, one)
    assert got is not None
    np.testing.assert_array_equal(got, put)


def test_means_are_had_without_reading_a_map(tmp_path: Path) -> None:
    put_in(FeatureCache(tmp_path, "net"), A, some_maps())
    (path,) = tmp_path.rglob("*.maps")
    path.write_bytes(b"")
    assert FeatureCache(tmp_path, "net").means([A])[0].all()


def test_one_picture_by_two_ways_is_one_row(tmp_path: Path) -> None:
    one, other = FeatureCache(tmp_path, "net"), FeatureCache(tmp_path, "net")
    first = put_in(one, A, some_maps(0))
    np.testing.assert_array_equal(put_in(other, A, some_maps(1)), first)
    assert one.size().maps == 1


WRITER = """
import hashlib, sys
from pathlib import Path
import numpy as np
from inference.features import FeatureCache
cache = FeatureCache(Path(sys.argv[1]), "net")
for number in range(int(sys.argv[2]), int(sys.argv[3])):
    maps = np.full((1, 16, 20, 20), number % 250, np.float32)
    cache.put([(hashlib.sha256(b"%d" % number).hexdigest(), 0)], maps)
    print(number, flush=True)
"""


def digest_of(number: int) -> str:
    return hashlib.sha256(b"%d" % number).hexdigest()


def writer(root: Path, first: int, last: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WRITER, str(root), str(first), str(last)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def numbered(cache: FeatureCache, count: int) -> list[float | None]:
    found = [got_from(cache, digest_of(number)) for number in range(count)]
    return [None if maps is None else float(maps.max()) for maps in found]


@pytest.mark.parametrize("told", [1, 5, 40])
def test_a_process_killed_while_writing_loses_nothing_that_it_had_written(
    told: int, tmp_path: Path
) -> None:
    with writer(tmp_path, 0, 1_000_000) as killed:
        assert killed.stdout is not None
        for _ in range(told):
            last = int(killed.stdout.readline())
        killed.kill()
    cache = FeatureCache(tmp_path, "net")
    assert numbered(cache, last + 1) == [number % 250 for number in range(last + 1)]
    put_in(cache, A, some_maps())  # goes on where it left off, if of that shape
    more = np.full((16, 20, 20), 7, np.float32)
    put_in(cache, B, more)
    assert numbered(FeatureCache(tmp_path, "net"), last + 1)[-1] == last % 250
    np.testing.assert_array_equal(read_from(FeatureCache(tmp_path, "net"), [B])[1][0], kept(more))
    (index,) = (path for path in tmp_path.rglob("*.index") if path.stat().st_size > 64 * (last + 2))
    assert index.with_suffix(".maps").stat().st_size % (16 * 20 * 20) == 0


def test_a_row_cut_short_by_a_kill_is_written_over(tmp_path: Path) -> None:
    first = FeatureCache(tmp_path, "net")
    put_in(first, A, some_maps(0))
    del first  # its lock goes with it
    for path in tmp_path.rglob("*.*"):
        with path.open("ab") as file:
            file.write(b"half")
    cache = FeatureCache(tmp_path, "net")
    put = put_in(cache, B, some_maps(1))
    again = FeatureCache(tmp_path, "net")
    assert len(list(tmp_path.rglob("*.index"))) == 1
    assert again.holds([A, B]).all()
    np.testing.assert_array_equal(read_from(again, [B])[1][0], put)
    np.testing.assert_array_equal(read_from(again, [A])[1][0], kept(some_maps(0)))


def test_processes_that_write_at_once_each_have_a_segment(tmp_path: Path) -> None:
    reader = FeatureCache(tmp_path, "net")
    assert not reader.holds([digest_of(0)])[0]
    with writer(tmp_path, 0, 60) as one, writer(tmp_path, 40, 100) as other:
        one.communicate()
        other.communicate()
    assert (one.returncode, other.returncode) == (0, 0)
    assert numbered(reader, 100) == [number % 250 for number in range(100)]
    assert 1 <= len(list(tmp_path.rglob("*.index"))) <= 2


def test_a_child_does_not_write_into_its_parents_segment(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "net")
    put_in(cache, A, some_maps(0))
    child = os.fork()
    if child == 0:
        try:
            put_in(cache, B, some_maps(1))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    put_in(cache, C, some_maps(2))
    found, maps = read_from(FeatureCache(tmp_path, "net"), [A, B, C])
    assert found.all()
    for seed in range(3):
        np.testing.assert_array_equal(maps[seed], kept(some_maps(seed)))
    assert len(list(tmp_path.rglob("*.index"))) == 2


def test_a_writer_goes_on_when_its_segment_was_pruned(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "net")
    put_in(cache, A, some_maps())
    FeatureCache(tmp_path, "any").prune(0)
    assert not cache.holds([A])[0]
    put = put_in(cache, A, some_maps())
    got = got_from(FeatureCache(tmp_path, "net"), A)
    assert got is not None
    np.testing.assert_array_equal(got, put)


def write_former(root: Path, digest: str, maps: npt.NDArray[np.float32], name: str = "") -> Path:
    """As releases before the segments wrote it."""
    low, step = np.float32(maps.min()), np.float32((maps.max() - maps.min()) / np.float32(255))
    steps = np.rint((maps - low) / step).astype(np.uint8)
    scale = np.array([low, step], np.float32)
    check = zlib.crc32(steps.tobytes(), zlib.crc32(f"{steps.shape}{scale.tolist()}".encode()))
    path = root / "net" / digest[:2] / f"{digest}{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"steps": steps, "scale": scale, "check": np.array([check], np.uint32)}
    path.write_bytes(safetensors.numpy.save(tensors))
    return path


def test_segments_with_channels_first_are_read_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As releases before wrote them: their own rows first, ours in a segment of their own."""
    maps = np.stack([some_maps(seed) for seed in range(3)])
    keys = [(hashlib.sha256(bytes([seed])).hexdigest(), PLAIN) for seed in range(4)]
    with monkeypatch.context() as before:
        before.setattr(segments, "_MAGIC", segments._MAGIC_FIRST)
        before.setattr(segments, "positions", lambda rows: rows)
        FeatureCache(tmp_path, "tiny-0").put(keys[:3], maps)
    (index,) = tmp_path.rglob("*.index")
    assert index.read_bytes().startswith(b"HRNROWS1")
    written = index.with_suffix(".maps").read_bytes()
    assert written == QuantisedMaps.of(maps).steps.tobytes()
    cache = FeatureCache(tmp_path, "tiny-0")
    kept = cache.put(keys[3:], some_maps(7)[None])
    assert index.with_suffix(".maps").read_bytes() == written
    assert len(list(tmp_path.rglob("*.index"))) == 2
    found, all_ = FeatureCache(tmp_path, "tiny-0").maps([name for name, _ in keys])
    assert found.all()
    np.testing.assert_array_equal(all_.restored()[:3], QuantisedMaps.of(maps).restored())
    np.testing.assert_array_equal(all_.restored()[3:], kept.restored())
    # Damage is found there too.
    index.with_suffix(".maps").write_bytes(bytes([written[0] ^ 1]) + written[1:])
    found, _ = FeatureCache(tmp_path, "tiny-0").maps([name for name, _ in keys])
    assert found.tolist() == [False, True, True, True]


def test_caches_of_former_releases_are_read_and_moved(tmp_path: Path) -> None:
    paths = [
        write_former(tmp_path, A, some_maps(0)),
        write_former(tmp_path, A, some_maps(1), "-mirrored"),
    ]
    cache = FeatureCache(tmp_path, "net")
    assert cache.holds([A, B]).tolist() == [True, False]
    for view in (0, MIRRORED):
        found, maps = read_from(cache, [B, A], view=view)
        assert found.tolist() == [False, True]
        np.testing.assert_array_equal(maps[1], kept(some_maps(view)))
    assert not any(path.exists() for path in paths)
    assert FeatureCache(tmp_path, "net").means([A], view=MIRRORED)[0].all()


@pytest.mark.parametrize("content", [b"", b"half", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_damaged_file_of_a_former_release_counts_as_missing(
    content: bytes, tmp_path: Path
) -> None:
    path = write_former(tmp_path, A, some_maps())
    path.write_bytes(content)
    cache = FeatureCache(tmp_path, "net")
    assert cache.get(A) is None
    assert not path.exists()


def test_reading_in_bulk_opens_each_segment_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FeatureCache(tmp_path, "net")
    names = [digest_of(number) for number in range(50)]
    for name in names:
        put_in(cache, name, some_maps())
    opened: list[str] = []
    really = os.open

    def counting(path: str, *rest: int) -> int:
        opened.append(str(path))
        return really(path, *rest)

    monkeypatch.setattr(os, "open", counting)
    assert cache.maps(names)[0].all()
    assert cache.means(names)[0].all()
    assert sorted(Path(path).suffix for path in opened) == [".index", ".index", ".maps", ".means"]


def test_maps_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "net")
    maps = some_maps()
    maps[0, 0, 0] = np.inf
    both = cache.put([(A, PLAIN), (B, PLAIN)], np.stack([maps, some_maps()]))
    assert not both.finite[0]
    assert np.isnan(both.restored()[0]).all()
    assert cache.get(A) is None
    np.testing.assert_array_equal(got_from(cache, B), kept(some_maps()))


def test_many_are_put_at_once_beside_what_is_there_and_beyond_a_segments_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "_SEGMENT_BYTES", 3 * (some_maps().size + 4 * len(some_maps())))
    cache = FeatureCache(tmp_path, "net")
    first = put_in(cache, B, some_maps(9))
    names = [digest_of(number) for number in range(8)]
    keys = [*((name, view) for name in names for view in (PLAIN, MIRRORED)), (B, PLAIN)]
    given = [*(some_maps(seed) for seed in range(16)), some_maps(1)]
    told = cache.put([*keys, keys[0]], np.stack([*given, some_maps(5)])).restored()
    right = [*(kept(some_maps(seed)) for seed in range(16)), first, kept(some_maps(0))]
    np.testing.assert_array_equal(told, np.stack(right))
    again = FeatureCache(tmp_path, "net")
    for (name, view), one in zip(keys, right, strict=False):
        np.testing.assert_array_equal(got_from(again, name, view=view), one)
    assert again.size().maps == 17
    assert len(list(tmp_path.rglob("*.index"))) == 6


def test_a_folder_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = FeatureCache(tmp_path / "file" / "cache", "net")
    for digest in (A, B):
        np.testing.assert_array_equal(put_in(cache, digest, some_maps()), kept(some_maps()))
        assert cache.get(digest) is None
    assert cache.prune(0) == 0
    assert caplog.text.count("feature cache does not work") == 1


def test_a_full_disk_fails_nobody_and_is_written_again_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = FeatureCache(tmp_path, "net")
    put_in(cache, A, some_maps(0))
    really = os.pwrite

    def full(file: int, data: bytes, at: int) -> int:
        really(file, bytes(data[:10]), at)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        np.testing.assert_array_equal(put_in(cache, B, some_maps(1)), kept(some_maps(1)))
        assert cache.get(B) is None
    assert "No space left" in caplog.text
    put_in(cache, B, some_maps(1))
    found, maps = read_from(FeatureCache(tmp_path, "net"), [A, B])
    assert found.all()
    np.testing.assert_array_equal(maps[1], kept(some_maps(1)))
    assert cache.size().maps == 2


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", A.upper(), A + "0"])
def test_only_digests_become_file_names(digest: str, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "net")
    with pytest.raises(ValueError, match="expected a SHA-256"):
        cache.get(digest)
    with pytest.raises(ValueError, match="expected a SHA-256"):
        put_in(cache, digest, some_maps())


@pytest.mark.parametrize("fingerprint", ["", "..", ".hidden", "a/b"])
def test_only_fingerprints_become_folder_names(fingerprint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a fingerprint"):
        FeatureCache(tmp_path, fingerprint)


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_pruning_removes_the_least_recently_used(tmp_path: Path) -> None:
    """Segments of any backbone, and files of former releases."""
    nets = {digest: FeatureCache(tmp_path, f"net-{digest[:3]}") for digest in (A, B)}
    for digest, hours in ((A, 9), (B, 10)):
        put_in(nets[digest], digest, some_maps())
        (path,) = tmp_path.rglob(f"net-{digest[:3]}/*/*.index")
        age(path, hours * HOUR)
    age(write_former(tmp_path, C, some_maps()), 8 * HOUR)
    assert nets[B].get(B) is not None  # used now
    former = FeatureCache(tmp_path, "net")
    whole = former.size()
    assert whole.maps == 3
    first = former.prune(whole.nbytes - 1)
    assert first > 0
    assert nets[A].get(A) is None
    assert former.holds([C])[0]
    assert former.prune(whole.nbytes - first - 1) > 0
    assert former.get(C) is None
    assert nets[B].get(B) is not None


def test_pruning_below_the_limit_removes_nothing(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "net")
    put_in(cache, A, some_maps())
    assert cache.prune(cache.size().nbytes) == 0
    assert cache.size().maps == 1


def test_pruning_to_nothing_leaves_no_file(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "net")
    put_in(cache, A, some_maps())
    write_former(tmp_path, B, some_maps())
    cache.prune(0)
    assert cache.size().maps == 0
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_pruning_clears_up_after_killed_processes(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, "net")
    put_in(cache, A, some_maps())
    folder = tmp_path / "net" / A[:2]
    folder.mkdir()
    for name, hours in ((".dead.part", 2), (".alive.part", 0)):
        (folder / name).write_bytes(b"half")
        age(folder / name, hours * HOUR)
    (index,) = tmp_path.rglob("*.index")
    orphan = index.with_name("0-orphan.maps")
    orphan.write_bytes(b"its index is gone")
    cache.prune(10**9)
    assert not (folder / ".dead.part").exists()
    assert (folder / ".alive.part").exists()
    assert not orphan.exists()
    assert cache.get(A) is not None


def test_an_absent_folder_is_an_empty_cache(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "none", "net")
    assert (cache.get(A), cache.size().maps, cache.prune(0)) == (None, 0, 0)
    assert not (tmp_path / "none").exists()


def test_writers_and_readers_at_once_see_whole_files(tmp_path: Path) -> None:
    both = {kept(some_maps(seed)).tobytes() for seed in (0, 1)}

    def work(turn: int) -> bytes | None:
        cache = FeatureCache(tmp_path, "net")
        put_in(cache, A, some_maps(turn % 2))
        found = got_from(cache, A)
        return found.tobytes() if found is not None else None

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(work, range(200))) <= both


def test_a_cache_that_cannot_be_read_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As another user's folder would be: root, who runs tests in containers, may read any."""
    cache = FeatureCache(tmp_path, "net")

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(segments.Segments, "_list", refused)
    assert cache.get(A) is None
    assert not cache.holds([A, B]).any()
    np.testing.assert_array_equal(put_in(cache, A, some_maps()), kept(some_maps()))
    assert not cache.maps([A])[0].any()
    assert caplog.text.count("feature cache does not work") == 1


def test_an_index_that_was_written_in_part_costs_only_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, names = FeatureCache(tmp_path, "net"), [digest_of(number) for number in range(8)]
    real, entries = segments._write, segments._SIZE

    def cut(file: int, data: bytes | memoryview, at: int) -> None:
        if len(data) == 4 * entries:
            real(file, memoryview(data)[: 2 * entries], at)
            raise OSError(28, "No space left on device")
        real(file, data, at)

    def put(some: range) -> None:
        cache.put([(names[at], PLAIN) for at in some], np.stack([some_maps(at) for at in some]))

    monkeypatch.setattr(segments, "_write", cut)
    put(range(4))
    monkeypatch.setattr(segments, "_write", real)
    put(range(4, 8))
    put(range(4))
    for again in (cache, FeatureCache(tmp_path, "net")):
        for at, name in enumerate(names):
            np.testing.assert_array_equal(got_from(again, name), kept(some_maps(at)))
    assert cache.size().maps == 8
