"""Files of the model store: in a folder that processes share, or in a bucket.

Names are relative, with slashes. What can go wrong is an `OSError`: `FileNotFoundError` for what is
not there, `FileExistsError` for what may not be replaced.
"""

import contextlib
import fcntl
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol

from inference.atomic_write import UNFINISHED, sync, unused_name, write_atomic

#: Seconds after which what a killed process left half written is removed.
LEFTOVER_AGE: Final = 24 * 3600

#: Seconds for which a bucket's small files are taken to be as they were read. A new version is
#: noticed so much later, and a server that is asked often does not ask as often.
FRESH: Final = 1.0

#: Marks that a folder's name is taken, before its files are there.
_CLAIM: Final = "claimed"
_PROBE: Final = ".check-"


class Files(Protocol):
    """Files by name, each whole or not there."""

    @property
    def where(self) -> str:
        """For people: the folder, or the bucket's address without credentials."""

    def read(self, name: str) -> bytes:
        """Read a file's bytes."""

    def write(self, name: str, data: bytes) -> None:
        """Make or replace a file, whole or not at all."""

    def append(self, name: str, data: bytes) -> None:
        """Add to a file's end. The caller holds a lock."""

    def place(self, folder: str, files: Mapping[str, bytes]) -> None:
        """Make a folder of files; its last file is there only if all of them are.

        Raises:
            FileExistsError: the name is taken, or was once.
        """

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def remove_folder(self, folder: str) -> None:
        """Remove a folder and all that is in it, if it is there."""

    def exists(self, name: str) -> bool:
        """Tell whether the file is there."""
        return self.stamp(name) is not None

    def names(self, folder: str) -> list[str]:
        """List a folder; nothing if there is no such folder."""

    def walk(self, folder: str) -> list[str]:
        """List the names of all files below a folder, whole ones only."""

    def stamp(self, name: str) -> Hashable | None:
        """Return what changes with each write; None where there is no file. Does not read it."""

    def lock(self, folder: str) -> AbstractContextManager[None]:
        """Keep everybody else from holding this lock of the folder."""

    def check(self) -> None:
        """Write something and remove it."""


