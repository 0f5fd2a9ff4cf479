"""Fast engines agree with PyTorch in float32, or are not used."""

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from inference.augmentation import prepare
from inference.backbone import Backbone, Preparation, load_backbone
from inference.engine import Engine, EngineVectors, OpenVINOEngine, Pixels, TorchEngine, make_engine
from inference.engine_check import MAX_ERROR, disagreement
from inference.errors import EngineError
from inference.openvino_engine import part_size

SIDE = 32


def tiny(module: nn.Module | None = None, mark: str = "tiny-0") -> Backbone:
    """A backbone of one convolution: 8 channels on a 4 x 4 grid."""
    if module is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.ReLU6())
    return Backbone("tiny", 8, 4, Preparation(36, SIDE), mark, module.eval())


class BranchesOnBatch(nn.Module):
    """A network that tracing misreads: what it does depends on the number of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = tiny().module

    def forward(self, pictures: Tensor) -> Tensor:
        found: Tensor = self.layer(pictures)
        return found if len(pictures) == 2 else 1 - found  # conversion looks at two


def noise(count: int, side: int = SIDE) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8)


@pytest.fixture(scope="module")
def lite0() -> Backbone:
    return load_backbone()


@pytest.fixture(scope="module")
def photos(lite0: Backbone, shared: Path) -> Pixels:
    """16 photos of 16 classes."""
    folders = sorted({p.parent for p in (shared / "data/grocery/train").rglob("*_001.jpg")})
    files = [next(iter(sorted(folder.glob("*.jpg")))) for folder in folders[::3]][:16]
    assert len(files) == 16
    return np.stack([prepare(Image.open(file), lite0.preparation) for file in files])


@pytest.fixture(scope="module")
def right(lite0: Backbone, photos: Pixels) -> EngineVectors:
    return TorchEngine(lite0).vectors(photos)


def off(given: EngineVectors, right: EngineVectors) -> float:
    """Largest error of a picture as a share of its map's length."""
    flat = (len(right), -1)
    difference = np.linalg.norm((given - right).reshape(flat), axis=1)
    return float((difference / np.linalg.norm(right.reshape(flat), axis=1)).max())


def test_openvino_in_float32_equals_pytorch(
    lite0: Backbone, photos: Pixels, right: EngineVectors
) -> None:
    assert off(OpenVINOEngine(lite0).vectors(photos), right) < 1e-4


def test_openvino_in_bfloat16_agrees_on_photos(
    lite0: Backbone, photos: Pixels, right: EngineVectors
) -> None:
    vectors = OpenVINOEngine(lite0, precision="bf16").vectors(photos)
    assert off(vectors, right) < MAX_ERROR / 2


def test_pytorch_in_bfloat16_agrees_on_photos(
    lite0: Backbone, photos: Pixels, right: EngineVectors
) -> None:
    assert off(TorchEngine(lite0, precision=torch.bfloat16).vectors(photos), right) < MAX_ERROR


def test_bytes_are_normalised_as_the_backbone_expects() -> None:
    backbone = tiny()
    mean = torch.tensor(backbone.preparation.mean).reshape(3, 1, 1)
    std = torch.tensor(backbone.preparation.std).reshape(3, 1, 1)
    pixels = noise(3)
    with torch.inference_mode():
        expected = (
            backbone.module((torch.from_numpy(pixels) / 255 - mean) / std).mean((2, 3)).numpy()
        )
    np.testing.assert_allclose(TorchEngine(backbone).vectors(pixels), expected, atol=1e-5)


def small_engines() -> list[Engine]:
    return [
        OpenVINOEngine(tiny()),
        TorchEngine(tiny()),
        TorchEngine(tiny(), precision=torch.bfloat16),
    ]


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 33])
def test_pictures_do_not_depend_on_their_batch(count: int) -> None:
    pixels = noise(count)
    for engine in small_engines():
        together = engine.vectors(pixels)
        assert together.shape == (count, 8)
        assert together.dtype == np.float32
        for one, picture in zip(together, pixels, strict=True):
            np.testing.assert_allclose(engine.vectors(picture[None])[0], one, atol=1e-3)


