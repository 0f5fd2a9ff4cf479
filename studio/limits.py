"""How much one picture may cost: bytes, pixels and seconds."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PictureLimits:
    """What is allowed for one picture; whatever passes a limit is refused with the reason.

    Attributes:
        max_bytes: largest file, in bytes, after a content encoding such as gzip is undone.
        max_pixels: largest width x height in the file's header. The default lets 61-megapixel
            cameras in and stays below the size at which Pillow itself would start to warn.
        connect_timeout: seconds to wait for one address to accept a connection.
        read_timeout: seconds a server may stay silent.
        total_timeout: seconds for one picture, redirects and retries included. Only a name server
            that does not answer can exceed it: the system's look-up of names cannot be interrupted.
        max_redirects: redirects followed for one picture.
        retry_pauses: seconds to wait before each further try after a failure that may pass; its
            length is the number of retries.

    Raises:
        ValueError: a limit is not above zero, or a pause or the number of redirects is negative.
    """

    max_bytes: int = 50_000_000
    max_pixels: int = 89_000_000
    connect_timeout: float = 5.0
    read_timeout: float = 10.0
    total_timeout: float = 30.0
    max_redirects: int = 5
    retry_pauses: tuple[float, ...] = (0.2, 0.8)

    def __post_init__(self) -> None:
        """Refuse limits that would refuse everything or wait for ever."""
        for name in ("max_bytes", "max_pixels", "connect_timeout", "read_timeout", "total_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)!r}")
        if min((self.max_redirects, *self.retry_pauses)) < 0:
            raise ValueError("max_redirects and retry_pauses must not be negative")
