"""From an image file's bytes to upright 8-bit RGB, whatever the file holds.

The file's first bytes choose the reader, and readers are called by their class: `PIL.Image.open`
would compare the size with a process-wide setting and answer with a warning. What costs far more to
read than its size and pixels say is refused beforehand.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, Self

from PIL import AvifImagePlugin, Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.ExifTags import Base
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from studio.errors import ImageError

if TYPE_CHECKING:  # decoding processes need it for grey of many bits alone: 30 MB each
    import numpy as np
    from numpy.typing import NDArray

#: First bytes -> format's name and reader. An MPO (a camera's several images in one) begins as the
#: JPEG it shows.
_READERS: Final[dict[bytes, tuple[str, Callable[[BytesIO], ImageFile]]]] = {
    b"\xff\xd8\xff": ("JPEG", JpegImageFile),
    b"\x89PNG\r\n\x1a\n": ("PNG", PngImageFile),
    b"GIF87a": ("GIF", GifImageFile),
    b"GIF89a": ("GIF", GifImageFile),
    b"BM": ("BMP", BmpImageFile),
    b"II*\x00": ("TIFF", TiffImageFile),
    b"MM\x00*": ("TIFF", TiffImageFile),
    b"II+\x00": ("TIFF", TiffImageFile),
    b"MM\x00+": ("TIFF", TiffImageFile),
}
#: First bytes of what people mistake for an image, or what is not read -> its name.
_NOT_READ: Final = {
    b"%PDF": "a PDF document",
    b"%!PS": "a PostScript (EPS) drawing",
    b"\xc5\xd0\xd3\xc6": "a PostScript (EPS) drawing",
    b"8BPS": "a Photoshop file",
    b"\x00\x00\x01\x00": "an icon (ICO)",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x00\x00\x00\x0cjP  ": "a JPEG 2000 image (convert it to JPEG or PNG)",
    b"\xff\x4f\xff\x51": "a JPEG 2000 image (convert it to JPEG or PNG)",
    b"\x00\x00\x00\x0cJXL ": "a JPEG XL image (convert it to JPEG or PNG)",
    b"\xff\x0a": "a JPEG XL image (convert it to JPEG or PNG)",
    b"{": "JSON text",
    b"[": "JSON text",
}
#: Tags of markup that is mistaken for an image -> its name.
_MARKUP: Final = {
    b"<svg": "an SVG drawing",
    b"<html": "a web page",
    b"<!doctype html": "a web page",
}
#: Brands of AVIF in the first box of an ISO media file, and of its relatives that are not read.
_AVIF: Final = frozenset({b"avif", b"avis"})
_RELATIVES: Final = {
    b"hei": "a HEIC image (convert it to JPEG; phones can be set to take JPEG)",
    b"hev": "a HEIC image (convert it to JPEG; phones can be set to take JPEG)",
    b"crx": "a camera's raw image (CR3; convert it to JPEG)",
    b"mif": "a HEIF image (convert it to JPEG)",
}
#: Everything that reading a damaged file is known or likely to raise. Not `Exception`: a job's time
#: limit arrives as one, in the middle of whatever runs, and must pass.
_DAMAGE: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    Warning,
    struct.error,
    zlib.error,
)
#: EXIF orientation (1 to 8) -> the turn that makes the image upright.
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Images longer than this many times their width (or wider) are cut before resizing, which would
#: otherwise make a strip of 1 x 50,000 pixels 256 times as large.
_MAX_RATIO: Final = 8
_ALLOWED: Final = "JPEG, PNG, WEBP, AVIF, GIF, BMP or TIFF"

# Found by trying (2 cores): 40 MB of TIFF strips took 34 s and 1.3 GB for an image of 4 x 4, 50 MB
# of Exif in a JPEG 13 s, and 0.3 MB of repeated scans 16 s.

#: Pieces of Exif of at most 64 KB that a JPEG may have. Cameras write one; each further one has the
#: reader copy all earlier ones.
MOST_EXIF: Final = 64
#: Scans that each allowed pixel may pass through. Progressive JPEGs have about ten.
MOST_SCANS: Final = 16
#: Pixels that a JPEG in several scans may have per allowed pixel: six bytes each are held.
MOST_HELD: Final = 2
#: Numbers in one field of a TIFF: offsets of an image in 16 x 16 tiles at the pixel limit take a
#: third of this.
MOST_NUMBERS: Final = 1_000_000
#: Types of a TIFF field that are read as one piece of bytes, whatever its length.
_PLAIN: Final = frozenset({1, 2, 6, 7})

# One thread per image: others are decoded beside it, and each thread would take address space of
# the decoding process, which is limited.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """How much one image may cost; whatever passes a limit is refused with the reason.

    Attributes:
        max_bytes: largest file, in bytes, after a content encoding such as gzip is undone.
        max_pixels: largest width x height that is decoded; for a JPEG, which can be decoded at 1/2,
            1/4 or 1/8 of its size, after that. The default lets 61-megapixel cameras in and stays
            below the size at which Pillow itself would start to warn.
        connect_timeout: seconds to wait for one address to accept a connection.
        read_timeout: seconds a server may stay silent.
        total_timeout: seconds per image, redirects and retries included. Only a name server that
            does not answer can exceed it: the system's look-up of names cannot be interrupted.
        max_redirects: redirects followed per image.
        retry_pauses: seconds to wait before each retry after a failure that may pass; its length
            is the number of retries.

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
        """Return limits for files of this size, with time to fetch them in proportion."""
        usual, most = cls(), int(megabytes * 1e6)
        seconds = usual.total_timeout * max(1.0, most / usual.max_bytes)
        return cls(max_bytes=most, max_pixels=int(megapixels * 1e6), total_timeout=seconds)

    def check_bytes(self, size: int) -> None:
        """Refuse a file of more bytes.

        Raises:
            ImageError: with the setting that raises the limit.
        """
        if size > self.max_bytes:
            raise ImageError(
                f"larger than the allowed {self.max_bytes} bytes; HRN_MAX_MEGABYTES raises that"
            )

    def __post_init__(self) -> None:
        """Refuse limits that would refuse everything or wait forever."""
        for name in ("max_bytes", "max_pixels", "connect_timeout", "read_timeout", "total_timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)!r}")
        if min((self.max_redirects, *self.retry_pauses)) < 0:
            raise ValueError("max_redirects and retry_pauses must not be negative")


