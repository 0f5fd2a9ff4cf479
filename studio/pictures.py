"""From what a task says about its picture to the picture's bytes.

A task's picture is a path of Label Studio's, a file in cloud storage that Label Studio can reach,
or any web address.
"""

import base64
import hashlib
import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Final, Self
from urllib.parse import parse_qs, unquote

from urllib3.util import parse_url

from studio.addresses import AddressRules, Origin, Resolver, plain_host, shown, system_resolver
from studio.download import Downloader
from studio.errors import PictureError, StudioError, StudioUnavailableError
from studio.guard import PictureUnavailableError
from studio.limits import PictureLimits

__all__ = ["Picture", "PictureFetcher", "PictureLimits", "PictureUnavailableError"]

_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)
_WEB: Final = re.compile(r"https?://", re.IGNORECASE)
_CLOUD_SCHEMES: Final = frozenset({"s3", "gs", "azure-blob"})
#: What Label Studio serves pictures under. The token goes nowhere else, on its own origin either.
_PICTURE_PATH: Final = re.compile(
    r"/(?:data/|storage-data/|(?:tasks|projects)/[0-9]+/(?:presign|resolve)/)"
)
_LOCAL_FILES: Final = "/data/local-files/"


@dataclass(frozen=True)
class Picture:
    """A picture as it was fetched, not yet decoded.

    Attributes:
        digest: SHA-256 of ``data`` in hex: the picture's name in every cache.
        data: the file's bytes.
    """

    digest: str
    data: bytes


@dataclass(frozen=True)
class _Site:
    """Where Label Studio is: its origin, and the path it lives under ("" for the top)."""

    origin: Origin
    prefix: str
    url: str  # origin and prefix as one text, without a slash at the end

    @classmethod
    def at(cls, url: str) -> Self:
        """The Label Studio at this address."""
        try:
            origin = Origin.of(url)
        except PictureError as error:
            raise ValueError(
                f"Label Studio's address must be a web address: {error.reason}"
            ) from error
        url = url.partition("#")[0].partition("?")[0].rstrip("/")
        return cls(origin, (parse_url(url).path or "").rstrip("/"), url)