def test_mirrored_and_read_only_arrays_are_taken() -> None:
    pixels = noise(3)
    turned = pixels[..., ::-1]
    fixed = np.ascontiguousarray(turned)
    fixed.setflags(write=False)
    for engine in small_engines():
        np.testing.assert_array_equal(engine.vectors(turned), engine.vectors(fixed))


@pytest.mark.parametrize(
    "batch", [np.zeros((2, 3, SIDE, SIDE), np.float32), np.zeros((2, 3, SIDE, 9), np.uint8)]
)
def test_a_wrong_batch_is_refused(batch: Any) -> None:
    for engine in small_engines():
        with pytest.raises(ValueError, match=r"expected \(B, 3, 32, 32\) uint8"):
            engine.vectors(batch)


def test_threads_may_share_an_engine() -> None:
    pixels = noise(20)
    for engine in small_engines():
        expected = engine.vectors(pixels)
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(engine.vectors, [pixels] * 8):
                np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("pictures", "streams", "size"),
    [(1, 4, 1), (5, 2, 3), (8, 2, 4), (9, 4, 3), (64, 2, 8), (1000, 1, 8)],
)
def test_each_stream_has_as_many_and_few_at_a_time(pictures: int, streams: int, size: int) -> None:
    assert part_size(pictures, streams) == size


#: Many threads that are a process's first to ask OpenVINO for anything.
_FIRST = """
import threading
import numpy as np
from tests.inference.test_engine import noise, tiny
from inference.engine import OpenVINOEngine

engine, gate, found = OpenVINOEngine(tiny(), threads=4), threading.Barrier(8), []

def ask():
    gate.wait(30)
    found.append(engine.vectors(noise(9)))

threads = [threading.Thread(target=ask, daemon=True) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(60)
assert len(found) == 8 and all(np.array_equal(one, found[0]) for one in found)
"""


def test_the_first_to_ask_may_be_many() -> None:
    """OpenVINO's binding hangs for ever where two threads are the first to ask at once."""
    subprocess.run([sys.executable, "-c", _FIRST], check=True, timeout=120)


def test_the_backbone_itself_stays_as_it_is() -> None:
    backbone = tiny()
    before = {name: t.clone() for name, t in backbone.module.state_dict().items()}
    make_engine(backbone)
    after = backbone.module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def never(*_: Any) -> None:
    raise AssertionError("should have come from the cache")


def test_the_second_start_converts_and_compares_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make_engine(tiny(), cache_dir=tmp_path)
    assert first.name.startswith("openvino-cpu-")
    monkeypatch.setattr("inference.openvino_engine._convert", never)
    monkeypatch.setattr("inference.engine.disagreement", never)
    second = make_engine(tiny(), cache_dir=tmp_path)
    assert second.name == first.name
    np.testing.assert_array_equal(second.vectors(noise(3)), first.vectors(noise(3)))


def test_other_weights_are_converted_anew(tmp_path: Path) -> None:
    one = make_engine(tiny(), cache_dir=tmp_path)
    with torch.no_grad():
        darker = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.ReLU6())
    other = make_engine(tiny(darker, "tiny-1"), cache_dir=tmp_path)
    assert off(other.vectors(noise(2)), one.vectors(noise(2))) > MAX_ERROR


@pytest.mark.parametrize(
    ("file", "damage"), [("model.bin", "changed"), ("model.xml", "cut"), ("checksum", "gone")]
)
def test_a_damaged_converted_network_is_made_again(
    file: str, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = OpenVINOEngine(tiny(), cache_dir=tmp_path).vectors(noise(2))
    (path,) = tmp_path.glob(f"*/{file}")
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[:20] if damage == "cut" else content[:-9] + b"x" * 9)
    again = OpenVINOEngine(tiny(), cache_dir=tmp_path)
    np.testing.assert_array_equal(again.vectors(noise(2)), expected)
    monkeypatch.setattr("inference.openvino_engine._convert", never)
    mended = OpenVINOEngine(tiny(), cache_dir=tmp_path)
    np.testing.assert_array_equal(mended.vectors(noise(2)), expected)


