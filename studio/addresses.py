"""Which machines a picture may be fetched from.

A task's data is written by whoever may import tasks, so an address in it must not open this
machine's own network to them. Host names are judged here, and so is every address a name stands
for, just before a connection is made to it.
"""

import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Self

from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from studio.errors import PictureError

#: Looks a host name up: (host, port) -> addresses as text. Raises OSError if the name is not known.
Resolver = Callable[[str, int], Sequence[str]]

#: Written out rather than asked of `ipaddress`, whose idea of "global" changes between Python's
#: patch releases. IANA's special-purpose registries (RFC 6890), and one cloud's control address
#: that looks like a public one.
_REFUSED_V4: Final = {
    ipaddress.IPv4Network(network): kind
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
    }.items()
}
#: Within 2000::/3, the only part of IPv6 given out to the public. 2001::/23 holds Teredo.
_REFUSED_V6: Final = {
    ipaddress.IPv6Network("2001::/23"): "a reserved address",
    ipaddress.IPv6Network("2001:db8::/32"): "a documentation address",
    ipaddress.IPv6Network("3fff::/20"): "a documentation address",
}
_PUBLIC_V6: Final = ipaddress.IPv6Network("2000::/3")
#: IPv6 networks that lead to an IPv4 address, and how many bits stand to the right of it.
_EMBEDDED_V4: Final = {
    ipaddress.IPv6Network("::ffff:0:0/96"): 0,  # IPv4-mapped
    ipaddress.IPv6Network("64:ff9b::/96"): 0,  # NAT64
    ipaddress.IPv6Network("2002::/16"): 80,  # 6to4
}
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
#: Nothing between the scheme and the path may be a backslash: readers of URLs disagree on what it
#: means there.
_WEB_ADDRESS: Final = re.compile(r"https?://[^/?#\\]+(?:[/?#][^\x00-\x1f\x7f]*)?", re.IGNORECASE)
#: A last label that is a number makes a host an IPv4 address to the system, however oddly the rest
#: is written.
_ENDS_IN_NUMBER: Final = re.compile(r"(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)$", re.IGNORECASE)


@dataclass(frozen=True)
class Origin:
    """Scheme, host and port: where a request goes, and whom a token belongs to."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Self:
        """The origin of a web address, its host in the form in which hosts are compared.

        Raises:
            PictureError: the address is not a plain ``http://`` or ``https://`` one.

        Example:
            >>> Origin.of("HTTPS://Pictures.Example./cat.jpg")
            Origin(scheme='https', host='pictures.example', port=443)
        """
        if not _WEB_ADDRESS.fullmatch(url):
            raise PictureError(f"{shown(url)} is not a valid web address")
        try:
            parsed = parse_url(url)
        except LocationParseError as error:
            raise PictureError(f"{shown(url)} is not a valid web address") from error
        if parsed.auth is not None:
            raise PictureError(
                f"the address of a picture must not hold a user name or password: {shown(url)}"
            )
        if not parsed.host or parsed.scheme not in _DEFAULT_PORTS:
            raise PictureError(f"{shown(url)} names no host")
        port = _DEFAULT_PORTS[parsed.scheme] if parsed.port is None else parsed.port
        return cls(parsed.scheme, plain_host(parsed.host), port)


@dataclass(frozen=True)
class AddressRules:
    """Where pictures may come from.

    Attributes:
        own: Label Studio's origin, which may be anywhere.
        allow_private: let every host have any address.
        allowed_hosts: if any are named, only these hosts are asked, and they may have any address.
        resolve: looks host names up.
    """

    own: Origin | None
    allow_private: bool
    allowed_hosts: frozenset[str]
    resolve: Resolver

    def addresses(self, origin: Origin) -> tuple[str, ...]:
        """The addresses to connect to, each of them checked.

        Raises:
            PictureError: the host, or one of its addresses, is not allowed.
            OSError: the name is not known.
        """
        trusted = origin == self.own or origin.host in self.allowed_hosts
        if self.allowed_hosts and not trusted:
            raise PictureError(
                f"{origin.host} is not one of the allowed hosts; add it if it should be"
            )
        found = _literal(origin.host) or tuple(self.resolve(origin.host, origin.port))
        if not found:
            raise OSError(f"no address is known for {origin.host}")
        if not trusted and not self.allow_private:
            self._check(origin.host, found)
        return found

    @staticmethod
    def _check(host: str, addresses: Sequence[str]) -> None:
        """Refuse a host that is written oddly, or of which one address is not public."""
        if _ENDS_IN_NUMBER.search(host) and not _literal(host):
            raise PictureError(
                f"{host} is an unusual way to write an address; write it as four numbers"
            )
        for address in addresses:
            if (kind := not_public(address)) is not None:
                raise PictureError(
                    f"{host} has {kind} ({address}), which pictures may not come from; "
                    "add the host to the allowed hosts if they should"
                )


def not_public(address: str) -> str | None:
    """What kind of address it is if it is not one of the public internet, else None.

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
    return _kind_v4(parsed) if isinstance(parsed, ipaddress.IPv4Address) else _kind_v6(parsed)


def _kind_v4(address: ipaddress.IPv4Address) -> str | None:
    return next((kind for network, kind in _REFUSED_V4.items() if address in network), None)


def _kind_v6(address: ipaddress.IPv6Address) -> str | None:
    for network, bits in _EMBEDDED_V4.items():
        if address in network:
            return _kind_v4(ipaddress.IPv4Address((int(address) >> bits) & 0xFFFF_FFFF))
    if address not in _PUBLIC_V6:
        return "a loopback address" if address.is_loopback else "a private or reserved address"
    return next((kind for network, kind in _REFUSED_V6.items() if address in network), None)


def _literal(host: str) -> tuple[str, ...]:
    """The host itself if it is an address already: nothing to look up."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return ()
    return (host,)


def plain_host(host: str) -> str:
    """A host name in the one form in which names are compared."""
    return host.strip("[]").rstrip(".").lower()


def system_resolver(host: str, port: int) -> tuple[str, ...]:
    """Every address the system knows for the host, in the system's order.

    Raises:
        OSError: the name is not known.
    """
    try:
        known = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label that is empty or longer than 63 characters
        raise OSError(f"{host} is not a valid host name") from error
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in known))


def shown(ref: str) -> str:
    """A picture's address as messages show it: short, and without what may be secret in it."""
    bare = re.sub(r"//[^/?#]*@", "//", ref.partition("?")[0].partition("#")[0])
    return repr(bare if len(bare) <= 100 else bare[:97] + "...")
