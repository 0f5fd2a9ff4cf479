"""Which TLS certificates are accepted: the same for Label Studio, images and our own address."""

import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import requests
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH

#: How to fix a refused certificate; ends the messages about one.
CERTIFICATE_HELP: Final = (
    "name the file of a private authority's certificate in REQUESTS_CA_BUNDLE or SSL_CERT_FILE"
)


def ssl_context(authorities: Iterable[Path] = ()) -> ssl.SSLContext:
    """Return a context that verifies against the public authorities and the given ones.

    Public are those of the system and those that `requests` brings (certifi): a company may have
    added its own to either.

    Args:
        authorities: files of certificates, or folders of them as OpenSSL hashes them.

    Raises:
        OSError: a file cannot be read, or holds no certificate (`ssl.SSLError`).
    """
    context = ssl.create_default_context()
    context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
    for path in authorities:
        if path.is_dir():
            context.load_verify_locations(capath=path)
        else:
            context.load_verify_locations(cafile=path)
    return context


class TrustAdapter(HTTPAdapter):
    """Makes `requests` verify with our context alone, not with what its own variables say."""

    def __init__(self, trust: ssl.SSLContext) -> None:
        self._trust = trust
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - passed on
        """Create the pool with our context."""
        super().init_poolmanager(*args, **kwargs, ssl_context=self._trust)

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passed on
        """Create the pool behind a proxy with our context."""
        return super().proxy_manager_for(*args, **kwargs, ssl_context=self._trust)

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:  # noqa: ANN401 - passed on
        """Send the request, always verifying."""
        return super().send(*args, **{**kwargs, "verify": True})

    def cert_verify(self, conn: Any, *_: object) -> None:  # noqa: ANN401 - a pool of urllib3
        """Require a certificate, whatever the environment says."""
        conn.cert_reqs = "CERT_REQUIRED"
