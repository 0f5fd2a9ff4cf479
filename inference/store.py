"""The model store: projects, each with immutable versions and one pointer, in a folder or bucket.

``projects/<key>/project.json``             what is known of the project (changes)
``projects/<key>/versions/v7/manifest.json``  the version: tree, network, figures (never changes)
``projects/<key>/versions/v7/weights.safetensors``
``projects/<key>/current.json``             the pointer, replaced in one rename
``projects/<key>/history.jsonl``            every move of the pointer, with its reason
``projects/<key>/following/v7.json``        how v7 has done since: judged answers, the rule in force
``projects/<key>/notes/v7.json``            what a person wrote about v7
``projects/<key>/order.json``               which images are asked for next, and why (changes)
``projects/<key>/versions/v7/deleted.json``   v7 was deleted: its name is never given again

A version is written under a temporary name and renamed: a reader finds all of it or nothing.
"""

import contextlib
import hashlib
import json
import logging
import re
import tempfile
import time
import unicodedata
import zipfile
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Final, Self
from urllib.parse import urlsplit

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from inference.errors import ModelStoreError, UnknownVersionError, VersionInUseError
from inference.files import Files, FolderFiles
from inference.manifest import FORMAT, Manifest, digest

log = logging.getLogger(__name__)

#: Characters of a note; more is cut.
NOTE_LENGTH = 1000

#: Bytes of an archive that are handed on at once.
PIECE = 1 << 20

VERSION_NAME = re.compile(r"v[0-9]{1,9}")
#: Stands where a version's name would, before there is one.
UNTRAINED: Final = "untrained"

# How a project stands in Label Studio, as last seen.
#: It is there, and this backend is one of its backends.
CONNECTED: Final = "connected"
#: Something called in its name, and Label Studio has not been asked yet.
UNCONFIRMED: Final = "unconfirmed"
#: It is there, without this backend.
DISCONNECTED: Final = "disconnected"
#: It is not there any more.
GONE: Final = "gone"
KEY = re.compile(r"[a-z0-9][a-z0-9.-]{0,120}")


