"""The process that decodes: `python -m studio.decoder`, started and spoken to by `studio.apart`.

A picture that crashes a reader, runs away or eats memory ends this process and nothing else. It has
no secrets, opens no files and no connections; pixels are all that it can send.

One picture after the other: ``REQUEST`` and the file on standard input, ``REPLY`` and its bytes on
standard output; it ends when standard input does.
"""

import os
import resource
import signal
import struct
import sys
from typing import Final

from PIL import Image

from studio.decoding import Fit, decode, planes
from studio.errors import PictureError
from studio.limits import PictureLimits

#: Bytes of the file, `PictureLimits.max_pixels`, ``at_least`` or 0 for `decode`; for `planes` how
#: many ``FIT`` follow.
REQUEST: Final = struct.Struct(">QQQB")
#: What `Fit` holds, the filter by Pillow's number.
FIT: Final = struct.Struct(">IIB")
#: ``FOUND``, width and height, then ``3 * width * height`` bytes; of `planes` the pixels of all
#: squares and 1, then each one's planes. Or ``REFUSED``, the length of the reason and 0, then the
#: reason.
REPLY: Final = struct.Struct(">BQQ")
FOUND, REFUSED = 0, 1

#: Bytes of memory for a pixel of the largest picture allowed; a float TIFF takes this much.
BYTES_A_PIXEL: Final = 40


def confine(max_pixels: int) -> None:
    """Give up what decoding does not need: memory without end, files, a core of private pixels."""
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - no pathlib for one line
        held = int(file.read().split()[0]) * resource.getpagesize()
    most = held + BYTES_A_PIXEL * max_pixels + (256 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def serve(cpu_seconds: float, seconds: float) -> None:
    """Answer until standard input ends, or a picture takes too long: then a signal ends us.

    Args:
        cpu_seconds: of computing, for one picture (SIGPROF).
        seconds: for one picture, however busy the machine is (SIGALRM).
    """
    answers = os.dup(1)
    os.dup2(2, 1)  # a library that prints must not be taken for an answer
    while head := _exactly(REQUEST.size):
        length, max_pixels, at_least, count = REQUEST.unpack(head)
        fits = [_fit(*FIT.unpack(_exactly(FIT.size))) for _ in range(count)]
        data = _exactly(length)
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        reply = _answer(data, max_pixels, at_least or None, fits)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for part in reply:
            _write(answers, part)


def _answer(
    data: bytes, max_pixels: int, at_least: int | None, fits: list[Fit]
) -> tuple[bytes, bytes]:
    limits = PictureLimits(max_pixels=max_pixels)
    try:
        if fits:
            squares = b"".join(planes(data, fits, limits=limits))
            return REPLY.pack(FOUND, len(squares) // 3, 1), squares
        image = decode(data, limits=limits, at_least=at_least)
    except PictureError as error:
        reason = error.reason.encode()
        return REPLY.pack(REFUSED, len(reason), 0), reason
    return REPLY.pack(FOUND, *image.size), image.tobytes()


def _fit(resize: int, crop: int, number: int) -> Fit:
    return Fit(resize, crop, Image.Resampling(number).name.lower())


def _exactly(length: int) -> bytes:
    """So many bytes of standard input; none if it has ended."""
    data = bytearray(length)
    view, got = memoryview(data), 0
    while got < length:
        if not (count := os.readv(0, [view[got:]])):
            return b""
        got += count
    return bytes(data)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def main() -> None:
    """Decode pictures for the process that started this one."""
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C and `kill` of a group: it decides
        signal.signal(number, signal.SIG_IGN)
    max_pixels, cpu_seconds, seconds = sys.argv[1:]
    Image.MAX_IMAGE_PIXELS = int(max_pixels)  # of a GIF's frames, say, which may exceed its size
    confine(int(max_pixels))
    serve(float(cpu_seconds), float(seconds))


if __name__ == "__main__":
    main()
