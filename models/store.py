"""The model store: a folder of projects, each with immutable versions and one pointer.

``projects/<key>/project.json``             what is known of the project (changes)
``projects/<key>/versions/v7/manifest.json``  the version: tree, network, figures (never changes)
``projects/<key>/versions/v7/weights.safetensors``
``projects/<key>/current.json``             the pointer, replaced in one rename
``projects/<key>/history.jsonl``            every move of the pointer, with its reason
``projects/<key>/following/v7.json``        how v7 has done since: judged answers, the rule in force
``projects/<key>/notes/v7.json``            what a person wrote about v7
``projects/<key>/order.json``               which pictures are asked for next, and why (changes)
``projects/<key>/versions/v7/deleted.json``   v7 was deleted: its name is never given again

A version is written under a temporary name and renamed: a reader finds all of it or nothing.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
import unicodedata
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Final, Self
from urllib.parse import urlsplit

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from models.errors import ModelStoreError, UnknownVersionError, VersionInUseError

log = logging.getLogger(__name__)

#: The layout of a manifest; a release that cannot read an older one says so instead of guessing.
FORMAT = 1

#: Field of a manifest: the checksum over all others.
SEAL: Final = "manifest_sha256"

#: Seconds after which an unfinished version is rubbish.
LEFTOVER_AGE = 24 * 3600

#: Characters of a note; more is cut.
NOTE_LENGTH = 1000

#: Bytes of an archive handed on at once.
PIECE = 1 << 20

VERSION_NAME = re.compile(r"v[0-9]{1,9}")
#: Stands where a version's name would, before there is one.
UNTRAINED: Final = "untrained"
KEY = re.compile(r"[a-z0-9][a-z0-9.-]{0,120}")


def project_key(label_studio: str, project: str) -> str:
    """A project's folder name: its Label Studio's address, its id, the second it was made.

    Ids repeat between installations and after a reset; the three together do not.

    Example:
        >>> project_key("http://localhost:8080/", "12.1795440233")
        'localhost-8080-12-1795440233'
    """
    address = urlsplit(label_studio if "://" in label_studio else f"http://{label_studio}")
    where = f"{address.netloc}{address.path}".rpartition("@")[2][:80]  # the id must survive
    return re.sub(r"[^a-z0-9]+", "-", f"{where}-{project[:39]}".lower()).strip("-")


@dataclass(frozen=True)
class Project:
    """What the store knows of a project of Label Studio.

    Attributes:
        key: name of its folder here.
        number: its id in Label Studio.
        project: ``<id>.<epoch>``, as Label Studio sends it.
        label_studio: the address of its Label Studio.
        label_config: the XML last seen.
        title: for people.
        target_accuracy: of shown labels, None for the server's default.
        minimum_depth: shallowest depth shown.
        maximum_depth: deepest depth shown, None for no limit.
        strict: the target holds for each level shown, not only on average.
        pinned: a person rolled back: do not go live with a new version by yourself.
    """

    key: str
    number: int
    project: str
    label_studio: str
    label_config: str
    title: str = ""
    target_accuracy: float | None = None
    minimum_depth: int = 1
    maximum_depth: int | None = None
    strict: bool = False
    pinned: bool = False

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The record that was saved; fields of other releases are passed over."""
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        return cls(**known)


