"""Names and tensors out of a .pth file, read in a process of its own that runs nothing in it."""

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from inference import torchfile_reader
from inference.atomic_write import write_atomic
from inference.errors import TorchFileError

log = logging.getLogger(__name__)

#: Seconds that reading may take: much of it is the import of PyTorch.
_TIMEOUT_S: Final = 300.0
#: What the process gets of the environment: no tokens and no passwords.
_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "TMPDIR")


def read_state_dict(path: Path, cache: Path | None = None) -> dict[str, Tensor]:
    """Read the tensors of a state dict that `torch.save` wrote.

    Args:
        path: a .pth or .pt file that holds nothing but names and dense tensors.
        cache: a folder that keeps the tensors as safetensors, by the file's content.

    Returns:
        Tensors on the CPU by name, in the file's order.

    Raises:
        TorchFileError: the file is damaged, or holds anything else (a whole model, an optimizer,
            a function to call); nothing of it has run.
        OSError: the file cannot be read.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    kept = cache and cache / f"weights-{digest[:16]}.safetensors"
    if kept is not None:
        with suppress(OSError, SafetensorError):
            return _tensors(kept)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "weights.safetensors"
        _convert(path, target)
        if kept is not None:
            try:
                write_atomic(kept, target.read_bytes())
            except OSError as error:
                log.warning("cannot keep what was read of %s: %s", path.name, error)
        return _tensors(target)


def _tensors(path: Path) -> dict[str, Tensor]:
    """Read what the reader wrote: names with numbers, for the format keeps no order."""
    return {
        name.split(" ", 1)[1]: tensor for name, tensor in sorted(load(path.read_bytes()).items())
    }


def _convert(path: Path, target: Path) -> None:
    command = [sys.executable, "-I", torchfile_reader.__file__, str(path), str(target)]
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TorchFileError(f"{path.name}: damaged: reading it does not end") from error
    if done.returncode == 0:
        return
    said = done.stderr.decode(errors="replace").splitlines()
    why = said[-1][:400] if said else f"damaged: reading it ended with {done.returncode}"
    raise TorchFileError(f"{path.name}: {why}")
