"""Image decoding in processes of its own: a file that crashes or hangs one costs itself only.

Pillow and the libraries under it parse files from strangers in C. `SandboxedDecoder` takes the
place of `InProcessDecoder` and returns the same images and the same errors. Its processes run this
module (`python -m studio.image_sandbox`): they have no secrets, open no files and no connections,
and can send pixels only.

Per image: ``REQUEST`` and the file on standard input, ``REPLY`` and its bytes on standard output; a
process ends when its standard input does.
"""

import hashlib
import logging
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final, Protocol

from PIL import Image

from studio import image_decoder
from studio.errors import ImageError, ImageUnavailableError
from studio.image_decoder import Fit, ImageLimits

log = logging.getLogger(__name__)

#: How a decoding process is started; its settings follow.
COMMAND: Final[list[str]] = [sys.executable, "-m", "studio.image_sandbox"]
#: Bytes of the file, `ImageLimits.max_pixels`, ``at_least`` or 0 for `decode`, and the number of
#: ``FIT`` that follow for `planes`.
REQUEST: Final = struct.Struct(">QQQB")
#: The fields of `Fit`, the filter by Pillow's number.
FIT: Final = struct.Struct(">IIB")
#: ``FOUND``, width and height, then ``3 * width * height`` bytes; for `planes` the pixels of all
#: inputs and 1, then the planes of each. Or ``REFUSED``, the length of the reason and 0, then the
#: reason.
REPLY: Final = struct.Struct(">BQQ")
FOUND, REFUSED = 0, 1

#: Seconds of computing per image: the most expensive that the limits let through take five.
CPU_SECONDS: Final = 20.0
#: Seconds per image on a machine however busy.
SECONDS: Final = 60.0
#: Bytes of memory per pixel of the largest image allowed; a float TIFF takes this much.
BYTES_PER_PIXEL: Final = 40
#: Bytes in a pipe: most images fit, so that the two processes wait less for each other. What Linux
#: allows anyone.
PIPE: Final = 1 << 20
#: Settings of glibc that keep memory for the next image. By default it is given back after each,
#: and the system clears it again page by page: a fifth of the time of a photo.
_KEEP_MEMORY: Final = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # larger pieces are still given back
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),  # and so is what is free beyond this
}
#: Images remembered that ended a process, so that they do not do it each time they are met.
_REMEMBERED: Final = 1000
#: Longest reason that is read from a process, which may have been taken over.
_LONGEST_REASON: Final = 10_000


class ImageDecoder(Protocol):
    """Decodes files to images: `SandboxedDecoder` or `InProcessDecoder`."""

    def decode(
        self, data: bytes, *, limits: ImageLimits, at_least: int | None = None
    ) -> Image.Image:
        """See `studio.image_decoder.decode`."""
        ...

    def planes(
        self, data: bytes, fits: Sequence[Fit], *, limits: ImageLimits
    ) -> Sequence[bytes | bytearray | memoryview]:
        """See `studio.image_decoder.planes`."""
        ...


class InProcessDecoder:
    """Decodes in this process: for images that are trusted."""

    def decode(
        self, data: bytes, *, limits: ImageLimits, at_least: int | None = None
    ) -> Image.Image:
        """See `studio.image_decoder.decode`."""
        return image_decoder.decode(data, limits=limits, at_least=at_least)

    def planes(self, data: bytes, fits: Sequence[Fit], *, limits: ImageLimits) -> list[bytes]:
        """See `studio.image_decoder.planes`."""
        return image_decoder.planes(data, fits, limits=limits)


