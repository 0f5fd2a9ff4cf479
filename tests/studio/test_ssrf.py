"""Only the public internet may be reached, however an address is written."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from studio.errors import ImageError
from studio.ssrf import AddressRules, HostPattern, Origin, not_public, shown, system_resolver


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",
        "172.31.255.255",
        "192.0.0.192",
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::10.0.0.1",
        "64:ff9b::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "::ffff:169.254.169.254",
        "2002:a9fe:a9fe::1",
        "fe80::5efe:127.0.0.1",
        "2001:0:1::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:c0a8:101::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%lo",
        "fec0::1",
        "ff02::1",
        "ff0e::1",
        "127.1",
        "nonsense",
    ],
)
def test_what_is_not_public_is_named(address: str) -> None:
    assert not_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "172.32.0.1",
        "100.128.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
        "2002:808:808::1",
        "2606:4700::1111",
    ],
)
def test_a_public_address_passes(address: str) -> None:
    assert not_public(address) is None


@settings(deadline=None)
@given(st.ip_addresses(v=4))
def test_an_embedded_address_is_judged_like_the_plain_one(address: object) -> None:
    plain = not_public(str(address))
    assert not_public(f"::ffff:{address}") == plain
    assert not_public(f"64:ff9b::{address}") == plain


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///cat.jpg",
        "http:cat.jpg",
        "http://user@images.example/",
        "http://user:secret@images.example/",
        "http://images.example@127.0.0.1/",
        "http://images.example\\@127.0.0.1/",
        "http://127.0.0.1\\.images.example/",
        "http://images.example:99999/",
        "http://images.example:port/",
        "http://[::1/",
        "http://[nonsense]/",
        "http://images.example/a\r\nHost: other",
        "http://images.example/\x00",
        "http://\uff11\uff12\uff17.0.0.1/",
        "ftp://images.example/",
        "file:///etc/passwd",
    ],
)
def test_an_address_that_readers_could_disagree_on_is_refused(url: str) -> None:
    with pytest.raises(ImageError):
        Origin.of(url)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://Images.Example/", Origin("http", "images.example", 80)),
        ("https://images.example.:8443", Origin("https", "images.example", 8443)),
        ("http://[::1]:8080/a?b#c", Origin("http", "::1", 8080)),
        ("http://b\u00fccher.example/", Origin("http", "xn--bcher-kva.example", 80)),
    ],
)
def test_an_origin_has_one_form(url: str, origin: Origin) -> None:
    assert Origin.of(url) == origin


def rules(
    *addresses: str, own: str | None = None, private: bool = False, hosts: tuple[str, ...] = ()
) -> AddressRules:
    """Rules in whose world every name stands for these addresses."""
    found = None if own is None else Origin.of(own)
    return AddressRules.read(found, hosts, lambda host, port: addresses, allow_private=private)


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "0177.0.0.1", "0x7f.1", "127.1", "017700000001", "1"]
)
def test_a_number_written_oddly_is_refused_even_if_it_stands_for_a_public_address(
    host: str,
) -> None:
    with pytest.raises(ImageError, match="unusual way"):
        rules("8.8.8.8").addresses(Origin.of(f"http://{host}/"))


def test_one_private_address_among_public_ones_refuses_the_host() -> None:
    with pytest.raises(ImageError, match="link-local"):
        rules("8.8.8.8", "169.254.169.254").addresses(Origin.of("http://images.example/"))


def test_a_literal_address_is_not_looked_up() -> None:
    with pytest.raises(ImageError, match="loopback"):
        rules("8.8.8.8").addresses(Origin.of("http://127.0.0.1/"))


def test_label_studio_may_be_private_at_its_own_port_only() -> None:
    found = rules("10.0.0.1", own="http://studio.internal:8080")
    assert found.addresses(Origin.of("http://studio.internal:8080/data")) == ("10.0.0.1",)
    for other in ("http://studio.internal/", "https://studio.internal:8080/"):
        with pytest.raises(ImageError, match="private"):
            found.addresses(Origin.of(other))


def test_a_named_host_may_be_private_and_is_then_the_only_one() -> None:
    found = rules("10.0.0.1", hosts=("store.internal",))
    assert found.addresses(Origin.of("http://store.internal/")) == ("10.0.0.1",)
    with pytest.raises(ImageError, match=r"images\.example is not in HRN_ALLOWED_HOSTS"):
        found.addresses(Origin.of("http://images.example/"))


def test_a_named_port_is_the_only_one() -> None:
    found = rules("10.0.0.1", hosts=("minio:9000",))
    assert found.addresses(Origin.of("http://minio:9000/a.jpg")) == ("10.0.0.1",)
    with pytest.raises(ImageError, match=r"minio:9001 is not in HRN_ALLOWED_HOSTS"):
        found.addresses(Origin.of("http://minio:9001/a.jpg"))


def test_a_wildcard_stands_for_the_names_below_a_domain() -> None:
    found = rules("10.0.0.1", hosts=("*.corp.example",))
    for name in ("store.corp.example", "a.b.Corp.Example."):
        assert found.addresses(Origin.of(f"http://{name}/"))
    for name in ("corp.example", "evilcorp.example", "corp.example.evil.example"):
        with pytest.raises(ImageError, match="not in HRN_ALLOWED_HOSTS"):
            found.addresses(Origin.of(f"http://{name}/"))


def test_public_beside_a_private_host_allows_both_and_no_other_private_one() -> None:
    found = rules("10.0.0.1", hosts=("public", "minio:9000"))
    assert found.addresses(Origin.of("http://minio:9000/"))
    assert rules("8.8.8.8", hosts=("public", "minio")).addresses(Origin.of("http://images.example"))
    with pytest.raises(ImageError, match=r"they should, add other to HRN_ALLOWED_HOSTS"):
        found.addresses(Origin.of("http://other/"))


def test_a_private_host_is_refused_with_the_setting_that_would_allow_it() -> None:
    with pytest.raises(ImageError, match=r"set HRN_ALLOWED_HOSTS=public,minio:9000$"):
        rules("10.0.0.1").addresses(Origin.of("http://minio:9000/"))


@pytest.mark.parametrize(
    ("text", "host", "port", "below"),
    [
        ("Minio", "minio", None, False),
        ("minio.:9000", "minio", 9000, False),
        ("*.Example.com", "example.com", None, True),
        ("*.b\u00fccher.example:1", "xn--bcher-kva.example", 1, True),
        ("10.0.0.7:80", "10.0.0.7", 80, False),
        ("fd00::7", "fd00::7", None, False),
        ("[fd00::7]:9000", "fd00::7", 9000, False),
    ],
)
def test_an_allowed_host_is_read_in_the_form_in_which_hosts_are_compared(
    text: str,
    host: str,
    port: int | None,
    below: bool,  # noqa: FBT001
) -> None:
    assert HostPattern.of(text) == HostPattern(host, port, below)


@pytest.mark.parametrize(
    "text",
    ["*", "*.", ".corp.example", "http://minio", "10.0.0.0/8", "minio:port", "minio:99999", "a*b",
     "me@minio", "*.10.0.0.1", "*.127.1", "minio:9000:1", ":9000", "a b"],
)  # fmt: skip
def test_what_is_no_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the setting says what was expected
        HostPattern.of(text)


def test_label_studio_needs_not_be_named_among_the_hosts() -> None:
    found = rules("10.0.0.1", own="http://studio.internal", hosts=("store.internal",))
    assert found.addresses(Origin.of("http://studio.internal/"))


def test_everything_may_be_private_if_asked_for() -> None:
    assert rules("10.0.0.1", private=True).addresses(Origin.of("http://store.internal/"))


def test_a_name_without_address_is_an_error() -> None:
    with pytest.raises(OSError, match="no address"):
        rules().addresses(Origin.of("http://images.example/"))


def test_the_system_knows_this_machine_and_refuses_a_name_that_is_none() -> None:
    assert set(system_resolver("localhost", 80)) & {"127.0.0.1", "::1"}
    with pytest.raises(OSError, match="not a valid host name"):
        system_resolver("a" * 64 + ".example", 80)


def test_a_shown_address_is_short_and_keeps_secrets() -> None:
    text = shown("https://me:secret@store.example/" + "x" * 500 + "?signature=secret#secret")
    assert len(text) < 110
    assert "secret" not in text