class FolderFiles(Files):
    """A folder on a disk. What is written is on the disk when the call returns."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def where(self) -> str:
        """The folder."""
        return str(self.root)

    def read(self, name: str) -> bytes:
        """See `Files`."""
        try:
            return (self.root / name).read_bytes()
        except NotADirectoryError as error:
            raise FileNotFoundError(*error.args) from error

    def write(self, name: str, data: bytes) -> None:
        """See `Files`."""
        write_atomic(self.root / name, data)

    def append(self, name: str, data: bytes) -> None:
        """See `Files`."""
        with (self.root / name).open("ab") as file:
            file.write(data)

    def place(self, folder: str, files: Mapping[str, bytes]) -> None:
        """See `Files`: written beside its place and renamed, which refuses a name that is taken."""
        place = self.root / folder
        work = unused_name(place.parent)
        work.mkdir(parents=True)
        _remove_leftovers(place.parent)
        try:
            for name, data in files.items():
                (work / name).write_bytes(data)
                sync(work / name)
            try:
                work.rename(place)
            except OSError as error:
                if place.exists():
                    raise FileExistsError(f"{folder} is taken") from error
                raise
            sync(place.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def remove(self, name: str) -> None:
        """See `Files`."""
        (self.root / name).unlink(missing_ok=True)

    def remove_folder(self, folder: str) -> None:
        """See `Files`."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.root / folder)

    def names(self, folder: str) -> list[str]:
        """See `Files`."""
        try:
            return [path.name for path in (self.root / folder).iterdir() if _is_whole(path.name)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def walk(self, folder: str) -> list[str]:
        """See `Files`; locks are left out."""
        found = []
        for path in (self.root / folder).rglob("*"):
            inside = path.relative_to(self.root)
            if path.is_file() and path.suffix != ".lock" and all(map(_is_whole, inside.parts)):
                found.append(inside.as_posix())
        return sorted(found)

    def stamp(self, name: str) -> Hashable | None:
        """See `Files`."""
        try:
            found = (self.root / name).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    @contextlib.contextmanager
    def lock(self, folder: str) -> Iterator[None]:
        """See `Files`; it is let go when its holder dies."""
        with (self.root / folder / "pointer.lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield

    def check(self) -> None:
        """See `Files`."""
        self.root.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.root, prefix=_PROBE) as file:
            file.write(bytes(4096))  # an empty file would fit on a full disk
            file.flush()


class BucketFiles(Files):
    """A bucket, or whatever else fsspec opens by an address and can refuse to replace a file.

    A folder is claimed by a file that is made only if it is not there; S3, Google Cloud Storage and
    Azure do that in one step. Locks are somebody else's: workers and servers share a Redis.
    """

    def __init__(self, url: str, lock: Callable[[str], AbstractContextManager[Any]]) -> None:
        """Connects to nothing yet.

        Args:
            url: like ``s3://bucket/folder``. Credentials are where the storage's own library looks
                for them (for S3: AWS_ACCESS_KEY_ID, ..., or the machine's role).
            lock: the lock of that name, for all processes that share the bucket.
        """
        self._url = url.rstrip("/")
        self._lock = lock
        self._opening = threading.Lock()
        self._opened: tuple[Any, str] | None = None
        self._known: dict[tuple[str, str], tuple[float, Any]] = {}

    @property
    def where(self) -> str:
        """The address."""
        return self._url

    def read(self, name: str) -> bytes:
        """See `Files`."""
        found: bytes = self._fresh("read", name, lambda fs, path: fs.cat_file(path))
        return found

    def write(self, name: str, data: bytes) -> None:
        """See `Files`."""
        self._do(name, lambda fs, path: fs.pipe_file(path, data))

    def append(self, name: str, data: bytes) -> None:
        """See `Files`: written again, which the lock makes safe."""
        self._known.clear()  # what others added meanwhile
        try:
            before = self.read(name)
        except FileNotFoundError:
            before = b""
        self.write(name, before + data)

    def place(self, folder: str, files: Mapping[str, bytes]) -> None:
        """See `Files`. Who dies in the middle leaves a name that is never given again."""
        self._do(f"{folder}/{_CLAIM}", lambda fs, path: fs.pipe_file(path, b"", mode="create"))
        for name, data in files.items():
            self.write(f"{folder}/{name}", data)

    def remove(self, name: str) -> None:
        """See `Files`."""
        with contextlib.suppress(FileNotFoundError):
            self._do(name, lambda fs, path: fs.rm_file(path))

    def remove_folder(self, folder: str) -> None:
        """See `Files`."""
        with contextlib.suppress(FileNotFoundError):
            self._do(folder, lambda fs, path: fs.rm(path, recursive=True))

    def names(self, folder: str) -> list[str]:
        """See `Files`."""
        try:
            found = self._fresh("names", folder, lambda fs, path: fs.ls(path, detail=False))
        except FileNotFoundError:
            return []
        names = {str(one).rstrip("/").rpartition("/")[2] for one in found}
        return sorted(names - {""})

    def walk(self, folder: str) -> list[str]:
        """See `Files`; claims are left out."""
        found = self._do(folder, lambda fs, path: fs.find(path), change=False)
        start = len(self._open()[1]) + 1
        names = (str(one).lstrip("/")[start:] for one in found)
        return sorted(name for name in names if not name.endswith(f"/{_CLAIM}"))

    def stamp(self, name: str) -> Hashable | None:
        """See `Files`."""
        try:
            info = self._fresh("stamp", name, lambda fs, path: fs.info(path))
        except FileNotFoundError:
            return None
        known = ("ETag", "etag", "md5", "generation", "LastModified", "mtime", "created", "size")
        return tuple(str(info[key]) for key in known if key in info)

    @contextlib.contextmanager
    def lock(self, folder: str) -> Iterator[None]:
        """See `Files`."""
        with self._lock(f"{self._url}/{folder}"):
            self._known.clear()  # what was read before others let go may be old
            yield

    def check(self) -> None:
        """See `Files`; also that it refuses to make a file that is there."""
        name = f"{_PROBE}{secrets.token_hex(8)}"
        create: Callable[[Any, str], None] = lambda fs, path: fs.pipe_file(path, b"", mode="create")  # noqa: E731
        self._do(name, create)
        try:
            self._do(name, create)
        except FileExistsError:
            return
        finally:
            self.remove(name)
        raise OSError(0, "this storage replaces files that it was told not to")

    def _fresh(self, kind: str, name: str, ask: Callable[[Any, str], Any]) -> Any:  # noqa: ANN401
        """Ask, unless the answer is no older than ``FRESH`` seconds."""
        known = self._known.get((kind, name))
        if known is not None and time.monotonic() - known[0] < FRESH:
            if isinstance(known[1], FileNotFoundError):
                raise known[1]
            return known[1]
        if len(self._known) > 1000:
            self._known.clear()
        at = time.monotonic()
        try:
            found = self._do(name, ask, change=False)
        except FileNotFoundError as error:
            self._known[kind, name] = (at, error.with_traceback(None))
            raise
        if not isinstance(found, bytes) or len(found) < 1 << 20:
            self._known[kind, name] = (at, found)
        return found

    def _do(self, name: str, work: Callable[[Any, str], Any], *, change: bool = True) -> Any:  # noqa: ANN401
        """Do the work; raise an `OSError` whatever the library under it raises."""
        try:
            fs, root = self._open()
            return work(fs, f"{root}/{name}" if name else root)
        except OSError as error:
            if error.strerror:
                raise
            raise type(error)(error.errno or 0, str(error) or type(error).__name__) from error
        except Exception as error:
            raise OSError(0, f"{type(error).__name__}: {error}"[:300]) from error
        finally:
            if change:
                self._known.clear()

    def _open(self) -> tuple[Any, str]:
        with self._opening:
            if self._opened is None:
                import fsspec  # and the library for the address: seconds that folders need not wait

                fs, root = fsspec.url_to_fs(self._url, use_listings_cache=False)
                self._opened = fs, str(root).strip("/")
            return self._opened


def _is_whole(name: str) -> bool:
    return not name.startswith(".")


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed publishers left; a day is longer than any of them writes."""
    for path in folder.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFTOVER_AGE:
                shutil.rmtree(path, ignore_errors=True)