@dataclass(frozen=True)
class Fit:
    """How an image is brought to a network's size: the short side resized, the centre cut.

    Attributes:
        resize: length of the short side, in pixels.
        crop: side of the square that is cut.
        interpolation: Pillow's name of the filter, in lower case.
    """

    resize: int
    crop: int
    interpolation: str


def fitted(image: Image.Image, fit: Fit) -> Image.Image:
    """Return the square that a network gets: pixel for pixel what torchvision does with Pillow.

    Args:
        image: RGB, upright, any size. Of one longer than 8 times its width (or wider), the middle
            is taken first.
        fit: the sizes.
    """
    width, height = image.size
    most = _MAX_RATIO * min(width, height)
    if max(width, height) > most:
        left, top = max(0, (width - most) // 2), max(0, (height - most) // 2)
        image = image.crop((left, top, left + min(width, most), top + min(height, most)))
        width, height = image.size
    short, crop = min(width, height), fit.crop
    size = (int(fit.resize * width / short), int(fit.resize * height / short))
    if size != image.size:
        image = image.resize(size, Image.Resampling[fit.interpolation.upper()])
    # An odd margin is split as torchvision splits it: rounded to even.
    left, top = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
    return image.crop((left, top, left + crop, top + crop))


def decode(data: bytes, *, limits: ImageLimits, at_least: int | None = None) -> Image.Image:
    """Return the image as RGB, 8 bits per channel, upright; the first one of an animation or stack.

    Transparent parts become white: cut-outs and drawings are made to be seen on a white page, and
    annotators see them so. 16-bit grey keeps its scale (65535 is white). Grey of 32 bits or floats
    has no fixed white; it is taken as 0..1 (floats), 0..255 or 0..65535 if all values fit, else
    stretched from its least to its greatest value.

    Args:
        data: a JPEG (MPO too), PNG, WEBP, AVIF, GIF, BMP or TIFF file.
        limits: ``max_pixels`` is compared with the file's header, before anything is decoded. A
            larger JPEG is decoded at 1/2, 1/4 or 1/8 of its size, if that is allowed.
        at_least: pixels; if given, a JPEG may be decoded so, which is two to four times faster,
            with its shorter side still at least this long.

    Raises:
        ImageError: the file is no such image, too large, or damaged.
        ValueError: ``at_least`` is not above zero.
    """
    if at_least is not None and at_least < 1:
        raise ValueError(f"at_least must be above 0, got {at_least}")
    name, reader = _reader(data)
    _check_before(name, data)
    try:
        with reader(BytesIO(data)) as image:
            whole = image.size
            _make_small(image, limits, at_least)
            _check_size(image.size, limits)
            _check_scans(image, data, whole, limits)
            image.load()
            upright = _as_rgb(image)
            turn = _UPRIGHT.get(_orientation(image))
            if turn is not None:  # FLIP_LEFT_RIGHT is 0
                upright = upright.transpose(turn)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"the {name} file has too many pixels: {error}") from error
    except _DAMAGE as error:
        words = str(error) or type(error).__name__
        raise ImageError(f"the {name} file cannot be read: {words}") from error
    upright.info = {}  # what it said of the file (an orientation!) is no longer true
    return upright


