"""From what a task says about its image to the file's bytes.

A task's image is a path of Label Studio's, a file in cloud storage that Label Studio can reach,
any web address, or is written out in the task itself (``data:``).
"""

import base64
import binascii
import contextlib
import hashlib
import os
import re
import ssl
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import Final, Self
from urllib.parse import parse_qs, unquote, unquote_to_bytes

from urllib3.util import parse_url

from studio.errors import ImageError, ImageUnavailableError, StudioError, StudioUnavailableError
from studio.image_decoder import ImageLimits
from studio.image_download import Downloader, StatusError
from studio.ssrf import AddressRules, Origin, Resolver, shown, system_resolver

_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)
_WEB: Final = re.compile(r"https?://", re.IGNORECASE)
_CLOUD_SCHEMES: Final = frozenset({"s3", "gs", "azure-blob"})
#: What Label Studio serves images under. The token goes nowhere else, on its own origin either.
_IMAGE_PATH: Final = re.compile(
    r"/(?:data/|storage-data/|(?:tasks|projects)/[0-9]+/(?:presign|resolve)/)"
)
_LOCAL_FILES: Final = "/data/local-files/"
#: The beginning of an image that is written out in the task: its type, its encoding.
_INLINE: Final = re.compile(r"data:([^,]*?)(;\s*base64)?,", re.IGNORECASE)


@dataclass(frozen=True)
class FetchedImage:
    """An image as it was fetched, not yet decoded.

    Attributes:
        digest: SHA-256 of ``data`` in hex: the image's key in every cache.
        data: the file's bytes.
    """

    digest: str
    data: bytes


@dataclass(frozen=True)
class _Site:
    """Where Label Studio is: its origin, and the path it is served under ("" for the root)."""

    origin: Origin
    prefix: str
    url: str  # origin and prefix as one text, without a slash at the end

    @classmethod
    def at(cls, url: str) -> Self:
        try:
            origin = Origin.of(url)
        except ImageError as error:
            raise ValueError(
                f"Label Studio's address must be a web address: {error.reason}"
            ) from error
        url = url.partition("#")[0].partition("?")[0].rstrip("/")
        return cls(origin, (parse_url(url).path or "").rstrip("/"), url)

    def path(self, ref: str) -> str | None:
        """Return path and query of a web address, without prefix, if an image is served there.

        Whether the address says http or https does not matter: it is asked for at ``url``.
        """
        found, own = Origin.of(ref), self.origin
        if found.host != own.host or (
            found.port != own.port and {found.port, own.port} != {80, 443}
        ):
            return None
        return _image_path(parse_url(ref).request_uri, self.prefix)


