"""Files that cost more than they seem to: refused before they are read, or read at little cost."""

import contextlib
import io
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from typing import Final

import pytest
from PIL import Image

from studio.errors import ImageError
from studio.image_decoder import MOST_EXIF, MOST_NUMBERS, ImageLimits, decode
from tests.studio.test_image_decoder import corners, png, saved

LIMITS: Final = ImageLimits()

#: Seconds that each of these files may take; all take less than two, a busy machine's share apart.
SECONDS: Final = 20.0


def refusal(data: bytes) -> str:
    """Why the file is refused, soon."""
    began = time.monotonic()
    with pytest.raises(ImageError) as raised:
        decode(data, limits=LIMITS)
    assert time.monotonic() - began < SECONDS
    return raised.value.reason


def tiff(*fields: tuple[int, int, int, int], big: bool = False, order: str = "<") -> bytes:
    """The head of a TIFF with these fields: tag, type, count, value or offset."""
    mark = b"II" if order == "<" else b"MM"
    if big:
        head = mark + struct.pack(f"{order}HHHQQ", 43, 8, 0, 16, len(fields))
        return head + b"".join(struct.pack(f"{order}HHQQ", *field) for field in fields) + bytes(8)
    head = mark + struct.pack(f"{order}HLH", 42, 8, len(fields))
    return head + b"".join(struct.pack(f"{order}HHLL", *field) for field in fields) + bytes(4)


#: A grey image of 4 x 4 in one strip.
FOUR: Final = ((256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1))


def exif(pieces: int) -> bytes:
    """A JPEG with so many pieces of Exif of 64 KB."""
    plain = saved(corners(), "JPEG")
    piece = b"II*\0" + struct.pack("<IH", 8, 0) + bytes(65_000)
    return (
        plain[:2]
        + (b"\xff\xe1" + struct.pack(">H", len(piece) + 8) + b"Exif\0\0" + piece) * (pieces)
        + plain[2:]
    )


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("kind", [3, 4, 13, 16])
def test_a_tiff_with_millions_of_strips_is_refused(big: bool, kind: int) -> None:  # noqa: FBT001
    many = (273, kind, MOST_NUMBERS + 1, 400), (279, kind, MOST_NUMBERS + 1, 400)
    for order in "<>":
        words = refusal(tiff(*FOUR, *many, big=big, order=order) + bytes(20_000_000))
        assert f"a field of {MOST_NUMBERS + 1} numbers" in words


def test_a_tiff_with_megabytes_of_notes_is_read() -> None:
    """Editors keep their own data in a TIFF."""
    notes = ((37724, 7, 5_000_000, 400), (700, 1, 2_000_000, 400))
    data = tiff(*FOUR, (273, 4, 1, 300), (278, 3, 1, 4), (279, 4, 1, 16), *notes)
    assert decode(data.ljust(8_000_000, b"\0"), limits=LIMITS).size == (4, 4)


def test_a_tiff_whose_directories_lead_in_a_ring_is_read() -> None:
    data = tiff(*FOUR, (273, 4, 1, 200), (278, 3, 1, 4), (279, 4, 1, 16))
    ring = data[:-4] + struct.pack("<I", 8)
    assert decode(ring.ljust(300, b"\0"), limits=LIMITS).size == (4, 4)


def test_tiff_fields_that_all_claim_the_same_megabytes_are_not_read() -> None:
    claims = tuple((10_000 + n, 7, 9_000_000, 50) for n in range(5_000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reader warns at each
        assert "cannot be read" in refusal(tiff(*claims) + bytes(9_500_000))


def test_endless_exif_is_refused() -> None:
    assert "pieces of Exif" in refusal(exif(MOST_EXIF + 1))


def test_exif_in_several_pieces_is_read() -> None:
    assert decode(exif(8), limits=LIMITS).size == (48, 32)


def test_a_giant_exif_in_a_png_is_read_or_refused_soon() -> None:
    claims = tuple((10_000 + n, 7, 9_000_000, 50) for n in range(5_000))
    data = png(4, 4, 8, 0, (b"eXIf", tiff(*claims) + bytes(9_500_000)),
               (b"IDAT", zlib.compress(bytes(20))))  # fmt: skip
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode(data, limits=LIMITS).size == (4, 4)
    assert time.monotonic() - began < SECONDS


def test_a_jpeg_that_goes_over_its_pixels_again_and_again_is_refused() -> None:
    file = io.BytesIO()
    Image.new("L", (9000, 9000)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert "9000 x 9000 pixels" in refusal(data[:-2] + scan * 100_000 + data[-2:])


def test_a_progressive_jpeg_of_a_large_camera_is_read() -> None:
    file = io.BytesIO()
    Image.new("RGB", (9504, 6336), "teal").save(file, "JPEG", progressive=True)
    assert decode(file.getvalue(), limits=LIMITS, at_least=300).mode == "RGB"


def _gif(frames: int) -> bytes:
    frame = b"\x21\xf9\x04" + bytes(5) + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0)
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    return head + (frame + b"\x02\x02\x44\x01\x00") * frames + b";"


@cache
def _zeros() -> bytes:
    """Half a gigabyte of zeros, packed once."""
    return zlib.compress(bytes(500_000_000), 1)


def _packed(kind: bytes, name: bytes) -> bytes:
    """A PNG of 4 x 4 beside half a gigabyte of zeros, packed."""
    return png(4, 4, 8, 0, (kind, name + _zeros()),
               (b"IDAT", zlib.compress(bytes(20))))  # fmt: skip


@pytest.mark.parametrize(
    "make",
    [
        lambda: _gif(100_000),
        lambda: _packed(b"zTXt", b"a\0\0"),
        lambda: _packed(b"iTXt", b"a\0\1\0\0\0"),
        lambda: _packed(b"iCCP", b"a\0\0"),
        lambda: png(4, 4, 8, 0, (b"IDAT", _zeros())),
        lambda: b"<svg xmlns='http://www.w3.org/2000/svg'>" + b"<g>" * 1_000_000,
        lambda: b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b '" + b"c" * 1_000_000,
    ],
    ids=["GIF of 100,000 frames", "zTXt", "iTXt", "iCCP", "IDAT", "SVG", "XML"],
)
def test_a_bomb_is_an_image_or_an_image_error_soon(make: Callable[[], bytes]) -> None:
    data = make()
    began = time.monotonic()
    with contextlib.suppress(ImageError):
        assert decode(data, limits=LIMITS).width <= 4
    assert time.monotonic() - began < SECONDS
