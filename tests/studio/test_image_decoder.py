"""Every kind of image file becomes upright 8-bit RGB; every other file an image error."""

import io
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, TiffImagePlugin

from studio.errors import ImageError
from studio.image_decoder import Fit, ImageLimits, decode
from studio.image_sandbox import SandboxedDecoder

LIMITS = ImageLimits()
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def saved(image: Image.Image, kind: str, **settings: Any) -> bytes:
    """The image as a file of that kind."""
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def corners() -> Image.Image:
    """48 x 32: red top left, green top right, blue bottom left, white bottom right."""
    image = Image.new("RGB", (48, 32), WHITE)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 23, 15), RED)
    draw.rectangle((24, 0, 47, 15), GREEN)
    draw.rectangle((0, 16, 23, 31), BLUE)
    return image


Colour = tuple[int, int, int]


def near(pixel: Any, expected: tuple[int, int, int], within: int = 6) -> bool:
    """Equal but for what a lossy format costs."""
    return all(abs(a - b) <= within for a, b in zip(pixel, expected, strict=True))


def shows_corners(image: Image.Image, within: int = 6) -> bool:
    """Is this the image of the four corners, upright?"""
    width, height = image.size
    places = {(5, 5): RED, (-6, 5): GREEN, (5, -6): BLUE, (-6, -6): WHITE}
    return all(
        near(image.getpixel((x % width, y % height)), colour, within)
        for (x, y), colour in places.items()
    )


