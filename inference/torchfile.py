"""Names and tensors out of a .pth file, running nothing that stands in it.

It knows the two layouts of `torch.save`: the one of before 2020 and the zip archive of today.
"""

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from inference.errors import TorchFileError
from inference.torchprogram import Storage, View, run

#: First object of the older layout, from PyTorch's serialization.py.
_MAGIC: Final = 0x1950A86A20F9469CFC6C

#: More elements than any network's; above this PyTorch's own arithmetic overflows.
_MAX_ELEMENTS: Final = 1 << 40


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a state dict that `torch.save` wrote.

    Args:
        path: a .pth or .pt file that holds nothing but names and dense tensors.

    Returns:
        Tensors on the CPU by name, in the file's order. Tensors that shared memory when they
        were saved share it here.

    Raises:
        TorchFileError: the file is damaged, or holds anything else (a whole model, an optimizer,
            a function to call); nothing of it has run.
        OSError: the file cannot be read.
    """
    data = path.read_bytes()
    try:
        return _read_zip(data) if data.startswith(b"PK\x03\x04") else _read_legacy(data)
    except TorchFileError as error:
        raise TorchFileError(f"{path.name}: {error}") from error


def _read_legacy(data: bytes) -> dict[str, Tensor]:
    """Five objects (magic, protocol, machine, state dict, storage keys), then the storages."""
    stream = io.BytesIO(data)
    if run(stream)[0] != _MAGIC:
        raise TorchFileError("not written by torch.save; give a .pth or .safetensors file")
    run(stream)  # the layout's number: 1001 as long as this layout was written
    written_on, _ = run(stream)
    if not isinstance(written_on, dict) or written_on.get("little_endian") is not True:
        raise TorchFileError("written on a big-endian machine; save it again on another")
    root, wanted = run(stream)
    keys, _ = run(stream)
    return _tensors(root, _legacy_storages(data, stream.tell(), keys, wanted))


def _legacy_storages(
    data: bytes, start: int, keys: object, wanted: Mapping[str, "Storage"]
) -> dict[str, Tensor]:
    """Each storage is its number of elements in 8 bytes, then the elements."""
    if not isinstance(keys, list):
        raise TorchFileError("damaged: its list of storages is no list")
    found: dict[str, Tensor] = {}
    for key in keys:
        storage = wanted.get(key) if isinstance(key, str) else None
        if storage is None or storage.key in found or start + 8 > len(data):
            raise TorchFileError("damaged or cut short: a storage is missing or there twice")
        (numel,) = struct.unpack_from("<q", data, start)
        end = start + 8 + storage.nbytes
        if numel != storage.numel or end > len(data):
            raise TorchFileError(f"damaged or cut short in storage {storage.key!r}")
        found[storage.key] = _flat(data[start + 8 : end], storage)
        start = end
    return found


def _read_zip(data: bytes) -> dict[str, Tensor]:
    """An archive of data.pkl and one member a storage, none of them compressed."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _read_archive(archive, len(data))
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        EOFError,
        KeyError,
        NotImplementedError,  # an unknown compression or version
        OSError,
        OverflowError,
        RuntimeError,  # an encrypted member
        ValueError,
    ) as error:
        raise TorchFileError(f"damaged or cut short: {error}") from error


def _read_archive(archive: zipfile.ZipFile, size: int) -> dict[str, Tensor]:
    programs = [name for name in archive.namelist() if name.endswith("data.pkl")]
    if len(programs) != 1:
        raise TorchFileError(f"expected one data.pkl inside, found {len(programs)}")
    prefix = programs[0].removesuffix("data.pkl")
    order = prefix + "byteorder"
    if order in archive.namelist() and _member(archive, order) != b"little":
        raise TorchFileError("written on a big-endian machine; save it again on another")
    root, wanted = run(io.BytesIO(_member(archive, programs[0])))
    if sum(storage.nbytes for storage in wanted.values()) > size:
        raise TorchFileError("damaged: its storages are larger than the file")
    storages = {
        key: _flat(_member(archive, f"{prefix}data/{key}"), storage)
        for key, storage in wanted.items()
    }
    return _tensors(root, storages)


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """One member's bytes; its checksum is verified on the way."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise TorchFileError(f"{name} is compressed, which torch.save never does")
    return archive.read(name)


def _flat(data: bytes, storage: Storage) -> Tensor:
    """The storage's elements, ``(numel,)``, in memory of their own (aligned, unlike the file's)."""
    if len(data) != storage.nbytes:
        raise TorchFileError(
            f"damaged: storage {storage.key!r} has {len(data)} bytes, expected {storage.nbytes}"
        )
    if not data:
        return torch.empty(0, dtype=storage.dtype)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(storage.dtype)


def _tensors(root: object, storages: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not isinstance(root, dict):
        raise TorchFileError("expected a state dict (names and tensors); save model.state_dict()")
    for name, view in root.items():
        if not isinstance(view, View):
            raise TorchFileError(
                f"expected a tensor under {name!r}, found {type(view).__name__}; "
                "save model.state_dict() by itself"
            )
    return {name: _tensor(name, view, storages) for name, view in root.items()}


def _tensor(name: str, view: View, storages: Mapping[str, Tensor]) -> Tensor:
    """The tensor, after a check that it lies inside its storage."""
    numel = math.prod(view.size)
    last = view.offset + sum(
        (size - 1) * stride for size, stride in zip(view.size, view.stride, strict=True)
    )
    inside = numel == 0 or (numel <= view.storage.numel and last < view.storage.numel)
    sane = math.prod(max(size, 1) for size in view.size) <= _MAX_ELEMENTS
    if not inside or not sane or view.storage.key not in storages:
        raise TorchFileError(f"damaged: tensor {name!r} reaches outside its storage")
    if numel == 0:
        return torch.empty(view.size, dtype=view.storage.dtype)
    # The stride of a dimension of one element means nothing and may be any number.
    stride = [s if size > 1 else 1 for size, s in zip(view.size, view.stride, strict=True)]
    return storages[view.storage.key].as_strided(view.size, stride, view.offset)