class ImageFetcher:
    """Fetches the images of tasks. Threads may share one; close it, or use it in a ``with``."""

    def __init__(  # noqa: PLR0913 - each is a setting of its own, all but three with a default
        self,
        label_studio_url: str | None,
        authorization: Callable[[], Mapping[str, str]] | None,
        limits: ImageLimits,
        *,
        allow_private: bool = False,
        allowed_hosts: frozenset[str] = frozenset(),
        local_files: Mapping[str, Path] | None = None,
        other_addresses: Callable[[], Iterable[str]] = tuple,
        trust: ssl.SSLContext | None = None,
        resolve: Resolver = system_resolver,
    ) -> None:
        """Connect to nothing yet.

        Args:
            label_studio_url: Label Studio's address as this machine reaches it, or None if there is
                none. Its own origin (scheme, host, port) may be a private address.
            authorization: returns the headers that authenticate us at Label Studio; called per
                request, so it may renew a token. They are sent to the paths where Label Studio
                serves images and nowhere else.
            limits: what one image may cost.
            allow_private: let any host have a private address. For closed networks only.
            allowed_hosts: entries of HRN_ALLOWED_HOSTS. If given, images come from these hosts
                and Label Studio only (with ``public`` among them from every public host, too), and
                a host named here may have a private address. Empty: from any public host.
            local_files: folders to read ``/data/local-files/?d=...`` from without asking Label
                Studio: the beginning of ``d`` ("" for all) -> the folder that holds what follows.
            other_addresses: returns the addresses under which others know this Label Studio, as
                browsers do; an image of its own there is asked for at ``label_studio_url``.
            trust: whose certificates are accepted; the public authorities' if not given.
            resolve: resolves host names.

        Raises:
            ValueError: ``label_studio_url`` is not a web address, or an allowed host no host.
        """
        self._site = None if label_studio_url is None else _Site.at(label_studio_url)
        self._authorization = authorization
        self._limits = limits
        self._local_files = {
            PurePosixPath(start).parts: folder for start, folder in (local_files or {}).items()
        }
        self._other_addresses = other_addresses
        own = self._site.origin if self._site else None
        rules = AddressRules.read(own, allowed_hosts, resolve, allow_private=allow_private)
        self._downloader = Downloader(rules, limits, self._authorize, trust)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that are kept open."""
        self._downloader.close()

    def fetch(self, ref: str, *, task_id: int | None = None) -> FetchedImage:
        """Return the image a task names.

        Args:
            ref: the value in the task's data: ``/data/...``, ``http(s)://...``, a file in cloud
                storage (``s3://``, ``gs://``, ``azure-blob://``), or ``data:image/...``.
            task_id: the task; needed for cloud storage, which Label Studio opens for a task only.

        Raises:
            ImageError: the image cannot be fetched; ``reason`` says why.
            ImageUnavailableError: it cannot be fetched now; trying again later may help.
        """
        ref = ref.strip()
        path = self._own_path(ref)
        file = None if path is None else self._mounted(path)
        if (inline := _INLINE.match(ref)) is not None:
            data = _inline_data(ref, inline, self._limits)
        elif file is not None:
            data = self._read(*file)
        else:
            data = self._download(ref, path, task_id)
        if not data:
            raise ImageError("the file is empty")
        return FetchedImage(hashlib.sha256(data).hexdigest(), data)

    def _own_path(self, ref: str) -> str | None:
        """Return path and query, without prefix, if this Label Studio serves images there."""
        if ref.startswith("/"):
            return _image_path(ref, self._site.prefix if self._site else "")
        if self._site is None or not _WEB.match(ref):
            return None
        if (path := self._site.path(ref)) is not None:
            return path
        for address in self._other_addresses():
            with contextlib.suppress(ValueError):  # what Label Studio calls itself may be anything
                if (path := _Site.at(address).path(ref)) is not None:
                    return path
        return None

    def _download(self, ref: str, path: str | None, task_id: int | None) -> bytes:
        """Download from Label Studio or another host; a refusal says what may be meant."""
        try:
            return self._downloader.download(self._url(ref, path, task_id))
        except ImageError as error:
            scheme, _, rest = ref.partition("://")
            absent = isinstance(error, StatusError) and error.status == HTTPStatus.NOT_FOUND
            if absent and scheme.lower() in _CLOUD_SCHEMES:
                bucket = shown(f"{scheme}://{rest.partition('/')[0]}").strip("'")
                raise ImageError(
                    f"{error.reason}; no source storage of this project holds {bucket}, or Label"
                    " Studio cannot open it: see Settings > Cloud Storage there"
                ) from error
            looks_own = _WEB.match(ref) and _image_path(parse_url(ref).request_uri, "") is not None
            if path is None and self._site and looks_own:
                origin = Origin.of(ref)
                passing = isinstance(error, ImageUnavailableError)
                raise (ImageUnavailableError if passing else ImageError)(
                    f"{error.reason}; if {origin.scheme}://{origin.authority} is Label Studio as"
                    " browsers reach it, set HRN_LABEL_STUDIO_PAGE to that, and the image is asked"
                    " for at LABEL_STUDIO_URL"
                ) from error
            raise

    def _url(self, ref: str, path: str | None, task_id: int | None) -> str:
        """Return the web address to ask."""
        if path is not None:
            return self._on_site(path)
        found = _SCHEME.match(ref)
        scheme = found[1].lower() if found else ""
        if scheme in ("http", "https"):
            return ref
        if scheme in _CLOUD_SCHEMES:
            if task_id is None:
                raise ImageError(
                    f"{shown(ref)} can be opened for a task only, and no task is given"
                )
            coded = base64.urlsafe_b64encode(ref.encode()).decode().replace("=", "%3D")
            return self._on_site(f"/tasks/{task_id}/presign/?fileuri={coded}")
        raise ImageError(_refusal(ref, scheme))

    def _on_site(self, path: str) -> str:
        if self._site is None:
            raise ImageError(
                "the image is in Label Studio, whose address is not set; set it in the settings"
            )
        return self._site.url + path

    def _authorize(self, url: str) -> Mapping[str, str]:
        """Return the headers for a request to Label Studio's origin."""
        if self._site is None or self._authorization is None:
            return {}
        if _image_path(parse_url(url).request_uri, self._site.prefix) is None:
            return {}
        try:
            return self._authorization()
        except StudioUnavailableError as error:
            raise ImageUnavailableError(f"no access token is available: {error}") from error
        except StudioError as error:
            raise ImageError(f"no access token is available: {error}") from error

    def _mounted(self, path: str) -> tuple[Path, PurePosixPath] | None:
        """Return folder, and path in it, of a local file that is readable without Label Studio."""
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
        """Read a local file; never one outside the folder, through links either."""
        try:
            root = folder.resolve(strict=True)
            file = (root / inside).resolve()
            if not file.is_relative_to(root):
                raise ImageError(f"{str(inside)!r} leads out of the folder of local files")
            # Not to follow a link swapped in since, and not to wait at a pipe.
            opened = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            with os.fdopen(opened, "rb") as stream:
                if not stat.S_ISREG(os.fstat(opened).st_mode):
                    raise ImageError(f"{str(inside)!r} is not a file")
                data = stream.read(self._limits.max_bytes + 1)
        except (OSError, RuntimeError, ValueError) as error:  # links in a circle; a NUL
            words = getattr(error, "strerror", None) or "not a valid file name"
            raise ImageError(f"the local file {str(inside)!r} cannot be read: {words}") from error
        self._limits.check_bytes(len(data))
        return data


def _image_path(path: str, prefix: str) -> str | None:
    """Return the path without the prefix if Label Studio serves images there, else None."""
    if prefix and path.startswith(f"{prefix}/"):
        path = path.removeprefix(prefix)
    steps = unquote(path.partition("?")[0]).split("/")
    return path if _IMAGE_PATH.match(path) and ".." not in steps else None


def _inline_data(ref: str, start: re.Match[str], limits: ImageLimits) -> bytes:
    """Return the bytes of a ``data:`` address (RFC 2397).

    Raises:
        ImageError: it is no image, cannot be read, or has more bytes than is allowed.
    """
    kind = start[1].partition(";")[0].strip().lower()
    if not kind.startswith("image/"):
        kind = "".join(filter(str.isprintable, kind[:40]))
        raise ImageError(
            f"the task holds data:{kind}, which is no image; expected data:image/...;base64,"
        )
    # Before anything is copied: no byte takes more than four characters, but for line breaks.
    limits.check_bytes((len(ref) - start.end()) // 4)
    data = unquote_to_bytes(ref[start.end() :])
    if start[2]:
        try:
            data = base64.b64decode(b"".join(data.split()), validate=True)
        except binascii.Error as error:
            raise ImageError(f"the image in the task is no base64: {error}") from error
    limits.check_bytes(len(data))
    return data


def _refusal(ref: str, scheme: str) -> str:
    """Say why a reference is refused, and what would be right."""
    allowed = "give a web address, a path in Label Studio (/data/...) or its storage (s3://...)"
    match scheme:
        case "":
            return f"{shown(ref)} is no web address and no image path; {allowed}"
        case "data":
            return f"the image is written out in the task (data:) and has no comma; {allowed}"
        case "file":
            return f"{shown(ref)} is a file of some machine, which is not read; {allowed}"
        case _:
            return f"images are not fetched by {scheme[:20]}:; {allowed}"
