"""The program that reads a .pth file, run in a process of its own by `inference.torchfile`.

A script that imports nothing of this project: ``torchfile_reader.py weights.pth out.safetensors``.
"""

import re
import sys
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

#: Bytes of a file's tensors, per byte of the file: views of one storage may overlap.
_MOST = 4


def read(path: Path) -> dict[str, Tensor]:
    """Read the names and tensors of a state dict.

    Raises:
        ValueError: the file holds anything else; the message says what to do.
        Exception: it is damaged, or `torch.load` refuses it.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
                raise ValueError("damaged: a member is compressed, which torch.save never does")
            if (member := archive.testzip()) is not None:
                raise ValueError(f"damaged: the checksum of {member} is another")
    found = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 - decision 27
    if not isinstance(found, dict):
        raise ValueError("expected a state dict (names and tensors); save model.state_dict()")  # noqa: TRY004
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(  # noqa: TRY004 - of the file, not of a caller
                f"expected names and tensors, found {type(tensor).__name__} under {name!r}; "
                "save model.state_dict() by itself"
            )
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise ValueError(f"expected dense tensors, but {name!r} is not one")
    size = sum(tensor.numel() * tensor.element_size() for tensor in found.values())
    if size > _MOST * path.stat().st_size:
        raise ValueError("damaged: its tensors are larger than the file")
    return found


def main() -> None:
    """Write the tensors as safetensors, their order in their names; or say what is wrong."""
    source, target = map(Path, sys.argv[1:])
    try:
        tensors = {
            f"{at:06d} {name}": tensor.clone(memory_format=torch.contiguous_format)
            for at, (name, tensor) in enumerate(read(source).items())
        }
        save_file(tensors, target)
    except Exception as error:  # noqa: BLE001 - a damaged file may raise anything
        sys.exit(_in_words(error))


def _in_words(error: Exception) -> str:
    """Say what is wrong with the file; PyTorch's own words advise to trust it."""
    text = " ".join(str(error).split())
    if wanted := re.search(r"GLOBAL ([\w.]+)", text):
        return (
            f"refused: it wants to import {wanted[1]!r}, which no state dict needs. Nothing of it "
            "has run; get the weights from a source you trust"
        )
    if text.startswith("Weights only load failed"):
        return "damaged, or no state dict; save model.state_dict() with torch.save"
    return text if isinstance(error, ValueError) and text else f"damaged or cut short: {error!r}"


if __name__ == "__main__":
    main()