def test_a_damaged_check_is_made_again(tmp_path: Path) -> None:
    make_engine(tiny(), cache_dir=tmp_path)
    (check,) = tmp_path.glob("check-*.json")
    check.write_text('{"agrees": ')
    make_engine(tiny(), cache_dir=tmp_path)
    assert '"agrees": true' in check.read_text()


def test_a_cache_that_cannot_be_written_costs_a_log_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    engine = make_engine(tiny(), cache_dir=tmp_path / "file" / "cache")
    assert engine.vectors(noise(1)).shape == (1, 8)
    assert "cannot keep the converted network" in caplog.text


def test_nothing_half_written_stays_in_the_cache(tmp_path: Path) -> None:
    make_engine(tiny(), cache_dir=tmp_path)
    assert not list(tmp_path.glob("part-*"))
    assert not list(tmp_path.glob("*.part"))


def test_an_engine_that_disagrees_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = tiny(BranchesOnBatch())
    assert disagreement(OpenVINOEngine(backbone), backbone) > MAX_ERROR
    assert make_engine(backbone, cache_dir=tmp_path).name.startswith("torch-cpu-")
    assert "disagrees error=" in caplog.text
    caplog.clear()
    assert make_engine(backbone, cache_dir=tmp_path).name.startswith("torch-cpu-")
    assert "it disagreed before" in caplog.text


def test_asking_for_openvino_by_name_gives_no_other() -> None:
    with pytest.raises(EngineError, match=r"none of .*openvino-cpu-f32 works for tiny"):
        make_engine(tiny(BranchesOnBatch()), kind="openvino")


def test_without_openvino_pytorch_serves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert make_engine(tiny(), cache_dir=tmp_path).name.startswith("torch-cpu-")
    assert "OpenVINO is not installed" in caplog.text


def test_a_cpu_without_bfloat16_gets_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert make_engine(tiny()).name == "openvino-cpu-f32"
    assert make_engine(tiny(), kind="torch").name == "torch-cpu-f32"


def test_numbers_that_are_not_finite_disagree() -> None:
    class Broken(Engine):
        name = "broken"

        def vectors(self, batch: Pixels) -> EngineVectors:
            return np.full((len(batch), 8), np.nan, np.float32)

    assert disagreement(Broken(), tiny()) == float("inf")


def test_exchanged_colours_disagree(lite0: Backbone) -> None:
    class BlueFirst(Engine):
        name = "blue first"
        inner = TorchEngine(lite0)

        def vectors(self, batch: Pixels) -> EngineVectors:
            return self.inner.vectors(batch[:, ::-1])

    assert disagreement(BlueFirst(), lite0) > 3 * MAX_ERROR


def test_cuda_asked_for_and_absent_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match="PyTorch sees no GPU"):
        make_engine(tiny(), device="cuda")


def test_openvino_on_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(EngineError, match="OpenVINO runs on the CPU"):
        make_engine(tiny(), device="cuda", kind="openvino")


@pytest.mark.parametrize(
    ("asked", "message"), [({"device": "tpu"}, "'tpu'"), ({"kind": "onnx"}, "'onnx'")]
)
def test_unknown_wishes_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        make_engine(tiny(), **asked)


def test_the_choice_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        engine = make_engine(tiny(), threads=1)
    assert f"engine={engine.name} backbone=tiny-0" in caplog.text


QUIET = """
import sys
def watch(event, _):
    if event.startswith("socket."):
        print("network", event)
sys.addaudithook(watch)
from tests.inference.test_engine import make_engine, tiny
make_engine(tiny())
print("telemetry", sys.modules.get("openvino_telemetry"))
"""


def test_conversion_says_nothing_and_calls_nobody(tmp_path: Path) -> None:
    """OpenVINO's telemetry would report the import and write to the home folder."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", QUIET],
        capture_output=True,
        text=True,
        check=False,
        env={"HOME": str(tmp_path), "OMP_NUM_THREADS": "2"},
        cwd=Path(__file__).parents[2],
        timeout=60,
    )
    assert (result.stdout, result.stderr) == ("telemetry None\n", "")
    assert not list(tmp_path.iterdir())