def project_key(label_studio: str, project: str) -> str:
    """Return a project's folder name: its Label Studio's address, its id, the second it was made.

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
    """A project of Label Studio, as the store knows it.

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
        state: how it stands in Label Studio: connected, unconfirmed, disconnected or gone.
        since: when that was first seen, seconds since the epoch; 0 where nobody noted it.
        backend: the address at which this backend was last seen among the project's.
        hostname: the address that Label Studio gave as its own at `/setup`, "" if none.
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
    state: str = CONNECTED
    since: float = 0.0
    backend: str = ""
    hostname: str = ""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read a record that was saved; fields of other releases are passed over."""
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        return cls(**known)


class ModelStore:
    """Versions in a place that servers and workers share."""

    def __init__(self, files: Files | Path) -> None:
        """Nothing is read or written yet.

        Args:
            files: the place; a path is a folder on a disk.
        """
        self.files: Files = FolderFiles(files) if isinstance(files, Path) else files

    @property
    def root(self) -> Path:
        """The folder.

        Raises:
            ModelStoreError: the store is in a bucket.
        """
        if not isinstance(self.files, FolderFiles):
            raise ModelStoreError(f"{self.files.where} is no folder on this machine")
        return self.files.root

    # Projects

    def projects(self) -> list[Project]:
        """List all projects, by key; a record that cannot be read is logged and left out."""
        found = []
        for key in sorted(self._names("projects")):
            try:
                project = self.project(key) if KEY.fullmatch(key) else None
            except ModelStoreError as error:
                log.warning("project left out: %s", error)
                continue
            if project is not None:
                found.append(project)
        return found

    def project(self, key: str) -> Project | None:
        """Read the project's record, None if it has never called."""
        try:
            data = self._read(f"{_folder(key)}/project.json")
        except UnknownVersionError:
            return None
        try:
            return Project.from_json(data)
        except TypeError as error:
            raise ModelStoreError(f"the record of {key} lacks fields: {error}") from error

    def save_project(self, project: Project) -> None:
        """Write the record atomically."""
        self._write(f"{_folder(project.key)}/project.json", asdict(project))

    def register(self, project: Project) -> Project:
        """Remember what Label Studio says of a project and keep what people set here."""
        known = self.project(project.key)
        if known is not None:
            project = replace(
                known,
                label_config=project.label_config,
                title=project.title or known.title,
                hostname=project.hostname or known.hostname,
            )
        if project != known:
            self.save_project(project)
        return project

    def note_state(self, key: str, state: str, backend: str = "") -> Project | None:
        """Note how a project stands in Label Studio; return its record, None where it has none.

        Args:
            key: the project's.
            state: one of the four above.
            backend: where this backend was seen registered; what was noted before stays without it.

        Raises:
            ModelStoreError: the store cannot be written.
        """
        known = self.project(key)
        if known is None or (known.state, known.backend) == (state, backend or known.backend):
            return known
        since = known.since if known.state == state else time.time()
        now = replace(known, state=state, since=since, backend=backend or known.backend)
        self.save_project(now)
        return now

    def forget(self, key: str) -> None:
        """Remove a project with all its versions, for good.

        Raises:
            ModelStoreError: the store cannot be written.
        """
        with self._writing():
            self.files.remove(f"{_folder(key)}/project.json")  # from here on it is not there
            self.files.remove_folder(_folder(key))
        log.info("forgotten project=%s", key)

    # Versions

    def names(self, key: str) -> set[str]:
        """List every name that predictions of this project may bear, deleted versions' too."""
        moved = {
            str(name) for move in self.history(key) for name in (move["from"], move["to"]) if name
        }
        return {UNTRAINED, *self._taken(key)} | moved

    def versions(self, key: str) -> list[str]:
        """List the names of the complete versions, oldest first."""
        taken = sorted(self._taken(key), key=_number)
        return [name for name in taken if self._exists(f"{_version(key, name)}/manifest.json")]

    def manifest(self, key: str, version: str) -> Manifest:
        """Read the version's manifest.

        Raises:
            UnknownVersionError: there is no such version.
            ModelStoreError: it cannot be read, is of a format this release does not know, or was
                changed since it was published.
        """
        return Manifest.from_json(self._read(f"{_version(key, version)}/manifest.json"), version)

    def weights(self, key: str, version: str) -> dict[str, Tensor]:
        """Read the version's tensors; their checksum is verified before they are parsed.

        Raises:
            UnknownVersionError: there is no such version.
            ModelStoreError: the file is not the one that was published.
        """
        manifest = self.manifest(key, version)
        try:
            data = self.files.read(f"{_version(key, version)}/weights.safetensors")
        except OSError as error:
            raise ModelStoreError(
                f"cannot read the weights of {version}: {error.strerror}"
            ) from error
        found = hashlib.sha256(data).hexdigest()
        if found != manifest.weights_sha256:
            raise ModelStoreError(
                f"the weights of {version} are not those published (sha256 {found[:12]}, expected "
                f"{str(manifest.weights_sha256)[:12]}): restore the file or roll back"
            )
        return load_tensors(data)

    def publish(self, key: str, manifest: Manifest, weights: Mapping[str, Tensor]) -> str:
        """Write a new version and return its name; it is complete or it is not there.

        Two workers that publish at once get two names: one that is taken is refused.

        Raises:
            ModelStoreError: the store cannot be written.
        """
        data = save_tensors({name: value.contiguous() for name, value in weights.items()})
        number = max(map(_number, self._taken(key)), default=0)
        while True:
            number += 1
            full = replace(
                manifest,
                version=f"v{number}",
                published_at=time.time(),
                weights_sha256=hashlib.sha256(data).hexdigest(),
                weights_bytes=len(data),
            )
            files = {"weights.safetensors": data, "manifest.json": _json(full.to_json())}
            with self._writing(), contextlib.suppress(FileExistsError):
                self.files.place(_version(key, f"v{number}"), files)
                return f"v{number}"

    # What was learnt of a version since it was published

    def read_following(self, key: str, version: str) -> dict[str, Any] | None:
        """Read what `write_following` last wrote for the version, None if nothing.

        Nothing, too, where it was written for another version of that name.

        Raises:
            UnknownVersionError: there is no such complete version.
            ModelStoreError: the file is not whole, or of a format this release does not know.
        """
        name = _following(key, version)
        try:
            data = self._read(name)
        except UnknownVersionError:
            return None
        what = f"{key}/following/{version}.json"
        if data.get("format") != FORMAT:
            raise ModelStoreError(
                f"{what} has format {data.get('format')!r}, this release reads {FORMAT}"
            )
        following = data.get("following")
        if not isinstance(following, dict) or data.get("sha256") != digest(following):
            raise ModelStoreError(f"{what} is not as it was written: it is made again from labels")
        published = self.manifest(key, version).weights_sha256
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
        data = {
            "format": FORMAT,
            "weights_sha256": self.manifest(key, version).weights_sha256,
            "sha256": digest(following),
            "following": dict(following),
        }
        self._write(_following(key, version), data, indent=None)
        left = {f"{name}.json" for name in self._taken(key)}
        folder = f"{_folder(key)}/following"
        with self._writing():
            for name in set(self._names(folder)) - left:
                self.files.remove(f"{folder}/{name}")

    def following_stamp(self, key: str, version: str) -> Hashable | None:
        """Return what changes with each `write_following`; None where there was none."""
        return self._stamp(_following(key, version))

    # The order in which to ask

    def read_order(self, key: str) -> dict[str, Any] | None:
        """Read what `write_order` last wrote for the project, None if nothing.

        Raises:
            ModelStoreError: the file cannot be read.
        """
        try:
            return self._read(f"{_folder(key)}/order.json")
        except UnknownVersionError:
            return None

    def write_order(self, key: str, order: Mapping[str, Any]) -> None:
        """Replace which images are asked for, atomically.

        Raises:
            ModelStoreError: the store cannot be written.
        """
        self._write(f"{_folder(key)}/order.json", dict(order), indent=None)

    def order_stamp(self, key: str) -> Hashable | None:
        """Return what changes with each `write_order`; None where there was none."""
        return self._stamp(f"{_folder(key)}/order.json")

    # The pointer

    def current(self, key: str) -> str | None:
        """Read the live version's name, None while untrained."""
        try:
            name = self._read(f"{_folder(key)}/current.json").get("version")
        except UnknownVersionError:
            return None
        return name if isinstance(name, str) and VERSION_NAME.fullmatch(name) else None

    def point(self, key: str, version: str, *, reason: str) -> None:
        """Make a version live.

        Raises:
            UnknownVersionError: there is no such complete version.
            ModelStoreError: the store cannot be written.
        """
        self.manifest(key, version)  # before the lock: nothing is made for a version not there
        with self._pointer_held(key):
            self.manifest(key, version)  # it may have been deleted meanwhile
            before = None
            with contextlib.suppress(ModelStoreError):  # this repairs a damaged pointer
                before = self.current(key)
            line = {"at": time.time(), "from": before, "to": version, "reason": reason}
            with self._writing():  # a line of its own, even if a crash cut the last one short
                record = f"{_folder(key)}/history.jsonl"
                self.files.append(record, f"\n{json.dumps(line)}\n".encode())
            self._write(f"{_folder(key)}/current.json", {"version": version})
        log.info("live project=%s version=%s reason=%s", key, version, reason)

    def history(self, key: str) -> list[dict[str, Any]]:
        """List the moves of the pointer, oldest first."""
        try:
            data = self.files.read(f"{_folder(key)}/history.jsonl")
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ModelStoreError(f"cannot read {key}/history.jsonl: {error.strerror}") from error
        lines = data.decode(errors="replace").splitlines()
        moves = []
        for line in lines:
            with contextlib.suppress(ValueError):  # empty, or cut short by a crash
                moves.append(json.loads(line))
        return [move for move in moves if isinstance(move, dict) and {"from", "to"} <= move.keys()]

    def previous(self, key: str) -> str | None:
        """Return the version to roll back to: live before the current one, there, and able to run.

        Going back twice goes back two versions: a move to a version that was live before undoes
        what came after it.
        """
        current = self.current(key)
        live: list[str] = []
        for move in self.history(key):
            if move["to"] in live:
                del live[live.index(move["to"]) + 1 :]
            else:
                live.append(str(move["to"]))
        before = live[: live.index(current)] if current in live else live
        return next((version for version in reversed(before) if self._runs(key, version)), None)

    def _runs(self, key: str, version: str) -> bool:
        """Tell whether a version is there, readable, and of a release whose heads run here."""
        try:
            return self.manifest(key, version).runs_here
        except ModelStoreError:
            return False

    # What people do to a version

    def needed(self, key: str) -> dict[str, str]:
        """List versions that may not be deleted, each with the reason."""
        live, names = self.current(key), self.versions(key)
        found = {names[0]: f"{names[0]} is the only version"} if len(names) == 1 else {}
        if live is not None:
            if (parent := self.manifest(key, live).parent) is not None:
                found[parent] = f"{parent} is what {live}, which is live, followed: the way back"
            found[live] = f"{live} is live: make another version live first"
        return found

    def delete(self, key: str, version: str) -> None:
        """Remove a version for good; its name is not given again.

        A version that goes live in the same moment stays: one of the two comes first.

        Raises:
            UnknownVersionError: there is no such complete version.
            VersionInUseError: it is live, the parent of the live one, or the only one.
            ModelStoreError: the store cannot be written.
        """
        folder = _version(key, version)
        if not self._exists(f"{folder}/manifest.json"):  # also one that is damaged may go
            raise UnknownVersionError(f"{version} does not exist in the model store")
        with self._pointer_held(key):
            if (why := self.needed(key).get(version)) is not None:
                raise VersionInUseError(why)
            self._write(f"{folder}/deleted.json", {"at": time.time()})
            with self._writing():
                self.files.remove(f"{folder}/manifest.json")  # from here on it is not there
                self.files.remove(f"{folder}/weights.safetensors")
                for beside in (_following(key, version), _note(key, version)):
                    self.files.remove(beside)
        log.info("deleted project=%s version=%s", key, version)

    def note(self, key: str, version: str) -> str:
        """Read what a person wrote about a version, "" if nothing that can be read.

        Raises:
            UnknownVersionError: that is no version's name.
        """
        name = _note(key, version)
        try:
            text = self._read(name).get("note")
        except UnknownVersionError:
            return ""
        except ModelStoreError as error:
            log.warning("note not read project=%s: %s", key, error)
            return ""
        return text if isinstance(text, str) else ""

    def write_note(self, key: str, version: str, text: str) -> None:
        """Replace the note beside a version; the version stays as it is.

        Control characters but line breaks go, and what is longer than ``NOTE_LENGTH``.

        Raises:
            UnknownVersionError: there is no such complete version.
            ModelStoreError: the store cannot be written.
        """
        if not self._exists(f"{_version(key, version)}/manifest.json"):
            raise UnknownVersionError(f"{version} does not exist in the model store")
        lines = text.replace("\r\n", "\n").replace("\r", "\n")
        plain = "".join(one for one in lines if one == "\n" or unicodedata.category(one)[0] != "C")
        self._write(_note(key, version), {"note": plain.strip()[:NOTE_LENGTH]})

    def archive(self, key: str, version: str) -> Iterator[bytes]:
        """Pack manifest and weights into a zip, and return it piece by piece.

        All of it is read before the first piece: a version deleted meanwhile still arrives whole.

        Raises:
            UnknownVersionError: there is no such complete version.
            ModelStoreError: it cannot be read.
        """
        year, *rest = time.gmtime(self.manifest(key, version).published_at)[:6]
        packed = tempfile.SpooledTemporaryFile(8 * PIECE)  # noqa: SIM115 - closed when it is read
        try:
            with zipfile.ZipFile(packed, "w") as archive:  # stored: weights do not shrink
                for name in ("manifest.json", "weights.safetensors"):
                    # A zip knows no time before 1980.
                    info = zipfile.ZipInfo(f"{version}/{name}", (max(1980, year), *rest))  # type: ignore[arg-type]
                    info.external_attr = 0o644 << 16
                    archive.writestr(info, self.files.read(f"{_version(key, version)}/{name}"))
        except OSError as error:
            packed.close()
            raise ModelStoreError(f"cannot pack {version}: {error.strerror}") from error
        packed.seek(0)
        return _pieces(packed)

    def check_writable(self) -> None:
        """Write and remove a file.

        Raises:
            ModelStoreError: with the reason.
        """
        with self._writing():
            self.files.check()

    @contextlib.contextmanager
    def _pointer_held(self, key: str) -> Iterator[None]:
        """Keep everybody else from moving the pointer or removing what it could point to."""
        with contextlib.ExitStack() as held:
            with self._writing():
                held.enter_context(self.files.lock(_folder(key)))
            yield

    def _taken(self, key: str) -> list[str]:
        """List names of versions that are there, are being written, or were."""
        return [name for name in self._names(f"{_folder(key)}/versions") if _is_version(name)]

    def _names(self, folder: str) -> list[str]:
        try:
            return self.files.names(folder)
        except OSError as error:
            raise ModelStoreError(f"cannot list {folder}: {error.strerror}") from error

    def _exists(self, name: str) -> bool:
        try:
            return self.files.exists(name)
        except OSError as error:
            raise ModelStoreError(f"cannot look for {name}: {error.strerror}") from error

    def _stamp(self, name: str) -> Hashable | None:
        try:
            return self.files.stamp(name)
        except OSError:
            return None

    def _read(self, name: str) -> dict[str, Any]:
        shown = "/".join(name.split("/")[-2:])
        try:
            data = json.loads(self.files.read(name))
        except FileNotFoundError as error:
            raise UnknownVersionError(f"{shown} does not exist in the model store") from error
        except OSError as error:  # whose own text would name the whole path to whoever called
            raise ModelStoreError(f"cannot read {shown}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise ModelStoreError(f"cannot read {shown}: {error}") from error
        if not isinstance(data, dict):
            raise ModelStoreError(f"{shown} does not hold an object")
        return data

    def _write(self, name: str, data: object, indent: int | None = 1) -> None:
        with self._writing():
            self.files.write(name, _json(data, indent))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ModelStoreError(
                f"cannot write to the model store at {self.files.where}: {error.strerror or error}"
            ) from error


def _folder(key: str) -> str:
    if not KEY.fullmatch(key):
        raise ModelStoreError(f"{key!r} is not a project key")
    return f"projects/{key}"


def _is_version(name: str) -> bool:
    return VERSION_NAME.fullmatch(name) is not None


def _version(key: str, version: str) -> str:
    return f"{_folder(key)}/versions/{_checked(version)}"


def _following(key: str, version: str) -> str:
    return f"{_folder(key)}/following/{_checked(version)}.json"


def _note(key: str, version: str) -> str:
    return f"{_folder(key)}/notes/{_checked(version)}.json"


def _checked(version: str) -> str:
    if not _is_version(version):
        raise UnknownVersionError(f"{version!r} is not a version name: expected v1, v2, ...")
    return version


def _pieces(packed: IO[bytes]) -> Iterator[bytes]:
    with packed:
        while data := packed.read(PIECE):
            yield data


def _number(version: str) -> int:
    return int(version[1:])


def _json(data: object, indent: int | None = 1) -> bytes:
    return json.dumps(data, indent=indent, ensure_ascii=False).encode()
