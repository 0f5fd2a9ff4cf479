"""How much one picture may cost: bytes, pixels and seconds."""

from dataclasses import dataclass
from typing import Self

from studio.errors import PictureError


@dataclass(frozen=True, kw_only=True)
class PictureLimits:
    """What is allowed for one picture; whatever passes a limit is refused with the reason.

    Attributes:
        max_bytes: largest file, in bytes, after a content encoding such as gzip is undone.
        max_pixels: largest width x height that is decoded; of a JPEG, which can be decoded at 1/2,
            1/4 or 1/8 of its size, after that. The default lets 61-megapixel cameras in and stays
            below the size at which Pillow itself would start to warn.
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

    @classmethod
    def of(cls, megabytes: float, megapixels: float) -> Self:
        """Limits for files of such a size, with time to fetch them in proportion."""
        usual, most = cls(), int(megabytes * 1e6)
        seconds = usual.total_timeout * max(1.0, most / usual.max_bytes)
        return cls(max_bytes=most, max_pixels=int(megapixels * 1e6), total_timeout=seconds)

    def check_bytes(self, size: int) -> None:
        """Refuse a file of more bytes.

        Raises:
            PictureError: with the setting that raises the limit.
        """
        if size > self.max_bytes:
            raise PictureError(
                f"larger than the allowed {self.max_bytes} bytes; HRN_MAX_MEGABYTES raises that"
            )

    def __post_init__(self) -> None:
        """Refuse limits that would refuse everything or wait for ever."""
        for name in ("max_bytes", "max_pixels", "connect_timeout", "read_timeout", "total_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)!r}")
        if min((self.max_redirects, *self.retry_pauses)) < 0:
            raise ValueError("max_redirects and retry_pauses must not be negative")
