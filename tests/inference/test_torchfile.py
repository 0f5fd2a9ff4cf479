"""State dicts are read from both layouts of torch.save, and nothing in a file is ever run."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from inference.errors import TorchFileError
from inference.torchfile import read_state_dict
from inference.torchfile_reader import read

LAYOUTS = pytest.mark.parametrize("layout", ["zip", "legacy"])


def saved(value: Any, layout: str) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=layout == "zip")
    return buffer.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


class RunsACommand:
    """What an attacker would put in place of a tensor."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


# In a process of its own


@LAYOUTS
def test_gives_what_was_saved_in_its_order_and_keeps_it_as_safetensors(
    layout: str, path: Path
) -> None:
    state = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)).state_dict()
    state["turned"] = torch.arange(24.0).reshape(4, 6).T
    state["none"] = torch.empty(0, 5)
    path.write_bytes(saved(state, layout))
    cache = path.parent / "cache"
    first, second = (read_state_dict(path, cache) for _ in range(2))
    (kept,) = cache.iterdir()
    assert kept.suffix == ".safetensors"
    kept.write_bytes(b"damaged")
    for found in (first, second, read_state_dict(path, cache)):
        assert list(found) == list(state)
        assert all(torch.equal(found[name], state[name]) for name in state)
        assert all(found[name].dtype == state[name].dtype for name in state)


@LAYOUTS
def test_a_file_that_would_run_a_command_is_refused_and_runs_nothing(
    layout: str, path: Path
) -> None:
    trace = path.with_name("it-ran")
    path.write_bytes(saved({"x": torch.zeros(2), "y": RunsACommand(f"touch {trace}")}, layout))
    with pytest.raises(
        TorchFileError, match=r"^weights\.pth: refused: it wants to import '\w+\.system'"
    ):
        read_state_dict(path)
    assert not trace.exists()


def test_it_sees_no_secret_and_imports_nothing_from_where_it_is_run(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torch.py beside the file would be imported by a process that is not isolated."""
    path.with_name("torch.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv("PYTHONPATH", str(path.parent))
    path.write_bytes(saved({"x": torch.zeros(2)}, "zip"))
    assert read_state_dict(path)["x"].tolist() == [0, 0]


# What is refused


@LAYOUTS
@pytest.mark.parametrize(
    ("value", "why"),
    [
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"epoch": 3, "weights": torch.zeros(1)}, "found int under 'epoch'; save model.state_dict"),
        (torch.zeros(2), "expected a state dict"),
        ({7: torch.zeros(2)}, "under 7"),
        ({"x": torch.zeros(1).expand(1 << 40)}, "its tensors are larger than the file"),
    ],
)
def test_anything_but_names_and_dense_tensors_is_refused(
    value: object, why: str, layout: str, path: Path
) -> None:
    path.write_bytes(saved(value, layout))
    with pytest.raises(Exception, match=why):
        read(path)


@LAYOUTS
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_file_cut_short_is_refused(share: float, layout: str, path: Path) -> None:
    data = saved(nn.BatchNorm2d(64).state_dict(), layout)
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(TorchFileError, match=r"^weights\.pth: damaged"):
        read_state_dict(path)


def test_a_changed_byte_of_a_zip_is_noticed(path: Path) -> None:
    data = bytearray(saved({"x": torch.full((64,), 3.0)}, "zip"))
    place = data.find(torch.full((64,), 3.0).numpy().tobytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged: the checksum of"):
        read(path)


def test_a_compressed_member_is_refused(path: Path) -> None:
    with (
        zipfile.ZipFile(io.BytesIO(saved({"x": torch.zeros(9)}, "zip"))) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(ValueError, match="is compressed"):
        read(path)


@settings(max_examples=100, deadline=None)
@given(
    layout=st.sampled_from(["zip", "legacy"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_damaged_file_gives_tensors_no_larger_than_itself_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, layout: str, changes: list[tuple[float, int]]
) -> None:
    data = bytearray(saved(nn.BatchNorm2d(2).state_dict(), layout))
    for place, value in changes:
        data[min(int(place * len(data)), len(data) - 1)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    path.write_bytes(data)
    try:
        found = read(path)
    except Exception:  # noqa: BLE001 - in its own process each becomes our error
        return
    assert all(isinstance(tensor, Tensor) for tensor in found.values())
    assert sum(tensor.nbytes for tensor in found.values()) <= 4 * len(data)
