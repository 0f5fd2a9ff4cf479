"""Settings, read once from the environment into one frozen value. Nothing else looks there."""

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlsplit

from studio.ssrf import PUBLIC, HostPattern
from studio.tls import ssl_context

T = TypeVar("T")

#: Variables that libraries read; README and compose.yaml name them beside the settings.
OF_LIBRARIES = (
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_CA_BUNDLE",
)

Device = Literal["auto", "cpu", "cuda"]
Switch = Literal["auto", "on", "off"]


class SettingError(Exception):
    """A setting that cannot be meant; the message names the variable and the text it had."""


class Secret:
    """A text that shows itself only when asked by name.

    Example:
        >>> Secret("hunter2")
        Secret('***')
    """

    def __init__(self, text: str = "") -> None:
        self._text = text

    def reveal(self) -> str:
        """The text."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('***')"

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


@dataclass(frozen=True)
class Settings:
    """One field a variable.

    What `from_environ` reads is the list of settings: tests compare README's table, compose.yaml,
    .env.example and the environment of child processes with it.

    Attributes:
        home: HRN_HOME - models, cache and the embedded Redis live below it.
        store_url: HRN_STORE - where versions live, as servers and workers on several machines share
            it: a folder, or an address like s3://bucket/folder; empty: models below HRN_HOME.
        redis_url: REDIS_URL - empty: start one here (`hrn up`, `hrn demo`).
        label_studio_url: LABEL_STUDIO_URL - as this process reaches it.
        label_studio_page: HRN_LABEL_STUDIO_PAGE - as browsers reach it, for links; empty: as above.
        label_studio_token: LABEL_STUDIO_API_KEY - personal access token or legacy token.
        backend_url: HRN_BACKEND_URL - this backend as Label Studio reaches it.
        user: HRN_USER - for Label Studio's calls (Basic auth).
        password: HRN_PASSWORD - empty: no sign-in, allowed on loopback only.
        console_password: HRN_CONSOLE_PASSWORD - of the pages at /console; empty: there are none.
        host: HRN_HOST - address to listen on.
        port: HRN_PORT - port to listen on.
        threads: HRN_THREADS - requests served at once. 64: `/health` must find one free while many
            people open their tasks, and one that waits costs next to nothing.
        device: HRN_DEVICE - auto, cpu or cuda.
        backbone: HRN_BACKBONE - timm's names of one or more networks, joined by "+".
        backbone_weights: HRN_BACKBONE_WEIGHTS - each one's file of weights, joined by ":"; empty
            where a package brings them.
        target_accuracy: HRN_TARGET_ACCURACY - of shown labels.
        train_every: HRN_TRAIN_EVERY - new labels that start a training.
        train_after: HRN_TRAIN_AFTER_MINUTES - minutes after the last new label that start one.
        follow_minutes: HRN_FOLLOW_MINUTES - least minutes between two rounds in which pre-labels of
            open tasks change depth because of what annotators answered. 10: each changed pre-label
            costs Label Studio a tenth of a second or more, and people look at those lists.
        fine_tune: HRN_FINE_TUNE - train the backbone too: auto (on a GPU), on, off.
        group_field: HRN_GROUP_FIELD - task field whose values are held out together.
        allowed_hosts: HRN_ALLOWED_HOSTS - only these (and Label Studio's) may serve images, from
            private addresses too; with "public" among them every public host may as well.
        allow_private: HRN_ALLOW_PRIVATE - pictures may come from private addresses.
        local_files: HRN_LOCAL_FILES - folder mounted as Label Studio's local files, read directly.
        max_megabytes: HRN_MAX_MEGABYTES - largest image file.
        max_megapixels: HRN_MAX_MEGAPIXELS - largest image decoded, a JPEG at 1/8 if need be.
        requests_ca_bundle: REQUESTS_CA_BUNDLE - certificates of private authorities, which are
            trusted beside the public ones; a file, or a folder as OpenSSL hashes it.
        ssl_cert_file: SSL_CERT_FILE - the same; where both are set, both are trusted.
        cache_gb: HRN_CACHE_GB - features kept on disk.
        keep_versions: HRN_KEEP_VERSIONS - of each project, the newest; 0: all. Live, its parent and
            those with a note stay.
    """

    home: Path = Path("var")
    store_url: str = ""
    redis_url: str = field(default="", repr=False)  # it may carry a password
    label_studio_url: str = ""
    label_studio_page: str = ""
    label_studio_token: Secret = field(default_factory=Secret)
    backend_url: str = ""
    user: str = "label-studio"
    password: Secret = field(default_factory=Secret)
    console_password: Secret = field(default_factory=Secret)
    host: str = "127.0.0.1"
    port: int = 9090
    threads: int = 64
    device: Device = "auto"
    backbone: str = "tf_efficientnet_lite0+tf_efficientnet_lite2"
    backbone_weights: tuple[Path | None, ...] = ()
    target_accuracy: float = 0.9
    train_every: int = 20
    train_after: float = 5.0
    follow_minutes: float = 10.0
    fine_tune: Switch = "auto"
    group_field: str = ""
    allowed_hosts: frozenset[str] = frozenset()
    allow_private: bool = False
    local_files: Path | None = None
    max_megabytes: float = 50.0
    max_megapixels: float = 89.0
    requests_ca_bundle: Path | None = None
    ssl_cert_file: Path | None = None
    cache_gb: float = 20.0
    keep_versions: int = 50

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """Read every variable.

        Raises:
            SettingError: naming the variable, what was expected and what it says; or a variable
                HRN_... that is none of them, with the nearest that is.
        """
        read = _Reader(environ)
        settings = cls(
            home=read("HRN_HOME", "a folder", lambda text: Path(text).expanduser(), cls.home),
            store_url=read("HRN_STORE", _STORE, _store, ""),
            redis_url=read("REDIS_URL", _REDIS, _redis_url, ""),
            label_studio_url=read("LABEL_STUDIO_URL", _WEB, _url, ""),
            label_studio_page=read("HRN_LABEL_STUDIO_PAGE", _WEB, _url, ""),
            label_studio_token=Secret(read.text("LABEL_STUDIO_API_KEY").strip()),
            backend_url=read("HRN_BACKEND_URL", _WEB, _url, ""),
            user=read("HRN_USER", "a name without ':'", _user, cls.user),
            password=Secret(read.text("HRN_PASSWORD")),
            console_password=Secret(read.text("HRN_CONSOLE_PASSWORD")),
            host=read.text("HRN_HOST") or cls.host,
            port=read("HRN_PORT", "a port from 1 to 65535", _within(int, 1, 65535), cls.port),
            threads=read(
                "HRN_THREADS", "a number from 2 to 256", _within(int, 2, 256), cls.threads
            ),
            device=read("HRN_DEVICE", "auto, cpu or cuda", _one_of(_DEVICES), cls.device),
            backbone=read("HRN_BACKBONE", _NETWORKS, _networks, cls.backbone),
            backbone_weights=read("HRN_BACKBONE_WEIGHTS", _FILES, _files, ()),
            target_accuracy=read(
                "HRN_TARGET_ACCURACY",
                "a share like 0.95",
                _within(float, 0.5, 0.999),
                cls.target_accuracy,
            ),
            train_every=read(
                "HRN_TRAIN_EVERY", "a number from 1", _within(int, 1, 10**9), cls.train_every
            ),
            train_after=read(
                "HRN_TRAIN_AFTER_MINUTES",
                "minutes above 0",
                _within(float, 0.01, 1e6),
                cls.train_after,
            ),
            follow_minutes=read(
                "HRN_FOLLOW_MINUTES",
                "minutes above 0",
                _within(float, 0.01, 1e6),
                cls.follow_minutes,
            ),
            fine_tune=read("HRN_FINE_TUNE", "auto, on or off", _one_of(_SWITCHES), cls.fine_tune),
            group_field=read.text("HRN_GROUP_FIELD"),
            allowed_hosts=read("HRN_ALLOWED_HOSTS", _HOSTS, _hosts, cls.allowed_hosts),
            allow_private=read("HRN_ALLOW_PRIVATE", "true or false", _flag, cls.allow_private),
            local_files=read("HRN_LOCAL_FILES", "a folder that exists", _folder, None),
            max_megabytes=read(
                "HRN_MAX_MEGABYTES",
                "a number from 1 to 2000",
                _within(float, 1, 2000),
                cls.max_megabytes,
            ),
            max_megapixels=read(
                "HRN_MAX_MEGAPIXELS",
                "a number from 1 to 4000",
                _within(float, 1, 4000),
                cls.max_megapixels,
            ),
            requests_ca_bundle=read("REQUESTS_CA_BUNDLE", _CERTIFICATES, _authorities, None),
            ssl_cert_file=read("SSL_CERT_FILE", _CERTIFICATES, _authorities, None),
            cache_gb=read(
                "HRN_CACHE_GB", "gigabytes above 0", _within(float, 0.01, 1e6), cls.cache_gb
            ),
            keep_versions=read(
                "HRN_KEEP_VERSIONS",
                "a number from 2, or 0 for all",
                _versions,
                cls.keep_versions,
            ),
        )
        read.refuse_unknown()
        if len(settings.backbone_weights) > settings.backbone.count("+") + 1:
            raise SettingError(
                f"HRN_BACKBONE_WEIGHTS names {len(settings.backbone_weights)} files, but "
                f"HRN_BACKBONE={settings.backbone} has fewer networks: give one file per network, "
                f"joined by {os.pathsep!r}, and nothing where a package brings the weights"
            )
        return settings

    @property
    def networks(self) -> tuple[tuple[str, Path | None], ...]:
        """Each network's name, and its file of weights where no package brings them."""
        return tuple(zip_longest(self.backbone.split("+"), self.backbone_weights))

    @property
    def store(self) -> Path:
        """Where versions live, unless they are in a bucket."""
        return Path(self.store_url) if self.store_url else self.home / "models"

    @property
    def in_bucket(self) -> bool:
        """Are versions in a bucket, rather than in a folder?"""
        return "://" in self.store_url

    @property
    def cache(self) -> Path:
        """Where features of pictures are kept; may be removed at any time."""
        return self.home / "cache"


#: What is expected of an address of the web.
_WEB = "http:// or https://, without a user name or password in it"
#: And of the place for versions.
_STORE = "a folder, or an address like s3://bucket/folder without a user name or password in it"
#: And of Redis.
_REDIS = (
    "one address, redis://, rediss:// or unix://, whose database is a number"
    " (in a password / # ? @ are written %2F %23 %3F %40)"
)
#: And of hosts that images may come from.
_HOSTS = (
    "names of hosts such as minio, minio:9000 or *.example.com, without http:// and without"
    " networks, and the word public for every public host"
)
#: And of backbones and their weights.
_NETWORKS = "timm's names of networks, joined by +, each once"
_FILES = f"files that exist, joined by {os.pathsep!r}, one per network of HRN_BACKBONE"
#: And of private authorities' certificates.
_CERTIFICATES = "a file of certificates in PEM, or a folder of them, that exists"


#: Variables HRN_... that compose.yaml and the tests read, and no server.
_NO_SETTINGS = {"HRN_LISTEN", "HRN_SHARED"}


def _is_of_kubernetes(name: str, text: str) -> bool:
    """Is it what Kubernetes gives every pod for a service whose name begins with `hrn-`?"""
    return bool(
        re.search(r"_SERVICE_(?:HOST|PORT)|_PORT_\d+_(?:TCP|UDP)", name)
        or text.startswith(("tcp://", "udp://"))
    )


class _Reader:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._known: set[str] = set()

    def text(self, name: str) -> str:
        """Return the text as it is, "" where the variable is not set."""
        self._known.add(name)
        return self._environ.get(name, "")

    def refuse_unknown(self) -> None:
        """Raise SettingError for a variable HRN_... that was not read: most likely misspelled.

        Its text stays unseen, since it may be a password.
        """
        ours = {
            name
            for name, text in self._environ.items()
            if name.upper().startswith("HRN_") and not _is_of_kubernetes(name, text)
        }
        for name in sorted(ours - self._known - _NO_SETTINGS):
            near = difflib.get_close_matches(name.upper(), sorted(self._known), n=1, cutoff=0.7)
            fix = f"did you mean {near[0]}?" if near else "README lists them; unset this one"
            raise SettingError(f"{name} is no setting: {fix}")

    def __call__(self, name: str, expected: str, parse: Callable[[str], T], default: T) -> T:
        text = self.text(name).strip()
        if not text:
            return default
        try:
            return parse(text)
        except (ValueError, OSError) as error:
            shown = without_secrets(text)
            cause = None if shown != text else error
            raise SettingError(f"{name}: expected {expected}, got {shown!r}") from cause


def without_secrets(text: str) -> str:
    """An address without what may be a password, one with "/" or "@" in it too.

    Args:
        text: an address that may be a wrong one, or any other text.
    """
    text = re.sub(r"//.*@", "//***@", text)
    text = re.sub(r"(?i)([?&]\w*(?:password|secret|token)\w*=)[^&]*", r"\1***", text)
    # Without a host behind it, what stands after a colon and is no port may be one as well.
    return re.sub(r"(//[^/@:\[]*:)(?!\d+(?:[/?#,]|$))[^@/]+", r"\1***", text)


N = TypeVar("N", int, float)


def _within(kind: Callable[[str], N], low: N, high: N) -> Callable[[str], N]:
    def parse(text: str) -> N:
        value = kind(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return parse


W = TypeVar("W", bound=str)

_DEVICES: tuple[Device, ...] = ("auto", "cpu", "cuda")
_SWITCHES: tuple[Switch, ...] = ("auto", "on", "off")


def _one_of(words: tuple[W, ...]) -> Callable[[str], W]:
    def parse(text: str) -> W:
        for word in words:
            if text == word:
                return word
        raise ValueError

    return parse


def _versions(text: str) -> int:
    number = int(text)
    if number < 0 or number == 1:  # the newest and the way back
        raise ValueError
    return number


def _flag(text: str) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in known:
        raise ValueError
    return known[text.lower()]


def _url(text: str) -> str:
    address = urlsplit(text)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ValueError
    # It would be shown wherever the address is; tokens are settings. Behind the host, too: a "/" in
    # a password ends the host before its time.
    if "@" in text:
        raise ValueError
    _ = address.port  # raises if it cannot be one
    return text.rstrip("/")


def _hosts(text: str) -> frozenset[str]:
    hosts = frozenset(text.replace(",", " ").split())
    for host in hosts - {PUBLIC}:
        HostPattern.of(host)
    return hosts


def _redis_url(text: str) -> str:
    if not text.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError
    address = urlsplit(text)
    # A password may hold "/", "?" or "#" that are not encoded: then the host, and what comes behind
    # it, are pieces of the password.
    if "@" in address.path + address.query + address.fragment:
        raise ValueError
    if address.scheme == "unix":
        return text
    if "," in address.netloc + address.path:  # two addresses
        raise ValueError
    _ = address.port  # raises if it cannot be one
    if address.fragment or not re.fullmatch(r"(?:/\d*)?", address.path):
        raise ValueError
    return text


def _store(text: str) -> str:
    if "://" not in text:
        return str(Path(text).expanduser())
    address = urlsplit(text)
    if not address.netloc or "@" in text:  # it is shown to people
        raise ValueError
    return text.rstrip("/")


def _user(text: str) -> str:
    if ":" in text:
        raise ValueError
    return text


def _networks(text: str) -> str:
    names = text.split("+")
    if not all(names) or len(set(names)) < len(names):
        raise ValueError
    return text


def _files(text: str) -> tuple[Path | None, ...]:
    return tuple(_file(part) if part else None for part in text.split(os.pathsep))


def _file(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_file():
        raise ValueError
    return path


def _authorities(text: str) -> Path:
    path = Path(text).expanduser()
    ssl_context([path])
    return path


def _folder(text: str) -> Path:
    path = Path(text).expanduser()
    if not path.is_dir():
        raise ValueError
    return path