class _ProcessEndedError(Exception):
    """A decoding process is gone.

    Attributes:
        status: its exit status.
    """

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Process:
    """One decoding process, for one caller at a time."""

    def __init__(self, max_pixels: int, cpu_seconds: float, seconds: float) -> None:
        root = str(Path(__file__).resolve().parents[1])
        # Where Python and this package are, and no secret.
        environ = {
            name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ
        }
        environ |= {"PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [*COMMAND, str(max_pixels), str(cpu_seconds), str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # libtiff and libpng comment on what they read
            bufsize=0,
            env={**environ, **_KEEP_MEMORY},
            pipesize=PIPE,
        )
        self.pid = self._process.pid
        assert self._process.stdin is not None  # noqa: S101 - made with pipes
        assert self._process.stdout is not None  # noqa: S101
        self._input = self._process.stdin.fileno()
        self._output = self._process.stdout.fileno()

    def run(
        self, data: bytes, limits: ImageLimits, at_least: int | None, fits: Sequence[Fit]
    ) -> tuple[tuple[int, int], bytearray]:
        """Return an image's width, height and pixels; the inputs where ``fits`` are given.

        Raises:
            ImageError: with the reason that the process gave.
            _ProcessEndedError: the process is gone.
        """
        try:
            head = REQUEST.pack(len(data), limits.max_pixels, at_least or 0, len(fits))
            _write(self._input, head + b"".join(map(_packed, fits)))
            _write(self._input, data)
        except BrokenPipeError:
            raise _ProcessEndedError(self._process.wait()) from None
        kind, first, second = REPLY.unpack(self._receive(REPLY.size))
        if kind == FOUND:
            squares = sum(fit.crop**2 for fit in fits)
            if (first, second) == (squares, 1) if fits else first * second <= limits.max_pixels:
                return (first, second), self._receive(3 * first * second)
        elif first <= _LONGEST_REASON:
            raise ImageError(self._receive(first).decode("utf-8", "replace"))
        raise _ProcessEndedError(self.end())  # no reply of ours: whatever wrote it must go

    def end(self) -> int:
        """Kill the process, if it still runs; return its exit status."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        return self._process.wait()

    def _receive(self, length: int) -> bytearray:
        data = _read(self._output, length)
        if len(data) < length:
            raise _ProcessEndedError(self._process.wait())
        return data


class SandboxedDecoder:
    """A few decoding processes, started when first needed. Threads may share it.

    A forked process that uses it starts processes of its own. They end with the process that
    started them, however it ends.
    """

    def __init__(
        self,
        processes: int | None = None,
        *,
        max_pixels: int = ImageLimits.max_pixels,
        cpu_seconds: float = CPU_SECONDS,
        seconds: float = SECONDS,
    ) -> None:
        """Start nothing yet.

        Args:
            processes: images decoded at once, at most; one more than there are cores if not
                given, and no more than 16.
            max_pixels: of the largest image that is asked for: memory for it, and time in
                proportion where it is more than usual.
            cpu_seconds: of computing, per image.
            seconds: per image, however busy the machine is.
        """
        self._most = processes or min(16, (os.cpu_count() or 1) + 1)
        factor = max(1.0, max_pixels / ImageLimits.max_pixels)
        self._settings = (max_pixels, factor * cpu_seconds, factor * seconds)
        self._harmful: OrderedDict[bytes, str] = OrderedDict()
        self._reset()

    def decode(
        self, data: bytes, *, limits: ImageLimits, at_least: int | None = None
    ) -> Image.Image:
        """Return the image; see `studio.image_decoder.decode`.

        Raises:
            ImageError: the file is no image, too large, damaged, or it crashed or hung the
                process that read it.
            ValueError: ``at_least`` is not above zero.
        """
        if at_least is not None and at_least < 1:
            raise ValueError(f"at_least must be above 0, got {at_least}")
        size, pixels = self._run(data, limits, at_least, ())
        return Image.frombytes("RGB", size, pixels)

    def planes(self, data: bytes, fits: Sequence[Fit], *, limits: ImageLimits) -> list[memoryview]:
        """Return the inputs of networks; see `studio.image_decoder.planes`.

        Raises:
            ImageError: see `decode`.
        """
        _, pixels = self._run(data, limits, None, fits)
        view = memoryview(pixels)
        ends = list(accumulate(3 * fit.crop**2 for fit in fits))
        return [view[start:end] for start, end in pairwise([0, *ends])]

    def close(self) -> None:
        """End the processes; the next image starts new ones."""
        self._finish()
        self._reset()

    @property
    def processes(self) -> list[int]:
        """The process ids."""
        return [process.pid for process in self._running]

    def _reset(self) -> None:
        self._owner = os.getpid()
        self._slots = threading.BoundedSemaphore(self._most)
        self._idle: list[_Process] = []
        self._running: list[_Process] = []
        self._finish = weakref.finalize(self, _end_all, self._running, self._owner)

    def _run(
        self, data: bytes, limits: ImageLimits, at_least: int | None, fits: Sequence[Fit]
    ) -> tuple[tuple[int, int], bytearray]:
        if self._harmful and (reason := self._harmful.get(hashlib.sha256(data).digest())):
            raise ImageError(reason)
        if self._owner != os.getpid():
            self._reset()  # after a fork: the pipes are the parent's
        with self._slots:
            try:
                try:
                    process = self._idle.pop()
                except IndexError:  # not looked up before: another thread may take the last one
                    process = self._start()
                return self._run_in(process, data, limits, at_least, fits)
            except _ProcessEndedError as ended:
                if ended.status != -signal.SIGKILL:
                    raise ImageError(self._remember(data, ended.status)) from None
            try:  # an operator or lack of memory may have killed it: the image may be innocent
                return self._run_in(self._start(), data, limits, at_least, fits)
            except _ProcessEndedError as ended:
                raise ImageError(self._remember(data, ended.status)) from None

    def _start(self) -> _Process:
        try:
            process = _Process(*self._settings)
        except OSError as error:
            words = f"no process could be started to decode it: {error}"
            raise ImageUnavailableError(words) from error
        self._running.append(process)
        return process

    def _run_in(
        self,
        process: _Process,
        data: bytes,
        limits: ImageLimits,
        at_least: int | None,
        fits: Sequence[Fit],
    ) -> tuple[tuple[int, int], bytearray]:
        try:
            found = process.run(data, limits, at_least, fits)
        except ImageError:
            self._idle.append(process)
            raise
        except BaseException:  # it is gone, or a job's time is up: half a reply is in the pipe
            self._running.remove(process)
            process.end()
            raise
        self._idle.append(process)
        return found

    def _remember(self, data: bytes, status: int) -> str:
        """Return why the process ended; the image is refused from now on."""
        digest = hashlib.sha256(data)
        reason = f"reading the image ended the reader (status {status})"
        if -status in {signal.SIGALRM, signal.SIGPROF}:
            seconds = f"{self._settings[1]:g} s"
            reason = f"reading the image takes longer than the {seconds} that are allowed"
        elif status < 0:
            reason = f"reading the image crashed the reader ({signal.Signals(-status).name})"
        log.warning("an image ended its decoder digest=%s: %s", digest.hexdigest()[:12], reason)
        self._harmful[digest.digest()] = reason
        while len(self._harmful) > _REMEMBERED:
            self._harmful.popitem(last=False)
        return reason


def _packed(fit: Fit) -> bytes:
    return FIT.pack(fit.resize, fit.crop, Image.Resampling[fit.interpolation.upper()].value)


def _unpacked(data: bytes | bytearray) -> Fit:
    resize, crop, number = FIT.unpack(data)
    return Fit(resize, crop, Image.Resampling(number).name.lower())


def _end_all(processes: list[_Process], owner: int) -> None:
    if owner == os.getpid():  # the exit of a fork must not end its parent's processes
        for process in processes:
            process.end()


def _read(descriptor: int, length: int) -> bytearray:
    """Read this many bytes, fewer only at the end of the stream."""
    data = bytearray(length)
    view, got = memoryview(data), 0
    while got < length:
        if not (count := os.readv(descriptor, [view[got:]])):
            return data[:got]
        got += count
    return data


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


# The process that decodes


def main(decode: Callable[..., Image.Image] = image_decoder.decode) -> None:
    """Decode images for the process that started this one.

    Args:
        decode: stands for `studio.image_decoder.decode`; tests pass one that fails.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent decides when this process ends
        signal.signal(number, signal.SIG_IGN)
    max_pixels, cpu_seconds, seconds = sys.argv[1:]
    Image.MAX_IMAGE_PIXELS = int(max_pixels)  # for a GIF's frames, which may exceed its size
    _confine(int(max_pixels))
    _serve(decode, float(cpu_seconds), float(seconds))


