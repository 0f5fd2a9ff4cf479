"""The model store in one file, and back: all that is needed after a machine is lost.

A zip of the store's files and of ``backup.json``, which names each with its SHA-256. Redis, caches
and logs are not in it: what they hold is found again.
"""

import hashlib
import io
import json
import logging
import os
import secrets
import shutil
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any, Final

from inference.errors import ModelStoreError
from inference.files import Files, FolderFiles

log = logging.getLogger(__name__)

#: Of the file; a release that does not know it says so.
FORMAT: Final = 1

_LIST: Final = "backup.json"
_PROJECTS: Final = "projects"
_PIECE: Final = 1 << 20


def backup(files: Files, file: Path) -> int:
    """Write a store's files into ``file``, whole or not at all; how many are in it.

    Servers and workers may go on meanwhile: pointers are read before what they point to.

    Raises:
        ModelStoreError: there is nothing to keep, or it cannot be read or written.
    """
    work = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    known: dict[str, str] = {}
    try:
        with zipfile.ZipFile(work, "w") as packed:
            for name in _kept(files):
                try:
                    source = files.open(name)
                except FileNotFoundError:  # a version that was deleted just now
                    continue
                with source, packed.open(name, "w", force_zip64=True) as member:
                    known[name] = _copied(source, member)
            packed.writestr(_LIST, json.dumps({"format": FORMAT, "sha256": known}, indent=1))
        if not known:
            raise ModelStoreError(
                f"there is nothing to back up in {files.where}: no project has called"
            )
        with work.open("rb") as written:
            os.fsync(written.fileno())
        work.replace(file)
    except OSError as error:
        raise ModelStoreError(f"cannot write the backup {file}: {error.strerror}") from error
    finally:
        work.unlink(missing_ok=True)
    log.info("backed up files=%d to=%s", len(known), file)
    return len(known)


def restore(file: Path, files: Files) -> int:
    """Bring back what `backup` wrote into an empty store, whole or not at all; how many files.

    Every name is checked to lie within the store, and every file against its checksum, before
    anything is put in its place. In a bucket, where there is no renaming, a restore that is
    interrupted leaves versions without pointers: it can be begun anew once they are removed.

    Raises:
        ModelStoreError: the store is not empty, the file is damaged or no backup of ours, or the
            store cannot be written.
    """
    if files.names(_PROJECTS):
        raise ModelStoreError(
            f"{files.where} holds projects already: give an empty place, or move them away first"
        )
    try:
        with zipfile.ZipFile(file) as packed:
            known = _listed(packed)
            if isinstance(files, FolderFiles):
                _restore_folder(packed, known, files.root)
            else:
                _restore_files(packed, known, files)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ModelStoreError(f"{file} is damaged, or no backup: {error}") from error
    except OSError as error:
        where = files.where
        raise ModelStoreError(f"cannot restore {file} to {where}: {error.strerror}") from error
    log.info("restored files=%d from=%s", len(known), file)
    return len(known)


def _restore_folder(packed: zipfile.ZipFile, known: dict[str, str], root: Path) -> None:
    place = root / _PROJECTS
    work = root / f".restore-{secrets.token_hex(8)}"
    try:
        work.mkdir(parents=True)
        for name, digest in known.items():
            _unpack(packed, name, digest, work)
        if place.exists():
            place.rmdir()
        (work / _PROJECTS).rename(place)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _restore_files(packed: zipfile.ZipFile, known: dict[str, str], files: Files) -> None:
    for name, digest in known.items():
        with packed.open(name) as member:
            _check(name, digest, _copied(member, io.BytesIO()))
    for name in sorted(known, key=_is_pointer):
        files.write(name, packed.read(name))


def _kept(files: Files) -> list[str]:
    """Names of the store's files, pointers first."""
    return sorted(files.walk(_PROJECTS), key=lambda name: not _is_pointer(name))


def _is_pointer(name: str) -> bool:
    return name.endswith("/current.json")


def _check(name: str, digest: str, found: str) -> None:
    if found != digest:
        raise ModelStoreError(f"{name} in the backup is damaged: its checksum is another")


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
    _check(name, digest, found)
