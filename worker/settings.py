"""Settings, read once from the environment into one frozen value. Nothing else looks there."""

import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from studio.ssrf import PUBLIC, HostPattern
from studio.tls import ssl_context

T = TypeVar("T")
N = TypeVar("N", int, float)

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

#: Variables HRN_... that compose.yaml and the tests read, and no server.
_NO_SETTINGS = {"HRN_LISTEN", "HRN_SHARED"}

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
        """Return the text."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('***')"

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


# Parsers of a variable's text: each raises ValueError or OSError for what cannot be meant.


def _text(text: str) -> str:
    return text


def _within(kind: Callable[[str], N], low: N, high: N) -> Callable[[str], N]:
    def parse(text: str) -> N:
        value = kind(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return parse


def _one_of(known: Mapping[str, T]) -> Callable[[str], T]:
    def parse(text: str) -> T:
        if text.lower() not in known:
            raise ValueError
        return known[text.lower()]

    return parse


def _keep_versions(text: str) -> int:
    number = int(text)
    if number < 0 or number == 1:  # the newest and the way back
        raise ValueError
    return number


def _url(text: str) -> str:
    address = urlsplit(text)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ValueError
    # A password would be shown wherever the address is. It may hold a "/", which ends the host
    # before its time, so "@" is refused anywhere.
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


def _existing(check: Callable[[Path], object]) -> Callable[[str], Path]:
    def parse(text: str) -> Path:
        path = Path(text).expanduser()
        if not check(path):
            raise ValueError
        return path

    return parse


def _files(text: str) -> tuple[Path | None, ...]:
    file = _existing(Path.is_file)
    return tuple(file(part) if part else None for part in text.split(os.pathsep))


_WEB = "http:// or https://, without a user name or password in it"
_CERTIFICATES = "a file of certificates in PEM, or a folder of them, that exists"
_certificates = _existing(lambda path: ssl_context([path]))
_minutes = _within(float, 0.01, 1e6)


def _setting(
    name: str, default: T, expected: str, parse: Callable[[str], T], *, show: bool = True
) -> T:
    """Declare a field of `Settings`.

    Args:
        name: the environment variable.
        default: where the variable is not set, or empty.
        expected: what its text should be, for the message about one that is not.
        parse: text, without space around it, to value.
        show: whether the value is part of the settings' `repr`.
    """
    metadata = {"name": name, "expected": expected, "parse": parse}
    return dataclasses.field(default=default, repr=show, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """The list of settings: a field and an environment variable each.

    Tests compare README's table, compose.yaml and .env.example with it.
    """

    #: Models, cache and the embedded Redis live below it.
    home: Path = _setting("HRN_HOME", Path("var"), "a folder", lambda text: Path(text).expanduser())
    #: Where versions live, if not in `home`/models; several machines may share it.
    store_url: str = _setting(
        "HRN_STORE",
        "",
        "a folder, or an address like s3://bucket/folder without a user name or password in it",
        _store,
    )
    #: Empty: `hrn up` and `hrn demo` start one. It may carry a password.
    redis_url: str = _setting(
        "REDIS_URL",
        "",
        "one address, redis://, rediss:// or unix://, whose database is a number"
        " (in a password / # ? @ are written %2F %23 %3F %40)",
        _redis_url,
        show=False,
    )
    #: Label Studio as this process reaches it.
    label_studio_url: str = _setting("LABEL_STUDIO_URL", "", _WEB, _url)
    #: Label Studio as browsers reach it, for links; empty: the same.
    label_studio_page: str = _setting("HRN_LABEL_STUDIO_PAGE", "", _WEB, _url)
    #: A personal access token, or a legacy token.
    label_studio_token: Secret = _setting("LABEL_STUDIO_API_KEY", Secret(), "a token", Secret)
    #: This backend as Label Studio reaches it.
    backend_url: str = _setting("HRN_BACKEND_URL", "", _WEB, _url)
    #: User and password of Label Studio's calls (Basic auth); without a password on loopback only.
    user: str = _setting("HRN_USER", "label-studio", "a name without ':'", _user)
    password: Secret = _setting("HRN_PASSWORD", Secret(), "a password", Secret)
    #: Password of the pages at /console; empty: there are none.
    console_password: Secret = _setting("HRN_CONSOLE_PASSWORD", Secret(), "a password", Secret)
    #: Address and port to listen on.
    host: str = _setting("HRN_HOST", "127.0.0.1", "an address", _text)
    port: int = _setting("HRN_PORT", 9090, "a port from 1 to 65535", _within(int, 1, 65535))
    #: Requests served at once: `/health` must find a free thread while many people open tasks.
    threads: int = _setting("HRN_THREADS", 64, "a number from 2 to 256", _within(int, 2, 256))
    device: Device = _setting(
        "HRN_DEVICE", "auto", "auto, cpu or cuda", _one_of({one: one for one in get_args(Device)})
    )
    #: timm's names of one or more networks, joined by "+".
    backbone: str = _setting(
        "HRN_BACKBONE",
        "tf_efficientnet_lite0+tf_efficientnet_lite2",
        "timm's names of networks, joined by +, each once",
        _networks,
    )
    #: Each network's file of weights; None where a package brings them.
    backbone_weights: tuple[Path | None, ...] = _setting(
        "HRN_BACKBONE_WEIGHTS",
        (),
        f"files that exist, joined by {os.pathsep!r}, one per network of HRN_BACKBONE",
        _files,
    )
    #: Accuracy of shown labels.
    target_accuracy: float = _setting(
        "HRN_TARGET_ACCURACY", 0.9, "a share like 0.95", _within(float, 0.5, 0.999)
    )
    #: New labels that start a training, and minutes after the last of fewer.
    train_every: int = _setting("HRN_TRAIN_EVERY", 20, "a number from 1", _within(int, 1, 10**9))
    train_after: float = _setting("HRN_TRAIN_AFTER_MINUTES", 5.0, "minutes above 0", _minutes)
    #: Least minutes between two syncs of open pre-labels with annotators' answers: each changed
    #: pre-label costs Label Studio a tenth of a second or more, and people look at those lists.
    follow_minutes: float = _setting("HRN_FOLLOW_MINUTES", 10.0, "minutes above 0", _minutes)
    #: Train the backbone too: auto (on a GPU), on, off.
    fine_tune: Switch = _setting(
        "HRN_FINE_TUNE", "auto", "auto, on or off", _one_of({one: one for one in get_args(Switch)})
    )
    #: Task field whose values are held out together.
    group_field: str = _setting("HRN_GROUP_FIELD", "", "a field", _text)
    #: Hosts that may serve images beside Label Studio; empty: every public one.
    allowed_hosts: frozenset[str] = _setting(
        "HRN_ALLOWED_HOSTS",
        frozenset(),
        "names of hosts such as minio, minio:9000 or *.example.com, without http:// and without"
        " networks, and the word public for every public host",
        _hosts,
    )
    #: Images may come from private addresses.
    allow_private: bool = _setting(
        "HRN_ALLOW_PRIVATE",
        False,  # noqa: FBT003 - the default of a setting
        "true or false",
        _one_of(
            {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False},
        ),
    )
    #: Folder mounted as Label Studio's local files, read directly.
    local_files: Path | None = _setting(
        "HRN_LOCAL_FILES", None, "a folder that exists", _existing(Path.is_dir)
    )
    #: Largest image file, and image decoded (a JPEG at 1/8 if need be).
    max_megabytes: float = _setting(
        "HRN_MAX_MEGABYTES", 50.0, "a number from 1 to 2000", _within(float, 1, 2000)
    )
    max_megapixels: float = _setting(
        "HRN_MAX_MEGAPIXELS", 89.0, "a number from 1 to 4000", _within(float, 1, 4000)
    )
    #: Certificates of private authorities, trusted beside the public ones; both count.
    requests_ca_bundle: Path | None = _setting(
        "REQUESTS_CA_BUNDLE", None, _CERTIFICATES, _certificates
    )
    ssl_cert_file: Path | None = _setting("SSL_CERT_FILE", None, _CERTIFICATES, _certificates)
    #: Features on disk.
    cache_gb: float = _setting("HRN_CACHE_GB", 20.0, "gigabytes above 0", _within(float, 0.01, 1e6))
    #: Newest versions kept per project, 0: all. Live, its parent and those with a note stay.
    keep_versions: int = _setting(
        "HRN_KEEP_VERSIONS", 50, "a number from 2, or 0 for all", _keep_versions
    )

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Settings":
        """Read every variable.

        Raises:
            SettingError: naming the variable, what was expected and what it says; or a variable
                HRN_... that is none of them, with the nearest that is.
        """
        values: dict[str, Any] = {}
        for one in fields(cls):
            name, text = one.metadata["name"], environ.get(one.metadata["name"], "")
            if not name.endswith("PASSWORD"):
                text = text.strip()
            if text:
                values[one.name] = _parsed(text, **one.metadata)
        settings = cls(**values)
        _refuse_unknown(environ, {one.metadata["name"] for one in fields(cls)})
        if len(settings.backbone_weights) > settings.backbone.count("+") + 1:
            raise SettingError(
                f"HRN_BACKBONE_WEIGHTS names {len(settings.backbone_weights)} files, but "
                f"HRN_BACKBONE={settings.backbone} has fewer networks: give one file per network, "
                f"joined by {os.pathsep!r}, and nothing where a package brings the weights"
            )
        return settings

    def as_environment(self) -> dict[str, str]:
        """Return the variables that a child process reads back into the same settings."""
        texts = {one.metadata["name"]: _written(getattr(self, one.name)) for one in fields(self)}
        if self.store_url and not self.in_bucket:
            texts["HRN_STORE"] = str(self.store.resolve())
        return {name: text for name, text in texts.items() if text}

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
        """Whether versions are in a bucket, rather than in a folder."""
        return "://" in self.store_url

    @property
    def cache(self) -> Path:
        """Where features of images are cached; may be removed at any time."""
        return self.home / "cache"


def _written(value: object) -> str:
    """Return the text that a variable has for a value; "" for none."""
    if value is None or value is False:
        return ""
    if value is True:
        return "true"
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, Path):
        return str(value.resolve())
    if isinstance(value, tuple):
        return os.pathsep.join(map(_written, value))
    return " ".join(sorted(value)) if isinstance(value, frozenset) else str(value)


def _parsed(text: str, name: str, expected: str, parse: Callable[[str], object]) -> object:
    try:
        return parse(text)
    except (ValueError, OSError) as error:
        shown = without_secrets(text)
        cause = None if shown != text else error
        raise SettingError(f"{name}: expected {expected}, got {shown!r}") from cause


def _refuse_unknown(environ: Mapping[str, str], known: set[str]) -> None:
    """Raise SettingError for a variable HRN_... that is no setting: most likely misspelled.

    Its text stays unseen, since it may be a password.
    """
    for name in sorted(set(environ) - known - _NO_SETTINGS):
        if name.upper().startswith("HRN_") and not _is_of_kubernetes(name, environ[name]):
            near = difflib.get_close_matches(name.upper(), sorted(known), n=1, cutoff=0.7)
            fix = f"did you mean {near[0]}?" if near else "README lists them; unset this one"
            raise SettingError(f"{name} is no setting: {fix}")


def _is_of_kubernetes(name: str, text: str) -> bool:
    """Whether Kubernetes gives it to every pod for a service whose name begins with `hrn-`."""
    return bool(
        re.search(r"_SERVICE_(?:HOST|PORT)|_PORT_\d+_(?:TCP|UDP)", name)
        or text.startswith(("tcp://", "udp://"))
    )


def without_secrets(text: str) -> str:
    """Return an address without what may be a password, one with "/" or "@" in it too.

    Args:
        text: an address that may be a wrong one, or any other text.
    """
    text = re.sub(r"//.*@", "//***@", text)
    text = re.sub(r"(?i)([?&]\w*(?:password|secret|token)\w*=)[^&]*", r"\1***", text)
    # Without a host behind it, what stands after a colon and is no port may be one as well.
    return re.sub(r"(//[^/@:\[]*:)(?!\d+(?:[/?#,]|$))[^@/]+", r"\1***", text)
