"""Whose certificates are accepted: one answer for Label Studio, images and our own address."""

import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from requests.utils import DEFAULT_CA_BUNDLE_PATH

#: What a refused certificate is told with.
CURE: Final = (
    "name the file of a private authority's certificate in REQUESTS_CA_BUNDLE or SSL_CERT_FILE"
)


def trusting(authorities: Iterable[Path] = ()) -> ssl.SSLContext:
    """A context that verifies, against the public authorities and these.

    Public are those that the system knows and those that `requests` brings (certifi): a company
    may have added its own to either.

    Args:
        authorities: files of certificates, or folders of them as OpenSSL hashes them.

    Raises:
        OSError: a file cannot be read, or holds no certificate (`ssl.SSLError`).
    """
    context = ssl.create_default_context()
    context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
    for place in authorities:
        if place.is_dir():
            context.load_verify_locations(capath=place)
        else:
            context.load_verify_locations(cafile=place)
    return context
