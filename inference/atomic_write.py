"""Files that are written whole or not at all."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: How the name of what is being written begins, beside its place.
UNFINISHED: Final = ".new-"


def write_atomic(path: Path, data: bytes | str) -> None:
    """Make or replace a file; it is on the disk when the call returns.

    Raises:
        OSError: it cannot be written; what was there before is unchanged.
    """
    with replacing(path) as work:
        work.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write a file to; put it in the place of ``path`` at the end.

    The folder around it is made.

    Raises:
        OSError: it cannot be written or put in its place; what was there before is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    work = unused_name(path.parent)
    try:
        yield work
        sync(work)
        work.replace(path)
        sync(path.parent)
    finally:
        work.unlink(missing_ok=True)


def unused_name(folder: Path) -> Path:
    """Choose a path in a folder; not by `tempfile`, whose files no other user could read."""
    return folder / f"{UNFINISHED}{secrets.token_hex(8)}"


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
