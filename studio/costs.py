"""Picture files that cost far more to read than their size and pixels say; refused beforehand.

Found by trying (2 cores): 40 MB of TIFF strips took 34 s and 1.3 GB for a picture of 4 x 4, 50 MB
of Exif in a JPEG 13 s, and 0.3 MB of repeated scans 16 s.
"""

import struct
from typing import Final

from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from studio.errors import PictureError
from studio.limits import PictureLimits

#: Pieces of Exif of at most 64 KB that a JPEG may have. Cameras write one; each further one has the
#: reader copy all earlier ones.
MOST_EXIF: Final = 64

#: Scans that each pixel allowed may pass through. Progressive JPEGs have about ten.
MOST_SCANS: Final = 16

#: Pixels that a JPEG in several scans may have for each that is allowed: six bytes each are held.
MOST_HELD: Final = 2

#: Numbers in one field of a TIFF: offsets of a picture in 16 x 16 tiles at the pixel limit take a
#: third of this.
MOST_NUMBERS: Final = 1_000_000

#: Types of a field that are read as one piece of bytes, whatever its length: bytes, text, data.
_PLAIN: Final = frozenset({1, 2, 6, 7})


def check_before(name: str, data: bytes) -> None:
    """Refuse what would cost too much on opening alone.

    Args:
        name: the format, as found by its first bytes.
        data: the file.

    Raises:
        PictureError: with the reason.
    """
    if name == "JPEG" and data.count(b"Exif\0\0") > MOST_EXIF:
        raise PictureError(f"the JPEG file has more than {MOST_EXIF} pieces of Exif data")
    if name == "TIFF" and (most := _numbers(data)) > MOST_NUMBERS:
        raise PictureError(
            f"the TIFF file has a field of {most} numbers, more than the allowed {MOST_NUMBERS}"
        )


def check_scans(
    image: ImageFile, data: bytes, size: tuple[int, int], limits: PictureLimits
) -> None:
    """Refuse a JPEG whose pixels are gone over too often, or of which too many are held at once.

    Args:
        image: opened, nothing decoded yet.
        data: the file.
        size: width and height in pixels, as the file has them.
        limits: ``max_pixels`` counts.

    Raises:
        PictureError: with the reason.
    """
    if not isinstance(image, JpegImageFile):
        return
    start = b"\xff\xda"  # of a scan; within one this pair does not occur
    scans, pixels = data.count(start), size[0] * size[1]
    # Where the last scan is not of all colours, every one of them is held until then, however
    # small the image comes out.
    held = data[data.rfind(start) + 4 :][:1] < bytes([image.layers])
    if (scans > 1 and scans * pixels > MOST_SCANS * limits.max_pixels) or (
        (held or "progressive" in image.info) and pixels > MOST_HELD * limits.max_pixels
    ):
        raise PictureError(
            f"the JPEG file goes over its {size[0]} x {size[1]} pixels {scans} times, which costs"
            " more than is allowed; HRN_MAX_MEGAPIXELS raises that"
        )


def _numbers(data: bytes) -> int:
    """The most numbers that a field of the first directory says it has; 0 if it cannot be read."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:3] == b"+" or data[3:4] == b"+"
    try:
        if big:
            (start,) = struct.unpack_from(f"{order}Q", data, 8)
            (fields,) = struct.unpack_from(f"{order}Q", data, start)
            rows = struct.iter_unpack(f"{order}HHQ8x", _rows(data, start + 8, fields, 20))
        else:
            (start,) = struct.unpack_from(f"{order}L", data, 4)
            (fields,) = struct.unpack_from(f"{order}H", data, start)
            rows = struct.iter_unpack(f"{order}HHL4x", _rows(data, start + 2, fields, 12))
        return max((count for _, kind, count in rows if kind not in _PLAIN), default=0)
    except (struct.error, OverflowError):  # the reader will say what is wrong
        return 0


def _rows(data: bytes, start: int, fields: int, length: int) -> bytes:
    """As many whole rows as there are."""
    found = data[start : start + min(fields, 65_536) * length]
    return found[: len(found) // length * length]