def planes(
    data: bytes,
    fits: Sequence[Fit],
    *,
    limits: ImageLimits,
    decode: Callable[..., Image.Image] = decode,
) -> list[bytes]:
    """Return the inputs of networks: all of the image's red, then its green, then its blue.

    Args:
        data: see `decode`.
        fits: how the image is brought to each network's size; it is decoded once for all of them.
        limits: see `decode`.
        decode: decodes the file.

    Returns:
        ``3 * crop * crop`` bytes per network.

    Raises:
        ImageError: see `decode`.
    """
    # Twice the size that is needed leaves the resizing filter everything it can use.
    image = decode(data, limits=limits, at_least=2 * max(fit.resize for fit in fits))
    squares = (fitted(image, fit) for fit in fits)
    return [b"".join(band.tobytes() for band in square.split()) for square in squares]


# The format


def _reader(data: bytes) -> tuple[str, Callable[[BytesIO], ImageFile]]:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP", WebPImageFile
    for start, found in _READERS.items():
        if data.startswith(start):
            return found
    if not _AVIF.isdisjoint(_brands(data)):
        return "AVIF", AvifImageFile
    raise ImageError(f"expected a {_ALLOWED} file, got {_guess(data)}")


def _guess(data: bytes) -> str:
    """Name what the file seems to be, for the message."""
    if not data:
        return "an empty one"
    if brands := _brands(data):
        return next((_RELATIVES[one[:3]] for one in brands if one[:3] in _RELATIVES), "a video")
    if data[128:132] == b"DICM":
        return "a DICOM image"
    head = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip()
    for start, name in _NOT_READ.items():
        if data.startswith(start) or head.startswith(start):
            return name
    if head.startswith(b"<"):
        for tag, name in _MARKUP.items():
            if tag in head.lower():
                return name
    return f"something that begins with the bytes {data[:8].hex(' ')}"


def _brands(data: bytes) -> list[bytes]:
    """Return the formats that an ISO media file (MP4, HEIF) names in its first box."""
    if data[4:8] != b"ftyp":
        return []
    box = data[8 : min(int.from_bytes(data[:4]), 512)]
    return [box[at : at + 4] for at in range(0, len(box), 4) if at != 4]  # between them a version


# Costs, before anything is decoded


def _check_before(name: str, data: bytes) -> None:
    """Refuse what would cost too much on opening alone."""
    if name == "JPEG" and data.count(b"Exif\0\0") > MOST_EXIF:
        raise ImageError(f"the JPEG file has more than {MOST_EXIF} pieces of Exif data")
    if name == "TIFF" and (most := _most_numbers(data)) > MOST_NUMBERS:
        raise ImageError(
            f"the TIFF file has a field of {most} numbers, more than the allowed {MOST_NUMBERS}"
        )


