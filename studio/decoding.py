"""From a picture file's bytes to upright 8-bit RGB, whatever the file holds.

The file's own first bytes choose the reader, and the readers are called by their class:
`PIL.Image.open` would judge the size by a process-wide setting and answer with a warning.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

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

from studio.costs import check_before, check_scans
from studio.errors import PictureError
from studio.limits import PictureLimits

if TYPE_CHECKING:  # the processes that decode need it for grey of many bits alone: 30 MB each
    import numpy as np
    from numpy.typing import NDArray

#: First bytes -> format's name and reader. An MPO (a camera's several pictures in one) begins as
#: the JPEG it shows.
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
#: What people mistake for a picture, or what we do not read: text or bytes near the start -> its
#: name.
_OTHERS: Final[tuple[tuple[bytes, str], ...]] = (
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript (EPS) drawing"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript (EPS) drawing"),
    (b"8BPS", "a Photoshop file"),
    (b"\x00\x00\x01\x00", "an icon (ICO)"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image (convert it to JPEG or PNG)"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image (convert it to JPEG or PNG)"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL image (convert it to JPEG or PNG)"),
    (b"\xff\x0a", "a JPEG XL image (convert it to JPEG or PNG)"),
    (b"{", "JSON text"),
    (b"[", "JSON text"),
)
#: Names of AVIF in the first box of an ISO media file, and of its relatives that are not read.
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
#: EXIF orientation (1 to 8) -> what makes the picture upright.
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Sides longer than this many times the other are cut before resizing, which would otherwise
#: make a strip of 1 x 50,000 pixels 256 times as large.
_MAX_RATIO: Final = 8
_ALLOWED: Final = "JPEG, PNG, WEBP, AVIF, GIF, BMP or TIFF"

# One thread for one image: others are decoded beside it, and each thread would take address space
# of the process that decodes, which has an end.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


@dataclass(frozen=True)
class Fit:
    """How a picture is brought to a network's size: the short side resized, the centre cut.

    Attributes:
        resize: length of the short side, in pixels.
        crop: side of the square that is cut.
        interpolation: Pillow's name of the filter, in small letters.
    """

    resize: int
    crop: int
    interpolation: str


def fitted(image: Image.Image, fit: Fit) -> Image.Image:
    """The square that a network is shown: pixel for pixel what torchvision does with Pillow.

    Args:
        image: RGB, upright, any size. Of one longer than 8 times its width (or wider), the middle
            is taken first.
        fit: the sizes.
    """
    image = _without_far_ends(image)
    width, height = image.size
    short, crop = min(width, height), fit.crop
    size = (int(fit.resize * width / short), int(fit.resize * height / short))
    if size != image.size:
        image = image.resize(size, Image.Resampling[fit.interpolation.upper()])
    # An odd margin is split as torchvision splits it: rounded to even.
    left, top = round((size[0] - crop) / 2), round((size[1] - crop) / 2)
    return image.crop((left, top, left + crop, top + crop))


def _without_far_ends(image: Image.Image) -> Image.Image:
    width, height = image.size
    most = _MAX_RATIO * min(width, height)
    if max(width, height) <= most:
        return image
    left, top = max(0, (width - most) // 2), max(0, (height - most) // 2)
    return image.crop((left, top, left + min(width, most), top + min(height, most)))


def decode(
    data: bytes,
    *,
    limits: PictureLimits,
    at_least: int | None = None,
) -> Image.Image:
    """The picture as RGB, 8 bits a channel, upright; of an animation or a stack the first one.

    What is transparent becomes white: cut-outs and drawings are made to be looked at on a white
    page, and so annotators see them. 16-bit grey keeps its scale (65535 is white). Grey of 32 bits
    or floats has no fixed white; it is taken as 0..1 (floats), 0..255 or 0..65535 if all values
    fit, else stretched from its least to its greatest value.

    Args:
        data: a JPEG (MPO too), PNG, WEBP, AVIF, GIF, BMP or TIFF file.
        limits: ``max_pixels`` is compared with the file's header, before anything is decoded. A
            larger JPEG comes out at 1/2, 1/4 or 1/8 of its size, if that is allowed.
        at_least: pixels; if given, a JPEG may come out so, which is two to four times faster, with
            its shorter side still at least this long.

    Raises:
        PictureError: the file is no such picture, too large, or damaged.
        ValueError: ``at_least`` is not above zero.
    """
    if at_least is not None and at_least < 1:
        raise ValueError(f"at_least must be above 0, got {at_least}")
    name, reader = _reader(data)
    check_before(name, data)
    try:
        with reader(BytesIO(data)) as image:
            whole = image.size
            _make_small(image, limits, at_least)
            _check_size(image.size, limits)
            check_scans(image, data, whole, limits)
            image.load()
            upright = _upright(_as_rgb(image), _orientation(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError(f"the {name} file has too many pixels: {error}") from error
    except _DAMAGE as error:
        words = str(error) or type(error).__name__
        raise PictureError(f"the {name} file cannot be read: {words}") from error
    upright.info = {}  # what it said of the file (an orientation!) is no longer true
    return upright


def planes(data: bytes, fits: Sequence[Fit], *, limits: PictureLimits) -> list[bytes]:
    """What networks are shown of a picture: all of its red, then its green, then its blue.

    Args:
        data: see `decode`.
        fits: how it is brought to each network's size; decoded once for all of them.
        limits: see `decode`.

    Returns:
        ``3 * crop * crop`` bytes for each.

    Raises:
        PictureError: see `decode`.
    """
    # Twice the size that is needed leaves the resizing filter everything it can use.
    image = decode(data, limits=limits, at_least=2 * max(fit.resize for fit in fits))
    squares = (fitted(image, fit) for fit in fits)
    return [b"".join(band.tobytes() for band in square.split()) for square in squares]


def _reader(data: bytes) -> tuple[str, Callable[[BytesIO], ImageFile]]:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP", WebPImageFile
    for start, found in _READERS.items():
        if data.startswith(start):
            return found
    if not _AVIF.isdisjoint(_brands(data)):
        return "AVIF", AvifImageFile
    raise PictureError(f"expected a {_ALLOWED} file, got {_looks_like(data)}")


def _looks_like(data: bytes) -> str:
    """What the file seems to be, for the message."""
    if not data:
        return "an empty one"
    if brands := _brands(data):
        return next((_RELATIVES[one[:3]] for one in brands if one[:3] in _RELATIVES), "a video")
    if data[128:132] == b"DICM":
        return "a DICOM image"
    head = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip()
    for start, what in _OTHERS:
        if data.startswith(start) or head.startswith(start):
            return what
    text = head.lower()
    for tag, what in (
        (b"<svg", "an SVG drawing"),
        (b"<html", "a web page"),
        (b"<!doctype html", "a web page"),
    ):
        if text.startswith(b"<") and tag in text:
            return what
    return f"something that begins with the bytes {data[:8].hex(' ')}"


def _brands(data: bytes) -> list[bytes]:
    """The formats that an ISO media file (MP4, HEIF) names in its first box, the main one first."""
    if data[4:8] != b"ftyp":
        return []
    box = data[8 : min(int.from_bytes(data[:4]), 512)]
    return [box[at : at + 4] for at in range(0, len(box), 4) if at != 4]  # between them a version


def _make_small(image: ImageFile, limits: PictureLimits, at_least: int | None) -> None:
    """Have a JPEG decoded at 1/2, 1/4 or 1/8, as far as that is enough, or it is too large."""
    width, height = image.size
    fitting = (n for n in (1, 2, 4, 8) if -(-width // n) * -(-height // n) <= limits.max_pixels)
    if (part := next(fitting, 0)) and (part > 1 or at_least is not None):
        least = at_least or max(width, height)
        image.draft(None, (min(least, max(1, width // part)), min(least, max(1, height // part))))


def _check_size(size: tuple[int, int], limits: PictureLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise PictureError(
            f"{width} x {height} pixels are more than the allowed {limits.max_pixels};"
            " HRN_MAX_MEGAPIXELS raises that"
        )
    if width < 1 or height < 1:
        raise PictureError(f"the file says it has {width} x {height} pixels")


def _as_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB on a white ground, detached from the file."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    seen = image.convert("RGBA")
    ground = Image.new("RGB", seen.size, "white")
    ground.paste(seen, mask=seen.getchannel("A"))
    return ground


def _eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Grey of 16 bits, or of no declared range, as (H, W) from 0 to 255.

    What is not a finite number becomes black.
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
    """EXIF orientation, 1 (upright) if there is none or it cannot be read.

    To be read after the pixels: a PNG may hold it behind them, and a TIFF is turned by its reader.
    """
    try:
        return int(image.getexif().get(Base.Orientation, 1))
    except _DAMAGE:
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)