def png(width: int, height: int, depth: int, kind: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file written by hand: what Pillow would not write."""
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in (head, *chunks, (b"IEND", b""))
    )


def reason(data: bytes, limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(ImageError) as raised:
        decode(data, limits=limits)
    return raised.value.reason


# Formats


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"quality": 95}),
        ("AVIF", {"quality": 95, "subsampling": "4:4:4"}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg", "quality": 95}),
        ("TIFF", {"big_tiff": True}),
    ],
)
def test_each_format_is_read(kind: str, settings: dict[str, Any]) -> None:
    image = decode(saved(corners(), kind, **settings), limits=LIMITS)
    assert (image.mode, image.size) == ("RGB", (48, 32))
    assert shows_corners(image, within=30 if kind in ("WEBP", "AVIF") else 8)


def test_an_avif_that_names_a_container_first_is_read() -> None:
    """As some phones and converters write it."""
    data = saved(corners(), "AVIF", quality=95).replace(b"ftypavif", b"ftypmif1", 1)
    assert shows_corners(decode(data, limits=LIMITS), within=30)


def test_a_clear_avif_becomes_white() -> None:
    data = saved(Image.new("RGBA", (8, 8), (*RED, 0)), "AVIF")
    assert near(decode(data, limits=LIMITS).getpixel((4, 4)), WHITE, 2)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "MPO", "PNG"])
def test_of_several_images_the_first_is_read(kind: str) -> None:
    others = [Image.new("RGB", (48, 32), "black"), Image.new("RGB", (48, 32), "gray")]
    settings = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "MPO" else {}
    data = saved(corners(), kind, save_all=True, append_images=others, **settings)
    assert shows_corners(decode(data, limits=LIMITS), within=30 if kind == "MPO" else 6)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "an empty one"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"\n%PDF-1.7\n", "a PDF document"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- x --><svg/>", "an SVG drawing"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "a PostScript (EPS) drawing"),
        (b"\xc5\xd0\xd3\xc6" + bytes(28), "a PostScript (EPS) drawing"),
        (b"<!DOCTYPE html><html>log in</html>", "a web page"),
        (b'{"detail": "not found"}', "JSON text"),
        (b"\x00\x00\x00\x18ftypheic" + bytes(16), "a HEIC image (convert it to JPEG"),
        (b"\x00\x00\x00\x18ftypmif1" + bytes(4) + b"mif1heix", "a HEIF image (convert it"),
        (b"\x00\x00\x00\x18ftypmp42" + bytes(16), "a video"),
        (b"\xff\x0a" + bytes(16), "a JPEG XL image (convert it"),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n" + bytes(16), "a JPEG XL image (convert it"),
        (b"PK\x03\x04" + bytes(26), "a ZIP archive"),
        (bytes(128) + b"DICM", "a DICOM image"),
        (b"GARBAGE!!", "begins with the bytes 47 41 52 42 41 47 45 21"),
        (saved(corners(), "ICO"), "an icon"),
        (saved(corners(), "JPEG2000"), "a JPEG 2000 image (convert it"),
        (saved(corners(), "EPS"), "a PostScript (EPS) drawing"),
        (saved(corners(), "PPM"), "begins with the bytes 50 36"),
        (saved(corners(), "PDF"), "a PDF document"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_file_is_refused_by_what_it_looks_like(data: bytes, words: str) -> None:
    assert reason(data).startswith("expected a JPEG, PNG, WEBP, AVIF, GIF, BMP or TIFF file, got ")
    assert words in reason(data)


# Size


@pytest.mark.parametrize(
    "data",
    [
        png(30_000, 30_000, 8, 2, (b"IDAT", zlib.compress(bytes(1000)))),
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, 54, 40, 30_000, 30_000, 1, 24, *[0] * 6),
        saved(corners(), "GIF").replace(struct.pack("<HH", 48, 32), b"\x30\x75\x30\x75", 1),
    ],
    ids=["PNG", "BMP", "GIF"],
)
def test_a_bomb_is_refused_by_its_header(data: bytes) -> None:
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        words = reason(data)
    assert time.perf_counter() - started < 0.1
    assert "30000 x 30000 pixels are more than the allowed 89000000" in words
    assert heard == []


def test_a_jpeg_bomb_is_refused_where_an_eighth_of_its_size_is_too_much() -> None:
    size = struct.pack(">HH", 32, 48)
    data = saved(corners(), "JPEG").replace(size, struct.pack(">HH", 65_500, 65_500), 1)
    words = reason(data, ImageLimits(max_pixels=60_000_000))
    assert "65500 x 65500 pixels are more than the allowed 60000000" in words
    assert "HRN_MAX_MEGAPIXELS raises that" in words
    held = saved(corners(), "JPEG", progressive=True).replace(
        size, struct.pack(">HH", 13_400, 13_400), 1
    )
    assert "goes over its 13400 x 13400 pixels" in reason(held)


@pytest.mark.parametrize(("allowed", "size"), [(1_920_000, 1), (480_000, 2), (30_000, 8)])
@pytest.mark.parametrize("at_least", [None, 1200])
def test_a_jpeg_above_the_limit_is_decoded_smaller(
    allowed: int, size: int, at_least: int | None
) -> None:
    data = saved(corners().resize((1600, 1200)), "JPEG", quality=95)
    limits = ImageLimits(max_pixels=allowed)
    image = decode(data, limits=limits, at_least=at_least)
    assert image.size == (1600 // size, 1200 // size)
    assert shows_corners(image)
    with pytest.raises(ImageError, match="1600 x 1200 pixels are more than the allowed 29999"):
        decode(data, limits=ImageLimits(max_pixels=29_999), at_least=at_least)


def test_a_scan_of_a_hundred_megapixels_is_read_as_a_network_is_shown_it() -> None:
    """A herbarium sheet; by the defaults, in a process whose memory has an end."""
    data = saved(corners().resize((12_000, 9_000)), "JPEG", quality=60)
    fit = Fit(256, 224, "bicubic")
    decoders = SandboxedDecoder(1)
    try:
        (planes,) = decoders.planes(data, [fit], limits=LIMITS)
        assert len(planes) == 3 * 224 * 224
    finally:
        decoders.close()


def test_a_larger_limit_that_is_set_counts_where_images_are_decoded() -> None:
    """A TIFF has no smaller form: 20 x more than usual is a matter of the setting alone."""
    few, many = ImageLimits.of(50, 1), ImageLimits.of(50, 100)
    data = saved(Image.new("L", (10_000, 9_500)), "TIFF", compression="tiff_lzw")
    for limits, fits in ((few, False), (many, True)):
        decoders = SandboxedDecoder(1, max_pixels=limits.max_pixels)
        try:
            if fits:
                assert decoders.decode(data, limits=limits).size == (10_000, 9_500)
            else:
                with pytest.raises(ImageError, match="HRN_MAX_MEGAPIXELS raises that"):
                    decoders.decode(data, limits=limits)
        finally:
            decoders.close()


def test_a_webp_tiff_or_avif_bomb_is_refused() -> None:
    for kind in ("WEBP", "TIFF", "AVIF"):
        data = saved(Image.new("1" if kind == "TIFF" else "RGB", (1600, 100)), kind)
        assert "1600 x 100 pixels" in reason(data, ImageLimits(max_pixels=159_999))


def test_a_gif_whose_frame_is_larger_than_it_says_is_refused() -> None:
    frame = b"," + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0) + b"\x08\x01\x00\x00"
    data = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6) + frame + b";"
    assert "too many pixels" in reason(data)


def test_the_pixel_limit_is_exact() -> None:
    data = saved(corners(), "PNG")
    assert decode(data, limits=ImageLimits(max_pixels=48 * 32)).size == (48, 32)
    assert "48 x 32 pixels" in reason(data, ImageLimits(max_pixels=48 * 32 - 1))


@pytest.mark.parametrize(
    ("at_least", "size"),
    [(None, (1600, 1200)), (1200, (1600, 1200)), (600, (800, 600)), (599, (800, 600)),
     (300, (400, 300)), (151, (400, 300)), (150, (200, 150)), (1, (200, 150))],
)  # fmt: skip
def test_a_jpeg_is_decoded_small_but_never_below_what_is_needed(
    at_least: int | None, size: tuple[int, int]
) -> None:
    data = saved(corners().resize((1600, 1200)), "JPEG", quality=95)
    image = decode(data, limits=LIMITS, at_least=at_least)
    assert image.size == size
    assert shows_corners(image)


def test_at_least_nothing_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at_least"):
        decode(saved(corners(), "JPEG"), limits=LIMITS, at_least=0)


# Upright


def turned(orientation: int) -> Image.Image:
    """The four corners as a camera stores them under that orientation."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    return corners().transpose(undo[orientation]) if orientation in undo else corners()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_s_orientation_is_undone(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    settings = {"lossless": True} if kind == "WEBP" else {}
    image = decode(saved(turned(orientation), kind, exif=exif, **settings), limits=LIMITS)
    assert image.size == (48, 32)
    assert shows_corners(image, within=60 if kind in ("JPEG", "MPO", "AVIF") else 0)
    assert not image.info
    assert not image.getexif()


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_changes_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert shows_corners(decode(saved(corners(), "PNG", exif=exif), limits=LIMITS))


def test_damaged_exif_does_not_cost_the_image() -> None:
    data = saved(corners(), "PNG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff" + bytes(10))
    assert shows_corners(decode(data, limits=LIMITS))


# Colour


def test_what_is_transparent_becomes_white() -> None:
    clear = corners()
    clear.putalpha(
        Image.linear_gradient("L").resize((48, 32)).point(lambda v: 0 if v < 128 else 255)
    )
    image = decode(saved(clear, "PNG"), limits=LIMITS)
    assert near(image.getpixel((5, 5)), WHITE, 0)
    assert near(image.getpixel((5, 26)), BLUE, 0)


def two(mode: str, first: Any, second: Any) -> Image.Image:
    """Two pixels side by side; of a palette, red is 0 and blue 1."""
    image = Image.new(mode, (2, 1), first)
    if mode == "P":
        image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), second)
    return image