def _most_numbers(data: bytes) -> int:
    """Return the most numbers that a field of a TIFF's first directory claims; 0 if unreadable."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:3] == b"+" or data[3:4] == b"+"
    start_at, start_type, count_type, row = (
        (8, "Q", "Q", "HHQ8x") if big else (4, "L", "H", "HHL4x")
    )
    try:
        (start,) = struct.unpack_from(order + start_type, data, start_at)
        (fields,) = struct.unpack_from(order + count_type, data, start)
        start += struct.calcsize(order + count_type)
        length = struct.calcsize(order + row)
        found = data[start : start + min(fields, 65_536) * length]
        rows = struct.iter_unpack(order + row, found[: len(found) // length * length])
        return max((count for _, kind, count in rows if kind not in _PLAIN), default=0)
    except (struct.error, OverflowError):  # the reader will say what is wrong
        return 0


def _check_scans(image: ImageFile, data: bytes, size: tuple[int, int], limits: ImageLimits) -> None:
    """Refuse a JPEG that goes over its pixels too often, or holds too many of them at once.

    Args:
        image: opened, nothing decoded yet.
        data: the file.
        size: width and height in pixels, as the file has them.
        limits: ``max_pixels`` counts.
    """
    if not isinstance(image, JpegImageFile):
        return
    start = b"\xff\xda"  # of a scan; within one this pair does not occur
    scans, pixels = data.count(start), size[0] * size[1]
    # Where the last scan is not of all colours, every pixel is held until then, however small the
    # image is decoded.
    held = data[data.rfind(start) + 4 :][:1] < bytes([image.layers])
    if (scans > 1 and scans * pixels > MOST_SCANS * limits.max_pixels) or (
        (held or "progressive" in image.info) and pixels > MOST_HELD * limits.max_pixels
    ):
        raise ImageError(
            f"the JPEG file goes over its {size[0]} x {size[1]} pixels {scans} times, which costs"
            " more than is allowed; HRN_MAX_MEGAPIXELS raises that"
        )


def _make_small(image: ImageFile, limits: ImageLimits, at_least: int | None) -> None:
    """Have a JPEG decoded at 1/2, 1/4 or 1/8, as far as that is enough, or it is too large."""
    width, height = image.size
    allowed = (n for n in (1, 2, 4, 8) if -(-width // n) * -(-height // n) <= limits.max_pixels)
    if (part := next(allowed, 0)) and (part > 1 or at_least is not None):
        least = at_least or max(width, height)
        image.draft(None, (min(least, max(1, width // part)), min(least, max(1, height // part))))


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise ImageError(
            f"{width} x {height} pixels are more than the allowed {limits.max_pixels};"
            " HRN_MAX_MEGAPIXELS raises that"
        )
    if width < 1 or height < 1:
        raise ImageError(f"the file says it has {width} x {height} pixels")


# The pixels


def _as_rgb(image: Image.Image) -> Image.Image:
    """Return 8-bit RGB on white, detached from the file."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    with_alpha = image.convert("RGBA")
    white = Image.new("RGB", with_alpha.size, "white")
    white.paste(with_alpha, mask=with_alpha.getchannel("A"))
    return white


def _eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Return grey of 16 bits, or of no declared range, as (H, W) from 0 to 255.

    Values that are not finite become black.
    """
    import numpy as np

    values: NDArray[Any] = np.asarray(image)
    if image.mode.startswith("I;16"):
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    whites = (255.0, 65535.0) if image.mode == "I" else (1.0, 255.0, 65535.0)
    grey = values.astype(np.float64)
    finite = np.isfinite(grey)
    if not finite.any():
        return np.zeros(grey.shape, np.uint8)
    least, most = float(grey[finite].min()), float(grey[finite].max())
    white = next((white for white in whites if least >= 0 and most <= white), None)
    black, white = (least, most) if white is None else (0.0, white)
    scaled = (np.where(finite, grey, black) - black) / ((white - black) or 1.0)
    return np.rint(scaled * 255).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) if there is none or it cannot be read.

    To be read after the pixels: a PNG may hold it behind them, and a TIFF is turned by its reader.
    """
    try:
        return int(image.getexif().get(Base.Orientation, 1))
    except _DAMAGE:
        return 1
