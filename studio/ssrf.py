"""Which machines an image may be fetched from: protection against server-side request forgery.

A task's data is written by whoever may import tasks, so an address in it must not give them access
to this machine's own network. Host names are checked here, and so is every address that a name
resolves to, just before a connection is made to it.
"""

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from studio.errors import ImageError

#: Resolves a host name: (host, port) -> addresses as text. Raises OSError if it is not known.
Resolver = Callable[[str, int], Sequence[str]]

#: Stands for every public host in HRN_ALLOWED_HOSTS.
PUBLIC: Final = "public"

#: Networks that are not public, by what their addresses are called. Written out rather than asked
#: of `ipaddress`, whose idea of "global" changes between Python's patch releases. IANA's
#: special-purpose registries (RFC 6890), and one cloud's control address that looks public.
_NOT_PUBLIC: Final = {
    ipaddress.ip_network(network): kind
    for network, kind in {
        "0.0.0.0/8": "an address of this machine",
        "10.0.0.0/8": "a private address",
        "100.64.0.0/10": "a provider's inner address",
        "127.0.0.0/8": "a loopback address",
        "168.63.129.16/32": "a cloud's control address",
        "169.254.0.0/16": "a link-local address",
        "172.16.0.0/12": "a private address",
        "192.0.0.0/24": "a reserved address",
        "192.0.2.0/24": "a documentation address",
        "192.88.99.0/24": "a reserved address",
        "192.168.0.0/16": "a private address",
        "198.18.0.0/15": "a test network's address",
        "198.51.100.0/24": "a documentation address",
        "203.0.113.0/24": "a documentation address",
        "224.0.0.0/4": "a multicast address",
        "240.0.0.0/4": "a reserved address",
        "::1/128": "a loopback address",
        "2001::/23": "a reserved address",  # holds Teredo
        "2001:db8::/32": "a documentation address",
        "3fff::/20": "a documentation address",
    }.items()
}
#: The only part of IPv6 that is given out to the public.
_PUBLIC_V6: Final = ipaddress.IPv6Network("2000::/3")
#: IPv6 networks that lead to an IPv4 address, and how many bits are to the right of it.
_EMBEDDED_V4: Final = {
    ipaddress.IPv6Network("::ffff:0:0/96"): 0,  # IPv4-mapped
    ipaddress.IPv6Network("64:ff9b::/96"): 0,  # NAT64
    ipaddress.IPv6Network("2002::/16"): 80,  # 6to4
}
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
#: No backslash before the path: readers of URLs disagree on what it means there.
_WEB_ADDRESS: Final = re.compile(r"https?://[^/?#\\]+(?:[/?#][^\x00-\x1f\x7f]*)?", re.IGNORECASE)
#: A last label that is a number makes a host an IPv4 address to the system, however it is written.
_ENDS_IN_NUMBER: Final = re.compile(r"(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)$", re.IGNORECASE)
#: An entry of HRN_ALLOWED_HOSTS without its `*.`.
_HOST: Final = re.compile(
    r"(?!\.)(?:[^\s/\\?#@*:\[\]]+|\[[0-9a-f:.]+\])(?::[0-9]+)?", re.IGNORECASE
)


@dataclass(frozen=True)
class Origin:
    """Scheme, host and port: where a request goes, and whom a token belongs to."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Self:
        """Return the origin of a web address, its host in the form in which hosts are compared.

        Raises:
            ImageError: the address is not a plain ``http://`` or ``https://`` one.

        Example:
            >>> Origin.of("HTTPS://Images.Example./cat.jpg")
            Origin(scheme='https', host='images.example', port=443)
        """
        if not _WEB_ADDRESS.fullmatch(url):
            raise ImageError(f"{shown(url)} is not a valid web address")
        try:
            parsed = parse_url(url)
        except LocationParseError as error:
            raise ImageError(f"{shown(url)} is not a valid web address") from error
        if parsed.auth is not None:
            raise ImageError(
                f"the address of an image must not hold a user name or password: {shown(url)}"
            )
        if not parsed.host or parsed.scheme not in _DEFAULT_PORTS:
            raise ImageError(f"{shown(url)} names no host")
        port = _DEFAULT_PORTS[parsed.scheme] if parsed.port is None else parsed.port
        return cls(parsed.scheme, plain_host(parsed.host), port)

    @property
    def authority(self) -> str:
        """Host and port as in an address, without the scheme's default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True)