@pytest.mark.parametrize(
    ("image", "kind", "settings", "expected"),
    [
        (two("RGBA", (*RED, 128), (*RED, 255)), "PNG", {}, ((255, 127, 127), RED)),
        (two("LA", (100, 255), (100, 0)), "PNG", {}, ((100, 100, 100), WHITE)),
        (two("P", 0, 1), "PNG", {"transparency": 0}, (WHITE, BLUE)),
        (two("P", 0, 1), "GIF", {"transparency": 0}, (WHITE, BLUE)),
        (two("P", 0, 1), "PNG", {"transparency": bytes([0, 128])}, (WHITE, (127, 127, 255))),
        (two("RGB", RED, GREEN), "PNG", {"transparency": RED}, (WHITE, GREEN)),
        (two("1", 0, 1), "PNG", {}, ((0, 0, 0), WHITE)),
        (two("1", 0, 1), "TIFF", {}, ((0, 0, 0), WHITE)),
        (two("1", 0, 1), "BMP", {}, ((0, 0, 0), WHITE)),
    ],
)
def test_pixels_are_laid_on_white(
    image: Image.Image,
    kind: str,
    settings: dict[str, Any],
    expected: tuple[Colour, ...],
) -> None:
    found = decode(saved(image, kind, **settings), limits=LIMITS)
    for x, colour in enumerate(expected):
        assert near(found.getpixel((x, 0)), colour, 1)


def test_a_palette_without_transparency_keeps_its_colours() -> None:
    assert shows_corners(decode(saved(corners().quantize(8), "PNG"), limits=LIMITS), within=0)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_keeps_its_colours(kind: str) -> None:
    """JPEG stores CMYK inverted, as Adobe does, and TIFF does not."""
    settings = {"quality": 95} if kind == "JPEG" else {}
    data = saved(corners().convert("CMYK"), kind, **settings)
    assert (b"Adobe\x00" in data) == (kind == "JPEG")
    assert shows_corners(decode(data, limits=LIMITS), within=30)


def sixteen(kind: str) -> bytes:
    grey = np.array([[0, 128, 257, 32_896, 65_407, 65_535]], dtype=np.uint16)
    if kind == "PNG":
        rows = b"\x00" + grey.astype(">u2").tobytes()
        return png(6, 1, 16, 0, (b"IDAT", zlib.compress(rows)))
    if kind == "TIFF, big end first":
        return saved(Image.frombytes("I;16B", (6, 1), grey.astype(">u2").tobytes()), "TIFF")
    return saved(Image.fromarray(grey), "TIFF")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "TIFF, big end first"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    found = np.asarray(decode(sixteen(kind), limits=LIMITS))
    assert found[0, :, 0].tolist() == [0, 0, 1, 128, 255, 255]
    assert (found == found[..., :1]).all()