class ModelStore:
    """Versions on a disk that servers and workers share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # Projects

    def projects(self) -> list[Project]:
        """All projects, by key; a record that cannot be read is logged and left out."""
        found = []
        for record in sorted(self.root.glob("projects/*/project.json")):
            try:
                found.append(self._read_project(record))
            except ModelStoreError as error:
                log.warning("project left out: %s", error)
        return found

    def project(self, key: str) -> Project | None:
        """The project's record, None if it has never called."""
        record = self._folder(key) / "project.json"
        return self._read_project(record) if record.exists() else None

    def save_project(self, project: Project) -> None:
        """Write the record, whole or not at all."""
        _write_json(self._folder(project.key) / "project.json", asdict(project))

    def register(self, project: Project) -> Project:
        """Remember what Label Studio says of a project and keep what people set here."""
        known = self.project(project.key)
        if known is not None:
            project = replace(
                known, label_config=project.label_config, title=project.title or known.title
            )
        if project != known:
            self.save_project(project)
        return project

    # Versions

    def versions(self, key: str) -> list[str]:
        """Names of the complete versions, oldest first."""
        folder = self._folder(key) / "versions"
        names = [path.parent.name for path in folder.glob("v*/manifest.json")]
        return sorted((name for name in names if VERSION_NAME.fullmatch(name)), key=_number)

    def manifest(self, key: str, version: str) -> dict[str, Any]:
        """The version's manifest.

        Raises:
            UnknownVersionError: there is no such version.
            ModelStoreError: it cannot be read, is of a format this release does not know, or was
                changed since it was published.
        """
        path = self._version(key, version) / "manifest.json"
        manifest = _read_json(path)
        if manifest.get("format") != FORMAT:
            raise ModelStoreError(
                f"{version} has manifest format {manifest.get('format')!r}, this release reads "
                f"{FORMAT}: install the release that wrote it, or train anew"
            )
        _check_seal(version, manifest)
        return manifest

    def weights(self, key: str, version: str) -> dict[str, Tensor]:
        """The version's tensors, their checksum verified before they are parsed.

        Raises:
            UnknownVersionError: there is no such version.
            ModelStoreError: the file is not the one that was published.
        """
        manifest = self.manifest(key, version)
        path = self._version(key, version) / "weights.safetensors"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ModelStoreError(
                f"cannot read the weights of {version}: {error.strerror}"
            ) from error
        digest = hashlib.sha256(data).hexdigest()
        published = str(manifest.get("weights_sha256"))
        if digest != published:
            raise ModelStoreError(
                f"the weights of {version} are not those published (sha256 {digest[:12]}, "
                f"expected {published[:12]}): restore the file or roll back"
            )
        return load_tensors(data)

    def publish(self, key: str, manifest: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
        """Write a new version and return its name; it is complete or it is not there.

        Two workers that publish at once get two names: the rename refuses a name that is taken.

        Raises:
            ModelStoreError: the store cannot be written.
        """
        folder = self._folder(key) / "versions"
        data = save_tensors({name: value.contiguous() for name, value in weights.items()})
        with _writable(folder):
            work = folder / _unused_name()
            work.mkdir(parents=True)
            _remove_leftovers(folder)
            try:
                _write_durably(work / "weights.safetensors", data)
                number = max((_number(name) for name in self._taken(key)), default=0)
                while True:
                    number += 1
                    full = {
                        **manifest,
                        "format": FORMAT,
                        "version": f"v{number}",
                        "published_at": time.time(),
                        "weights_sha256": hashlib.sha256(data).hexdigest(),
                        "weights_bytes": len(data),
                    }
                    _write_durably(work / "manifest.json", _json(_sealed(full)))
                    try:
                        work.rename(folder / f"v{number}")
                    except OSError:
                        if not (folder / f"v{number}").exists():
                            raise
                        continue
                    _sync_folder(folder)
                    return f"v{number}"
            finally:
                shutil.rmtree(work, ignore_errors=True)

    # What was learnt of a version since it was published

    def read_following(self, key: str, version: str) -> dict[str, Any] | None:
        """What `write_following` last wrote for the version, None if nothing.

        Nothing, too, where it was written for another version of that name.

        Raises:
            UnknownVersionError: there is no such complete version.
            ModelStoreError: the file is not whole, or of a format this release does not know.
        """
        path = self._following(key, version)
        try:
            data = _read_json(path)
        except UnknownVersionError:
            return None
        what = f"{key}/following/{path.name}"
        if data.get("format") != FORMAT:
            raise ModelStoreError(
                f"{what} has format {data.get('format')!r}, this release reads {FORMAT}"
            )
        following = data.get("following")
        if not isinstance(following, dict) or data.get("sha256") != _digest(following):
            raise ModelStoreError(f"{what} is not as it was written: it is made anew from labels")
        published = self.manifest(key, version).get("weights_sha256")
        return following if data.get("weights_sha256") == published else None

    def write_following(self, key: str, version: str, following: Mapping[str, Any]) -> None:
        """Replace what is kept beside a version, whole or not at all; the version stays as it is.

        Files of versions that are gone are removed.

        Args:
            key: whose version.
            version: its name.
            following: plain data.

        Raises:
            UnknownVersionError: there is no such complete version.
            ModelStoreError: the store cannot be written.
        """
        told = {
            "format": FORMAT,
            "weights_sha256": self.manifest(key, version).get("weights_sha256"),
            "sha256": _digest(following),
            "following": dict(following),
        }
        _write_json(self._following(key, version), told, indent=None)
        left = set(self._taken(key))
        for path in self._following(key, version).parent.glob("v*.json"):
            if path.stem not in left:
                path.unlink(missing_ok=True)

    def following_stamp(self, key: str, version: str) -> tuple[int, int, int] | None:
        """Changes whenever `write_following` wrote; None where it never did. Reads no file."""
        try:
            found = self._following(key, version).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    # Which pictures to ask for

    def read_order(self, key: str) -> dict[str, Any] | None:
        """What `write_order` last wrote for the project, None if nothing.

        Raises:
            ModelStoreError: the file cannot be read.
        """
        try:
            return _read_json(self._folder(key) / "order.json")
        except UnknownVersionError:
            return None

    def write_order(self, key: str, order: Mapping[str, Any]) -> None:
        """Replace which pictures are asked for, whole or not at all.

        Raises:
            ModelStoreError: the store cannot be written.
        """
        _write_json(self._folder(key) / "order.json", dict(order), indent=None)

    def order_stamp(self, key: str) -> tuple[int, int, int] | None:
        """Changes whenever `write_order` wrote; None where it never did. Reads no file."""
        try:
            found = (self._folder(key) / "order.json").stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    # The pointer

    def current(self, key: str) -> str | None:
        """The live version's name, None while untrained."""
        try:
            name = _read_json(self._folder(key) / "current.json").get("version")
        except UnknownVersionError:
            return None
        return name if isinstance(name, str) and VERSION_NAME.fullmatch(name) else None

    def point(self, key: str, version: str, *, reason: str) -> None:
        """Make a version live.

        Raises:
            UnknownVersionError: there is no such complete version.
            ModelStoreError: the store cannot be written.
        """
        folder = self._folder(key)
        self.manifest(key, version)  # before the lock: nothing is made for a version not there
        with self._pointer_held(key):
            self.manifest(key, version)  # it may have been deleted meanwhile
            before = None
            with contextlib.suppress(ModelStoreError):  # a damaged pointer is mended by this
                before = self.current(key)
            line = {"at": time.time(), "from": before, "to": version, "reason": reason}
            record = folder / "history.jsonl"
            with _writable(folder), record.open("a", encoding="utf-8") as history:
                # A line of its own, even if a crash cut the last one short.
                history.write(f"\n{json.dumps(line)}\n")
            _write_json(folder / "current.json", {"version": version})
        log.info("live project=%s version=%s reason=%s", key, version, reason)

    def history(self, key: str) -> list[dict[str, Any]]:
        """Moves of the pointer, oldest first."""
        path = self._folder(key) / "history.jsonl"
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ModelStoreError(f"cannot read {key}/{path.name}: {error.strerror}") from error
        moves = []
        for line in lines:
            with contextlib.suppress(ValueError):  # empty, or cut short by a crash
                moves.append(json.loads(line))
        return [move for move in moves if isinstance(move, dict) and {"from", "to"} <= move.keys()]

    def previous(self, key: str) -> str | None:
        """The version that was live before the current one and still exists.

        Going back twice goes back two versions: a move to a version that was live before undoes
        what came after it.
        """
        current, versions = self.current(key), set(self.versions(key))
        live: list[str] = []
        for move in self.history(key):
            if move["to"] in live:
                del live[live.index(move["to"]) + 1 :]
            else:
                live.append(str(move["to"]))
        before = live[: live.index(current)] if current in live else live
        return next((version for version in reversed(before) if version in versions), None)

    # What people do to a version

    def needed(self, key: str) -> dict[str, str]:
        """Versions that may not be deleted, each with the reason."""
        live, names = self.current(key), self.versions(key)
        found = {names[0]: f"{names[0]} is the only version"} if len(names) == 1 else {}
        if live is not None:
            if (parent := self.manifest(key, live).get("parent")) is not None:
                found[parent] = f"{parent} is what {live}, which is live, followed: the way back"
            found[live] = f"{live} is live: make another version live first"
        return found

    def delete(self, key: str, version: str) -> None:
        """Remove a version for ever; its name is not given again.

        A version that goes live in the same moment stays: one of the two comes first.

        Raises:
            UnknownVersionError: there is no such complete version.
            VersionInUseError: it is live, the parent of the live one, or the only one.
            ModelStoreError: the store cannot be written.
        """
        folder = self._version(key, version)
        manifest = folder / "manifest.json"
        if not manifest.exists():  # also one that is damaged may go
            raise UnknownVersionError(f"{version} does not exist in the model store")
        with self._pointer_held(key):
            if (why := self.needed(key).get(version)) is not None:
                raise VersionInUseError(why)
            _write_json(folder / "deleted.json", {"at": time.time()})
            with _writable(folder):
                manifest.unlink(missing_ok=True)  # from here on it is not there
                (folder / "weights.safetensors").unlink(missing_ok=True)
                for beside in (self._following(key, version), self._note(key, version)):
                    beside.unlink(missing_ok=True)
        log.info("deleted project=%s version=%s", key, version)

    def note(self, key: str, version: str) -> str:
        """What a person wrote about a version, "" if nothing that can be read.

        Raises:
            UnknownVersionError: that is no version's name.
        """
        path = self._note(key, version)
        try:
            text = _read_json(path).get("note")
        except UnknownVersionError:
            return ""
        except ModelStoreError as error:
            log.warning("note not told project=%s: %s", key, error)
            return ""
        return text if isinstance(text, str) else ""

    def write_note(self, key: str, version: str, text: str) -> None:
        """Replace the note beside a version; the version stays as it is.

        Control characters but line breaks go, and what is longer than ``NOTE_LENGTH``.

        Raises:
            UnknownVersionError: there is no such complete version.
            ModelStoreError: the store cannot be written.
        """
        if not (self._version(key, version) / "manifest.json").exists():
            raise UnknownVersionError(f"{version} does not exist in the model store")
        lines = text.replace("\r\n", "\n").replace("\r", "\n")
        plain = "".join(one for one in lines if one == "\n" or unicodedata.category(one)[0] != "C")
        _write_json(self._note(key, version), {"note": plain.strip()[:NOTE_LENGTH]})

    def archive(self, key: str, version: str) -> Iterator[bytes]:
        """A zip of manifest and weights, piece by piece; its files are opened before the first.

        A version that is deleted meanwhile still arrives whole.

        Raises:
            UnknownVersionError: there is no such complete version.
            ModelStoreError: it cannot be read.
        """
        made = float(self.manifest(key, version).get("published_at", 0))
        opened: list[tuple[str, IO[bytes]]] = []
        for name in ("manifest.json", "weights.safetensors"):
            try:
                opened.append((name, (self._version(key, version) / name).open("rb")))
            except OSError as error:
                for _, file in opened:
                    file.close()
                raise ModelStoreError(
                    f"cannot read {name} of {version}: {error.strerror}"
                ) from error
        return _zipped(version, opened, time.gmtime(made)[:6])

    def check_writable(self) -> None:
        """Write and remove a file.

        Raises:
            ModelStoreError: with the reason.
        """
        with _writable(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.root, prefix=".check-") as file:
                file.write(bytes(4096))  # an empty file would fit on a full disk
                file.flush()

    def _folder(self, key: str) -> Path:
        if not KEY.fullmatch(key):
            raise ModelStoreError(f"{key!r} is not a project key")
        return self.root / "projects" / key

    def _version(self, key: str, version: str) -> Path:
        if not VERSION_NAME.fullmatch(version):
            raise UnknownVersionError(f"{version!r} is not a version name: expected v1, v2, ...")
        return self._folder(key) / "versions" / version

    def _following(self, key: str, version: str) -> Path:
        if not VERSION_NAME.fullmatch(version):
            raise UnknownVersionError(f"{version!r} is not a version name: expected v1, v2, ...")
        return self._folder(key) / "following" / f"{version}.json"

    def _note(self, key: str, version: str) -> Path:
        if not VERSION_NAME.fullmatch(version):
            raise UnknownVersionError(f"{version!r} is not a version name: expected v1, v2, ...")
        return self._folder(key) / "notes" / f"{version}.json"

    @contextlib.contextmanager
    def _pointer_held(self, key: str) -> Iterator[None]:
        """Nobody else moves the pointer, or removes what it could point to, meanwhile."""
        folder = self._folder(key)
        with _writable(folder):
            lock = (folder / "pointer.lock").open("w")
        with lock:
            with _writable(folder):
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _taken(self, key: str) -> Iterator[str]:
        for path in (self._folder(key) / "versions").iterdir():
            if VERSION_NAME.fullmatch(path.name):
                yield path.name

    def _read_project(self, path: Path) -> Project:
        data = _read_json(path)
        try:
            return Project.from_json(data)
        except TypeError as error:
            raise ModelStoreError(
                f"the record of {path.parent.name} lacks fields: {error}"
            ) from error


class _Pieces:
    """A file that can only be written to, and gives what was written."""

    def __init__(self) -> None:
        self._kept = bytearray()

    def write(self, data: bytes, /) -> int:
        self._kept += data
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing is open."""

    def taken(self) -> bytes:
        data = bytes(self._kept)
        self._kept.clear()
        return data


def _zipped(
    folder: str, files: list[tuple[str, IO[bytes]]], when: tuple[int, ...]
) -> Iterator[bytes]:
    """A zip without compression (weights do not shrink), never held in memory; closes the files."""
    pieces = _Pieces()
    year, *rest = when
    with contextlib.ExitStack() as closing:
        for _, file in files:
            closing.enter_context(file)
        with zipfile.ZipFile(pieces, "w") as packed:
            for name, file in files:
                # A zip knows no time before 1980.
                info = zipfile.ZipInfo(f"{folder}/{name}", (max(1980, year), *rest))  # type: ignore[arg-type]
                info.external_attr = 0o644 << 16
                with packed.open(info, "w", force_zip64=True) as member:
                    while data := file.read(PIECE):
                        member.write(data)
                        yield pieces.taken()
        yield pieces.taken()


def _number(version: str) -> int:
    return int(version[1:])


def _json(data: object, indent: int | None = 1) -> bytes:
    return json.dumps(data, indent=indent, ensure_ascii=False).encode()


def _digest(data: Mapping[str, Any]) -> str:
    """Of plain data, however its file is laid out."""
    plain = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(plain.encode()).hexdigest()


def _sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """With a checksum over all that it says, as it will be read back."""
    plain: dict[str, Any] = json.loads(_json(manifest))
    return {**plain, SEAL: _digest(plain)}


def _check_seal(version: str, manifest: Mapping[str, Any]) -> None:
    """Refuse a manifest that does not say what was published.

    Versions that releases before the checksum wrote have none and are read as they are.
    """
    told = {name: value for name, value in manifest.items() if name != SEAL}
    if SEAL in manifest and manifest[SEAL] != _digest(told):
        raise ModelStoreError(
            f"the manifest of {version} is not the one published: it was edited or damaged since; "
            "restore the file or roll back"
        )
    if told.get("version") != version:
        raise ModelStoreError(
            f"the manifest of {version} is that of {str(told.get('version'))[:20]!r}: its folder "
            "was renamed or copied; restore it or roll back"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        known = f"{path.parent.name}/{path.name}"
        raise UnknownVersionError(f"{known} does not exist in the model store") from error
    except OSError as error:  # whose own text would name the whole path to whoever called
        why = f"cannot read {path.parent.name}/{path.name}: {error.strerror}"
        raise ModelStoreError(why) from error
    except (ValueError, RecursionError) as error:
        raise ModelStoreError(f"cannot read {path.parent.name}/{path.name}: {error}") from error
    if not isinstance(data, dict):
        raise ModelStoreError(f"{path.parent.name}/{path.name} does not hold an object")
    return data


def _write_json(path: Path, data: object, indent: int | None = 1) -> None:
    with _writable(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        work = path.parent / _unused_name()
        try:
            _write_durably(work, _json(data, indent))
            work.replace(path)
        finally:
            work.unlink(missing_ok=True)
        _sync_folder(path.parent)


def _remove_leftovers(folder: Path) -> None:
    """What publishers that were killed left; a day is longer than any of them writes."""
    for path in folder.glob(".new-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFTOVER_AGE:
                shutil.rmtree(path, ignore_errors=True)


def _unused_name() -> str:
    """For what is being written; not of ``tempfile``, whose files no other user could read."""
    return f".new-{secrets.token_hex(8)}"


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelStoreError(
            f"cannot write to the model store at {folder}: {error.strerror or error}"
        ) from error