class PictureFetcher:
    """Fetches the pictures of tasks. Threads may share one; close it, or use it in a ``with``."""

    def __init__(  # noqa: PLR0913 - each is a setting of its own, all but two with a default
        self,
        label_studio_url: str | None,
        authorization: Callable[[], Mapping[str, str]] | None,
        limits: PictureLimits,
        *,
        allow_private: bool = False,
        allowed_hosts: frozenset[str] = frozenset(),
        local_files: Mapping[str, Path] | None = None,
        resolve: Resolver = system_resolver,
    ) -> None:
        """Connects to nothing yet.

        Args:
            label_studio_url: Label Studio's address as this machine reaches it, or None if there is
                none. Its own origin (scheme, host, port) may be a private address.
            authorization: gives the headers that prove who we are to Label Studio; asked for each
                request, so it may renew a token. They are sent to the paths where Label Studio
                serves pictures and nowhere else.
            limits: what one picture may cost.
            allow_private: let any host have a private address. For closed networks only.
            allowed_hosts: if given, pictures come from these hosts and Label Studio only, and a
                host named here may have a private address. Empty: from any public host.
            local_files: folders to read ``/data/local-files/?d=...`` from without asking Label
                Studio: the beginning of ``d`` ("" for all) -> the folder that holds what follows.
            resolve: looks host names up.

        Raises:
            ValueError: ``label_studio_url`` is not a web address.
        """
        self._site = None if label_studio_url is None else _Site.at(label_studio_url)
        self._authorization = authorization
        self._limits = limits
        self._local_files = {
            PurePosixPath(start).parts: folder for start, folder in (local_files or {}).items()
        }
        hosts = frozenset(plain_host(host) for host in allowed_hosts)
        rules = AddressRules(
            self._site.origin if self._site else None, allow_private, hosts, resolve
        )
        self._downloader = Downloader(rules, limits, self._authorize)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the kept connections."""
        self._downloader.close()

    def fetch(self, ref: str, *, task_id: int | None = None) -> Picture:
        """The picture a task names.

        Args:
            ref: what stands in the task's data: ``/data/...``, ``http(s)://...``, or a file in
                cloud storage (``s3://``, ``gs://``, ``azure-blob://``).
            task_id: the task; needed for cloud storage, which Label Studio opens for a task only.

        Raises:
            PictureError: the picture cannot be had; ``reason`` says why.
            PictureUnavailableError: it cannot be had now; trying again later may help.
        """
        ref = ref.strip()
        path = self._own_path(ref)
        file = None if path is None else self._mounted(path)
        if file is not None:
            data = self._read(*file)
        else:
            data = self._downloader.download(self._url(ref, path, task_id))
        if not data:
            raise PictureError("the file is empty")
        return Picture(hashlib.sha256(data).hexdigest(), data)

    def _own_path(self, ref: str) -> str | None:
        """Path and query, without prefix, if Label Studio serves pictures there, else None."""
        prefix = self._site.prefix if self._site else ""
        if ref.startswith("/"):
            return _picture_path(ref, prefix)
        if self._site and _WEB.match(ref) and Origin.of(ref) == self._site.origin:
            return _picture_path(parse_url(ref).request_uri, prefix)
        return None

    def _url(self, ref: str, path: str | None, task_id: int | None) -> str:
        """The web address to ask."""
        if path is not None:
            return self._on_site(path)
        found = _SCHEME.match(ref)
        scheme = found[1].lower() if found else ""
        if scheme in ("http", "https"):
            return ref
        if scheme in _CLOUD_SCHEMES:
            if task_id is None:
                raise PictureError(
                    f"{shown(ref)} can be opened for a task only, and no task is given"
                )
            coded = base64.urlsafe_b64encode(ref.encode()).decode().replace("=", "%3D")
            return self._on_site(f"/tasks/{task_id}/presign/?fileuri={coded}")
        raise PictureError(_refusal(ref, scheme))

    def _on_site(self, path: str) -> str:
        if self._site is None:
            raise PictureError(
                "the picture is in Label Studio, whose address is not set; set it in the settings"
            )
        return self._site.url + path

    def _authorize(self, url: str) -> Mapping[str, str]:
        """The headers for a request to Label Studio's origin."""
        if self._site is None or self._authorization is None:
            return {}
        if _picture_path(parse_url(url).request_uri, self._site.prefix) is None:
            return {}
        try:
            return self._authorization()
        except StudioUnavailableError as error:
            raise PictureUnavailableError(f"no access token could be had: {error}") from error
        except StudioError as error:
            raise PictureError(f"no access token could be had: {error}") from error

    def _mounted(self, path: str) -> tuple[Path, PurePosixPath] | None:
        """Folder, and path in it, of a local file that can be read without Label Studio."""
        route, _, query = path.partition("?")
        named = parse_qs(query).get("d")
        if route.rstrip("/") + "/" != _LOCAL_FILES or not named:
            return None
        parts = PurePosixPath(named[0]).parts
        for length in range(len(parts), -1, -1):
            if (folder := self._local_files.get(parts[:length])) is not None:
                return folder, PurePosixPath(*parts[length:])
        return None

    def _read(self, folder: Path, inside: PurePosixPath) -> bytes:
        """A local file's bytes; never one outside the folder, through links either."""
        try:
            root = folder.resolve(strict=True)
            file = (root / inside).resolve()
            if not file.is_relative_to(root):
                raise PictureError(f"{str(inside)!r} leads out of the folder of local files")
            # Not to follow a link swapped in since, and not to wait at a pipe.
            opened = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(opened, "rb") as stream:
                if not stat.S_ISREG(os.fstat(opened).st_mode):
                    raise PictureError(f"{str(inside)!r} is not a file")
                data = stream.read(self._limits.max_bytes + 1)
        except (
            OSError,
            RuntimeError,
            ValueError,
        ) as error:  # RuntimeError: links in a circle; ValueError: a NUL
            words = getattr(error, "strerror", None) or "not a valid file name"
            raise PictureError(f"the local file {str(inside)!r} cannot be read: {words}") from error
        if len(data) > self._limits.max_bytes:
            raise PictureError(f"larger than the allowed {self._limits.max_bytes} bytes")
        return data


def _picture_path(path: str, prefix: str) -> str | None:
    """The path without the prefix if Label Studio serves pictures there, else None."""
    if prefix and path.startswith(f"{prefix}/"):
        path = path.removeprefix(prefix)
    steps = unquote(path.partition("?")[0]).split("/")
    return path if _PICTURE_PATH.match(path) and ".." not in steps else None


def _refusal(ref: str, scheme: str) -> str:
    """Why this reference is refused, and what would be right."""
    allowed = "give a web address, a path in Label Studio (/data/...) or its storage (s3://...)"
    match scheme:
        case "":
            return f"{shown(ref)} is no web address and no picture path; {allowed}"
        case "data":
            return f"the picture stands in the task itself (data:), which is not read; {allowed}"
        case "file":
            return f"{shown(ref)} is a file of some machine, which is not read; {allowed}"
        case _:
            return f"pictures are not fetched by {scheme[:20]}:; {allowed}"