def _confine(max_pixels: int) -> None:
    """Give up what decoding does not need: memory without end, files, a core of private pixels."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    most = pages * resource.getpagesize() + BYTES_PER_PIXEL * max_pixels + (256 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _serve(decode: Callable[..., Image.Image], cpu_seconds: float, seconds: float) -> None:
    """Reply until standard input ends, or an image takes too long: then a signal ends us.

    Args:
        decode: see `main`.
        cpu_seconds: of computing, per image (SIGPROF).
        seconds: per image, however busy the machine is (SIGALRM).
    """
    replies = os.dup(1)
    os.dup2(2, 1)  # a library that prints must not be taken for a reply
    while len(head := _read(0, REQUEST.size)) == REQUEST.size:
        length, max_pixels, at_least, count = REQUEST.unpack(head)
        fits = [_unpacked(_read(0, FIT.size)) for _ in range(count)]
        data, limits = bytes(_read(0, length)), ImageLimits(max_pixels=max_pixels)
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            if fits:
                inputs = image_decoder.planes(data, fits, limits=limits, decode=decode)
                body = b"".join(inputs)
                reply = REPLY.pack(FOUND, len(body) // 3, 1)
            else:
                image = decode(data, limits=limits, at_least=at_least or None)
                reply, body = REPLY.pack(FOUND, *image.size), image.tobytes()
        except ImageError as error:
            body = error.reason.encode()
            reply = REPLY.pack(REFUSED, len(body), 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(replies, reply)
        _write(replies, body)


if __name__ == "__main__":
    main()