class HostPattern:
    """An entry of HRN_ALLOWED_HOSTS.

    Attributes:
        host: a name or address, or the domain of the names that are allowed.
        port: the only port that is allowed, None for all.
        below: the names below the domain are allowed, not the domain itself.
    """

    host: str
    port: int | None
    below: bool

    @classmethod
    def of(cls, text: str) -> Self:
        """Parse ``host``, ``host:port``, ``*.domain`` or ``*.domain:port``.

        Raises:
            ValueError: it is none of these.

        Example:
            >>> HostPattern.of("*.Example.com:9000")
            HostPattern(host='example.com', port=9000, below=True)
        """
        below = text.startswith("*.")
        name = text.removeprefix("*.")
        if text.count(":") > 1 and "[" not in text:
            name = f"[{name}]"  # an IPv6 address
        if not _HOST.fullmatch(name):
            raise ValueError(f"{text!r} is no host")
        parsed = parse_url(f"http://{name}")
        host = plain_host(parsed.host or "")
        if not host or (below and (_is_address(host) or _ENDS_IN_NUMBER.search(host))):
            raise ValueError(f"{text!r} is no host")
        return cls(host, parsed.port, below)

    def covers(self, origin: Origin) -> bool:
        """Return whether the entry allows the origin."""
        named = origin.host.endswith(f".{self.host}") if self.below else origin.host == self.host
        return named and self.port in (None, origin.port)


@dataclass(frozen=True)
class AddressRules:
    """Where images may come from.

    Attributes:
        own: Label Studio's origin, which may have any address.
        allow_private: every host may have any address.
        allowed: hosts that may have any address.
        only_allowed: all other hosts are refused, public ones too.
        resolve: resolves host names.
    """

    own: Origin | None
    allow_private: bool
    allowed: tuple[HostPattern, ...]
    only_allowed: bool
    resolve: Resolver

    @classmethod
    def read(
        cls, own: Origin | None, hosts: Iterable[str], resolve: Resolver, *, allow_private: bool
    ) -> Self:
        """Return the rules that HRN_ALLOWED_HOSTS and HRN_ALLOW_PRIVATE state.

        Args:
            own: Label Studio's origin.
            hosts: entries as `HostPattern` parses them, and `PUBLIC` for every public host.
            resolve: resolves host names.
            allow_private: every host may have any address.

        Raises:
            ValueError: an entry is none.
        """
        named = set(hosts)
        allowed = tuple(HostPattern.of(host) for host in sorted(named - {PUBLIC}))
        return cls(own, allow_private, allowed, bool(allowed) and PUBLIC not in named, resolve)

    def addresses(self, origin: Origin) -> tuple[str, ...]:
        """Return the addresses to connect to, each of them checked.

        Raises:
            ImageError: the host, or one of its addresses, is not allowed.
            OSError: the name is not known.
        """
        trusted = origin == self.own or any(entry.covers(origin) for entry in self.allowed)
        if self.only_allowed and not trusted:
            raise ImageError(
                f"{origin.authority} is not in HRN_ALLOWED_HOSTS, and images come from the hosts "
                f"named there only; add it if it should be, or `{PUBLIC}` for every public host"
            )
        is_address = _is_address(origin.host)
        found = (origin.host,) if is_address else tuple(self.resolve(origin.host, origin.port))
        if not found:
            raise OSError(f"no address is known for {origin.host}")
        if trusted or self.allow_private:
            return found
        if _ENDS_IN_NUMBER.search(origin.host) and not is_address:
            raise ImageError(
                f"{origin.host} is an unusual way to write an address; write it as four numbers"
            )
        for address in found:
            if (kind := not_public(address)) is not None:
                fix = f"add {origin.authority} to HRN_ALLOWED_HOSTS"
                if not self.allowed:  # the first entry would forbid all public hosts
                    fix = f"set HRN_ALLOWED_HOSTS={PUBLIC},{origin.authority}"
                raise ImageError(
                    f"{origin.host} has {kind} ({address}), which images may not come from; "
                    f"if they should, {fix}"
                )
        return found


def not_public(address: str) -> str | None:
    """Name the kind of an address that is not one of the public internet; None for a public one.

    Args:
        address: an IPv4 or IPv6 address as text.

    Example:
        >>> not_public("8.8.8.8"), not_public("::ffff:127.0.0.1")
        (None, 'a loopback address')
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "no valid address"
    for network, bits in _EMBEDDED_V4.items():
        if parsed in network:
            parsed = ipaddress.IPv4Address((int(parsed) >> bits) & 0xFFFF_FFFF)
    kind = next((kind for network, kind in _NOT_PUBLIC.items() if parsed in network), None)
    if kind is None and parsed.version == 6 and parsed not in _PUBLIC_V6:
        return "a private or reserved address"
    return kind


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def plain_host(host: str) -> str:
    """Return a host name in the one form in which names are compared."""
    return host.strip("[]").rstrip(".").lower()


def system_resolver(host: str, port: int) -> tuple[str, ...]:
    """Return every address the system knows for the host, in the system's order.

    Raises:
        OSError: the name is not known.
    """
    try:
        known = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label that is empty or longer than 63 characters
        raise OSError(f"{host} is not a valid host name") from error
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in known))


def shown(ref: str) -> str:
    """Return an image's address for a message: short, and without what may be secret in it."""
    bare = re.sub(r"//[^/?#]*@", "//", ref.partition("?")[0].partition("#")[0])
    return repr(bare if len(bare) <= 100 else bare[:97] + "...")
