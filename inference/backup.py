"""The model store in one file, and back: all that is needed after a machine is lost.

A zip of the store's files and of ``backup.json``, which names each with its SHA-256. Redis, caches
and logs are not in it: what they hold is found again.
"""

import errno
import hashlib
import json
import logging
import secrets
import shutil
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final

from inference.atomic_write import replacing
from inference.errors import ModelStoreError
from inference.files import Files, FolderFiles

log = logging.getLogger(__name__)

#: Of the file; a release that does not know it says so.
FORMAT: Final = 1

_LIST: Final = "backup.json"
_PROJECTS: Final = "projects"


def backup(files: Files, file: Path) -> int:
    """Write a store's files into ``file``, whole or not at all; return how many.

    Servers and workers may go on meanwhile: pointers are read before what they point to.

    Raises:
        ModelStoreError: there is nothing to keep, or it cannot be read or written.
    """
    known: dict[str, str] = {}
    try:
        if not file.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, f"there is no folder {file.parent}")
        with replacing(file) as work:
            with zipfile.ZipFile(work, "w") as packed:
                for name in _kept(files):
                    with suppress(FileNotFoundError):  # a version that was deleted just now
                        data = files.read(name)
                        packed.writestr(name, data)
                        known[name] = hashlib.sha256(data).hexdigest()
                packed.writestr(_LIST, json.dumps({"format": FORMAT, "sha256": known}, indent=1))
            if not known:
                raise ModelStoreError(
                    f"there is nothing to back up in {files.where}: no project has called"
                )
    except OSError as error:
        raise ModelStoreError(f"cannot write the backup {file}: {error.strerror}") from error
    log.info("backed up files=%d to=%s", len(known), file)
    return len(known)


def restore(file: Path, files: Files) -> int:
    """Bring back what `backup` wrote into an empty store, whole or not at all; how many files.

    Every name is checked to lie within the store, and every file against its checksum, before
    anything is put in its place. In a bucket, where there is no renaming, a restore that is
    interrupted leaves versions without pointers: it can be begun again once they are removed.

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
            for name, digest in known.items():
                if hashlib.sha256(packed.read(name)).hexdigest() != digest:
                    raise ModelStoreError(f"{name} in {file.name} is damaged: its checksum differs")
            if isinstance(files, FolderFiles):
                _restore_folder(packed, known, files.root)
            else:
                _unpack(packed, known, files)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ModelStoreError(f"{file} is damaged, or no backup: {error}") from error
    except OSError as error:
        where = files.where
        raise ModelStoreError(f"cannot restore {file} to {where}: {error.strerror}") from error
    log.info("restored files=%d from=%s", len(known), file)
    return len(known)


def _restore_folder(packed: zipfile.ZipFile, names: Iterable[str], root: Path) -> None:
    place = root / _PROJECTS
    work = root / f".restore-{secrets.token_hex(8)}"
    try:
        _unpack(packed, names, FolderFiles(work))
        if place.exists():
            place.rmdir()
        (work / _PROJECTS).rename(place)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _unpack(packed: zipfile.ZipFile, names: Iterable[str], files: Files) -> None:
    """Write the files, the pointers last."""
    for name in sorted(names, key=_is_pointer):
        files.write(name, packed.read(name))


def _kept(files: Files) -> list[str]:
    """Names of the store's files, pointers first."""
    return sorted(files.walk(_PROJECTS), key=lambda name: not _is_pointer(name))


def _is_pointer(name: str) -> bool:
    return name.endswith("/current.json")


def _listed(packed: zipfile.ZipFile) -> dict[str, str]:
    """Names and checksums.

    Raises:
        ModelStoreError: of no format we know, or with a name that leads elsewhere.
    """
    try:
        found = json.loads(packed.read(_LIST))
        form, known = found["format"], dict(found["sha256"])
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
