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

LAYOUTS = pytest.mark.parametrize("layout", ["zip", "legacy"])


def saved(value: Any, layout: str) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=layout == "zip")
    return buffer.getvalue()


def read(data: bytes, folder: Path) -> dict[str, Tensor]:
    path = folder / "weights.pth"
    path.write_bytes(data)
    return read_state_dict(path)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


@LAYOUTS
def test_gives_what_was_saved_in_its_order(layout: str, tmp_path: Path) -> None:
    state = network().state_dict()
    found = read(saved(state, layout), tmp_path)
    assert list(found) == list(state)
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert all(found[name].dtype == state[name].dtype for name in state)


@LAYOUTS
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.int8,
        torch.uint8,
        torch.int16,
        torch.int32,
        torch.bool,
    ],
)
def test_reads_every_number_type(dtype: torch.dtype, layout: str, tmp_path: Path) -> None:
    values = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
    found = read(saved({"x": values}, layout), tmp_path)["x"]
    assert found.dtype == dtype
    assert torch.equal(found, values)


@LAYOUTS
def test_views_of_one_storage_keep_their_offsets_and_strides(layout: str, tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    views = {"turned": whole.T, "part": whole[1:3, 2:5], "whole": whole, "one": whole[3, 5]}
    found = read(saved(views, layout), tmp_path)
    assert all(torch.equal(found[name], views[name]) for name in views)


@LAYOUTS
def test_reads_tensors_without_elements(layout: str, tmp_path: Path) -> None:
    found = read(saved({"none": torch.empty(0, 5)}, layout), tmp_path)
    assert found["none"].shape == (0, 5)


@LAYOUTS
def test_what_is_read_can_be_written_to(layout: str, tmp_path: Path) -> None:
    found = read(saved({"x": torch.zeros(3)}, layout), tmp_path)
    found["x"].add_(1)
    assert found["x"].tolist() == [1, 1, 1]


class RunsACommand:
    """What an attacker would put in place of a tensor."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@LAYOUTS
def test_a_file_that_would_run_a_command_is_refused_and_runs_nothing(
    layout: str, tmp_path: Path
) -> None:
    trace = tmp_path / "it-ran"
    data = saved({"x": torch.zeros(2), "y": RunsACommand(f"touch {trace}")}, layout)
    with pytest.raises(TorchFileError, match=r"refused: it wants to import '\w+ system'"):
        read(data, tmp_path)
    assert not trace.exists()


@LAYOUTS
def test_a_whole_model_is_refused(layout: str, tmp_path: Path) -> None:
    with pytest.raises(TorchFileError, match=r"refused: it wants to import 'torch\.nn"):
        read(saved(nn.Linear(2, 2), layout), tmp_path)


@LAYOUTS
def test_a_checkpoint_with_more_than_tensors_says_what_to_save(layout: str, tmp_path: Path) -> None:
    data = saved({"epoch": 3, "weights": torch.zeros(1)}, layout)
    with pytest.raises(TorchFileError, match=r"under 'epoch', found int; save model.state_dict"):
        read(data, tmp_path)


@LAYOUTS
def test_a_lone_tensor_is_no_state_dict(layout: str, tmp_path: Path) -> None:
    with pytest.raises(TorchFileError, match="expected a state dict"):
        read(saved(torch.zeros(2), layout), tmp_path)


@LAYOUTS
def test_names_that_are_no_text_are_refused(layout: str, tmp_path: Path) -> None:
    with pytest.raises(TorchFileError, match="expected text as the name"):
        read(saved({7: torch.zeros(2)}, layout), tmp_path)


@LAYOUTS
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_refused(share: float, layout: str, tmp_path: Path) -> None:
    data = saved(network().state_dict(), layout)
    with pytest.raises(TorchFileError):
        read(data[: int(share * len(data))], tmp_path)


def test_a_tensor_that_reaches_outside_its_storage_is_refused(tmp_path: Path) -> None:
    data = saved({"x": torch.zeros(100)}, "legacy")
    size = b"K\x64\x85"  # the tuple (100,)
    assert data.count(size) == 1
    with pytest.raises(TorchFileError, match="'x' reaches outside its storage"):
        read(data.replace(size, b"K\x65\x85"), tmp_path)


def test_an_expanded_tensor_cannot_ask_for_endless_memory(tmp_path: Path) -> None:
    data = saved({"x": torch.zeros(1).expand(1 << 40)}, "legacy")
    assert len(data) < 1000
    with pytest.raises(TorchFileError, match="'x' reaches outside its storage"):
        read(data, tmp_path)


def test_a_changed_byte_of_a_zip_is_noticed(tmp_path: Path) -> None:
    data = bytearray(saved({"x": torch.full((64,), 3.0)}, "zip"))
    place = data.find(torch.full((64,), 3.0).numpy().tobytes())
    data[place] ^= 1
    with pytest.raises(TorchFileError, match="damaged"):
        read(bytes(data), tmp_path)


def test_a_compressed_member_is_refused(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved({"x": torch.zeros(9)}, "zip"))) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(TorchFileError, match="is compressed"):
        read(packed.getvalue(), tmp_path)


def test_the_message_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(TorchFileError, match=r"^weights\.pth: "):
        read(b"\x80\x02K\x01.", tmp_path)


def test_an_odd_escape_in_a_name_is_an_error_and_no_warning(tmp_path: Path) -> None:
    data = saved({"x": torch.zeros(2)}, "legacy").replace(b"FloatStorage", b"Float\\qtorage")
    with pytest.raises(TorchFileError, match="a name with a backslash"):
        read(data, tmp_path)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    with pytest.raises(TorchFileError):
        read(data, tmp_path_factory.getbasetemp())


@settings(max_examples=300, deadline=None)
@given(
    layout=st.sampled_from(["zip", "legacy"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_damaged_file_gives_tensors_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, layout: str, changes: list[tuple[float, int]]
) -> None:
    data = bytearray(saved(nn.BatchNorm2d(2).state_dict(), layout))
    for place, value in changes:
        data[min(int(place * len(data)), len(data) - 1)] = value
    try:
        found = read(bytes(data), tmp_path_factory.getbasetemp())
    except TorchFileError:
        return
    assert all(isinstance(tensor, Tensor) for tensor in found.values())
    assert sum(tensor.numel() for tensor in found.values()) <= len(data)
