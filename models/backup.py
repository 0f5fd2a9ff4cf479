"""The model store in one file, and back: all that is needed after a machine is lost.

A zip of the store's files and of ``backup.json``, which names each with its SHA-256. Redis, caches
and logs are not in it: what they hold is found again.
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final

from models.errors import ModelStoreError

log = logging.getLogger(__name__)

#: Of the file; a release that does not know it says so.
FORMAT: Final = 1

_LIST: Final = "backup.json"
_PROJECTS: Final = "projects"
_PIECE: Final = 1 << 20


def backup(root: Path, file: Path) -> int:
    """Write the store at ``root`` into ``file``, whole or not at all; how many files are in it.

    Servers and workers may go on meanwhile: pointers are read before what they point to.

    Raises:
        ModelStoreError: there is nothing to keep, or it cannot be read or written.
    """
    work = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    known: dict[str, str] = {}
    try:
        with zipfile.ZipFile(work, "w") as packed:
            for path in _kept(root):
                name = path.relative_to(root).as_posix()
                try:
                    source = path.open("rb")
                except FileNotFoundError:  # a version that was deleted just now
                    continue
                with source, packed.open(name, "w", force_zip64=True) as member:
                    known[name] = _copied(source, member)
            packed.writestr(_LIST, json.dumps({"format": FORMAT, "sha256": known}, indent=1))
        if not known:
            raise ModelStoreError(f"there is nothing to back up in {root}: no project has called")
        with work.open("rb") as written:
            os.fsync(written.fileno())
        work.replace(file)
    except OSError as error:
        raise ModelStoreError(f"cannot write the backup {file}: {error.strerror}") from error
    finally:
        work.unlink(missing_ok=True)
    log.info("backed up files=%d to=%s", len(known), file)
    return len(known)


def restore(file: Path, root: Path) -> int:
    """Bring back what `backup` wrote into an empty store, whole or not at all; how many files.

    Every name is checked to lie within the store, and every file against its checksum, before
    anything is put in its place.

    Raises:
        ModelStoreError: the store is not empty, the file is damaged or no backup of ours, or the
            store cannot be written.
    """
    place = root / _PROJECTS
    if place.exists() and any(place.iterdir()):
        raise ModelStoreError(
            f"{root} holds projects already: give --home an empty folder, or move them away first"
        )
    work = root / f".restore-{secrets.token_hex(8)}"
    try:
        work.mkdir(parents=True)
        with zipfile.ZipFile(file) as packed:
            known = _listed(packed)
            for name, digest in known.items():
                _unpack(packed, name, digest, work)
        if place.exists():
            place.rmdir()
        (work / _PROJECTS).rename(place)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ModelStoreError(f"{file} is damaged, or no backup: {error}") from error
    except OSError as error:
        raise ModelStoreError(f"cannot restore {file} to {root}: {error.strerror}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    log.info("restored files=%d from=%s", len(known), file)
    return len(known)


def _kept(root: Path) -> Iterator[Path]:
    """Files of the store: pointers first, locks and what is being written left out."""
    found = [
        path
        for path in sorted((root / _PROJECTS).rglob("*"))
        if path.is_file()
        and path.suffix != ".lock"
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]
    return iter(sorted(found, key=lambda path: path.name != "current.json"))


def _copied(source: Any, target: Any) -> str:  # noqa: ANN401 - binary files of two kinds
    digest = hashlib.sha256()
    while data := source.read(_PIECE):
        digest.update(data)
        target.write(data)
    return digest.hexdigest()


def _listed(packed: zipfile.ZipFile) -> dict[str, str]:
    """Names and checksums.

    Raises:
        ModelStoreError: of no format we know, or with a name that leads elsewhere.
    """
    try:
        told = json.loads(packed.read(_LIST))
        form, known = told["format"], dict(told["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelStoreError(f"no backup of ours: {_LIST} cannot be read ({error})") from error
    if form != FORMAT:
        raise ModelStoreError(
            f"the backup has format {form!r}, this release reads {FORMAT}: "
            "restore it with the release that wrote it"
        )
    for name in known:
        parts = PurePosixPath(name).parts
        plain = parts and parts[0] == _PROJECTS and len(parts) > 1
        if not plain or ".." in parts or "\\" in name or "\0" in name:
            raise ModelStoreError(f"the backup names {name!r}, which is no place in a store")
    return known


def _unpack(packed: zipfile.ZipFile, name: str, digest: str, into: Path) -> None:
    path = into / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with packed.open(name) as member, path.open("wb") as target:
        found = _copied(member, target)
        target.flush()
        os.fsync(target.fileno())
    if found != digest:
        raise ModelStoreError(f"{name} in the backup is damaged: its checksum is another")
