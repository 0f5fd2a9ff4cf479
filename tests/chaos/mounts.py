"""Disks that are really small or really read-only: needs root, as containers and CI have it."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(words)}: {done.stderr.strip()} (the tests of disks mount file systems: "
            "run `make chaos` as root, in a container of its own if you like)"
        )


@contextmanager
def disk(at: Path, megabytes: float) -> Iterator[None]:
    """In this block the folder is an empty disk of that size."""
    at.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 1024)}k", "none", str(at))
    try:
        yield
    finally:
        _run("umount", "-l", str(at))


@contextmanager
def full(at: Path) -> Iterator[None]:
    """In this block there is not a byte left where the folder is."""
    filler = at / "filler"
    try:
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                with suppress(OSError):
                    while file.write(bytes(size)):
                        pass
        yield
    finally:
        filler.unlink(missing_ok=True)


@contextmanager
def read_only(at: Path) -> Iterator[None]:
    """In this block nobody can write into the folder."""
    _run("mount", "--bind", str(at), str(at))
    try:
        _run("mount", "-o", "remount,bind,ro", str(at))
        yield
    finally:
        _run("umount", "-l", str(at))