def test_sixteen_bit_colour_is_scaled() -> None:
    rows = b"\x00" + np.array([65_535, 32_896, 257], dtype=">u2").tobytes()
    found = decode(png(1, 1, 16, 2, (b"IDAT", zlib.compress(rows))), limits=LIMITS)
    assert near(found.getpixel((0, 0)), (255, 128, 1), 0)


@pytest.mark.parametrize(
    ("grey", "expected"),
    [
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 257, 65_535]], np.int32), [0, 1, 255]),
        (np.array([[-100, 0, 100]], np.int32), [0, 128, 255]),
        (np.array([[0, 1_000_000]], np.int32), [0, 255]),
        (np.array([[0, 0.2, 1]], np.float32), [0, 51, 255]),
        (np.array([[0, 100, 255]], np.float32), [0, 100, 255]),
        (np.array([[-1, 0, np.nan, np.inf, 1]], np.float32), [0, 128, 0, 0, 255]),
        (np.array([[np.nan]], np.float32), [0]),
        (np.array([[-5, -5]], np.float32), [0, 0]),
    ],
)
def test_grey_of_no_declared_range_fills_eight_bits(
    grey: NDArray[Any], expected: list[int]
) -> None:
    found = np.asarray(decode(saved(Image.fromarray(grey), "TIFF"), limits=LIMITS))
    assert found[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("mode", "colour", "kind", "expected"),
    [
        ("L", 77, "JPEG", (77, 77, 77)),
        ("CMYK", (0, 0, 0, 255), "JPEG", (0, 0, 0)),
        ("YCbCr", (76, 85, 255), "TIFF", RED),
        ("LAB", (255, 128, 128), "TIFF", WHITE),
    ],
)
def test_other_colour_spaces_are_converted(
    mode: str, colour: Any, kind: str, expected: Colour
) -> None:
    data = saved(Image.new(mode, (16, 16), colour), kind)
    assert near(decode(data, limits=LIMITS).getpixel((8, 8)), expected)


# Damage


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_file_cut_short_is_an_image_error(kind: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), kind)
    assert f"{kind} file cannot be read" in reason(data[: int(len(data) * part)])


@pytest.mark.parametrize(
    "start", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\x00", b"MM\x00+"]
)
def test_a_beginning_alone_is_an_image_error(start: bytes) -> None:
    assert "cannot be read" in reason(start)


def test_a_png_with_a_wrong_checksum_is_an_image_error() -> None:
    data = bytearray(saved(corners(), "PNG"))
    data[data.index(b"IDAT") + 6] ^= 0xFF
    assert "PNG file cannot be read" in reason(bytes(data))


STARTS = [
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF89a",
    b"BM",
    b"II*\x00",
    b"MM\x00*",
    b"MM\x00+",
]


def only_image_errors(data: bytes) -> None:
    """Decoding gives RGB or an image error: nothing else comes out."""
    with suppress(ImageError):
        assert decode(data, limits=ImageLimits(max_pixels=100_000), at_least=8).mode == "RGB"


@settings(deadline=None)
@given(st.sampled_from([b"", b"RIFF\x00\x00\x00\x00WEBP", *STARTS]), st.binary(max_size=300))
@example(b"BM", bytes(60))
def test_random_bytes_are_an_image_error(start: bytes, rest: bytes) -> None:
    only_image_errors(start + rest)


def exif_file() -> bytes:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x0112] = 6
    return saved(corners(), "TIFF", tiffinfo=tags)


WHOLE: list[Callable[[], bytes]] = [
    *(lambda kind=kind: saved(corners(), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP")),
    exif_file,
]


@settings(deadline=None)
@given(
    st.sampled_from(WHOLE),
    st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_file_with_wrong_bytes_is_an_image_or_an_image_error(
    whole: Callable[[], bytes], changes: list[tuple[int, int]]
) -> None:
    data = bytearray(whole())
    for place, value in changes:
        data[place % len(data)] = value
    only_image_errors(bytes(data))


def test_threads_decode_side_by_side() -> None:
    files = [saved(corners(), kind) for kind in ("PNG", "GIF", "BMP", "TIFF")] * 8
    with ThreadPoolExecutor(8) as threads:
        images = list(threads.map(lambda data: decode(data, limits=LIMITS), files))
    assert all(shows_corners(image) for image in images)
