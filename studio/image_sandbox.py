"""Image decoding in processes of its own: a file that crashes or hangs one costs itself only.

Pillow and the libraries under it parse files from strangers in C. `SandboxedDecoder` takes the
place of `InProcessDecoder` and returns the same images and the same errors. Its processes run this
module (`python -m studio.image_sandbox`): they have no secrets, open no files and no connections,
and can send pixels only.

A process gets a message per image on standard input and answers with one on standard output: JSON
that says what it is, and bytes. A process ends when its standard input does.
"""

import hashlib
import json
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Final

from PIL import Image

from studio import image_decoder
from studio.errors import ImageError, ImageUnavailableError
from studio.image_decoder import Fit, ImageLimits

log = logging.getLogger(__name__)

#: How a decoding process is started; its settings follow.
COMMAND: Final[list[str]] = [sys.executable, "-m", "studio.image_sandbox"]
#: Seconds of computing per image: the most expensive that the limits let through take five.
CPU_SECONDS: Final = 20.0
#: Seconds per image on a machine however busy.
SECONDS: Final = 60.0
#: Bytes of memory per pixel of the largest image allowed; a float TIFF takes this much.
BYTES_PER_PIXEL: Final = 40
#: Bytes in a pipe: most images fit, so that the two processes wait less for each other. Linux
#: allows anyone this much.
PIPE: Final = 1 << 20
#: Settings of glibc that keep memory for the next image. By default it is given back after each,
#: and the system clears it again page by page: a fifth of the time of a photo.
_KEEP_MEMORY: Final = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # larger pieces are still given back
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),  # and so is what is free beyond this
}
#: Images remembered that ended a process, so that they do not do it each time they are met.
_REMEMBERED: Final = 1000
#: Before each message: the lengths of its JSON and of its bytes.
_LENGTHS: Final = struct.Struct(">QQ")
#: Longest JSON that is read from a process, which may have been taken over.
_LONGEST: Final = 20_000


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
        self._idle: list[subprocess.Popen[bytes]] = []
        self._running: list[subprocess.Popen[bytes]] = []
        self._finish = weakref.finalize(self, _end_all, self._running, self._owner)

    def _run(
        self, data: bytes, limits: ImageLimits, at_least: int | None, fits: Sequence[Fit]
    ) -> tuple[tuple[int, int], bytearray]:
        """Return an image's size and pixels; the inputs of networks where ``fits`` are given."""
        if self._harmful and (reason := self._harmful.get(hashlib.sha256(data).digest())):
            raise ImageError(reason)
        if self._owner != os.getpid():
            self._reset()  # after a fork: the pipes are the parent's
        request = {
            "max_pixels": limits.max_pixels,
            "at_least": at_least,
            "fits": [astuple(fit) for fit in fits],
        }
        with self._slots:
            try:
                process = self._idle.pop()
            except IndexError:  # not looked up before: another thread may take the last one
                process = self._start()
            status = 0
            # Again after SIGKILL, of an operator or for lack of memory: the image may be innocent.
            for again in (False, True):
                try:
                    return self._ask(process, request, data, limits, fits)
                except _ProcessEndedError as ended:
                    status = ended.status
                if again or status != -signal.SIGKILL:
                    break
                process = self._start()
            raise ImageError(self._remember(data, status))

    def _start(self) -> "subprocess.Popen[bytes]":
        root = str(Path(__file__).resolve().parents[1])
        # Where Python and this package are, and no secret.
        environ = {
            name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ
        }
        environ |= {"PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            process = subprocess.Popen(
                [*COMMAND, *map(str, self._settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # libtiff and libpng comment on what they read
                bufsize=0,
                env={**environ, **_KEEP_MEMORY},
                pipesize=PIPE,
            )
        except OSError as error:
            words = f"no process could be started to decode it: {error}"
            raise ImageUnavailableError(words) from error
        self._running.append(process)
        return process

    def _ask(
        self,
        process: "subprocess.Popen[bytes]",
        request: Mapping[str, object],
        data: bytes,
        limits: ImageLimits,
        fits: Sequence[Fit],
    ) -> tuple[tuple[int, int], bytearray]:
        """Have one process decode one image.

        Raises:
            ImageError: with the reason that the process gave.
            _ProcessEndedError: the process is gone.
        """
        inputs = 3 * sum(fit.crop**2 for fit in fits)
        try:
            _send(process.stdin.fileno(), request, data)  # type: ignore[union-attr] # made with pipes
            answer, pixels = _receive(
                process.stdout.fileno(),  # type: ignore[union-attr]
                inputs or 3 * limits.max_pixels,
            )
            reason, size = answer.get("reason"), answer.get("size", (0, 0))
            width, height = map(int, size)
            expected = inputs or (3 * width * height if width > 0 else -1)
            if not isinstance(reason, str) and len(pixels) != expected:
                raise ValueError("not as many pixels as asked for")  # noqa: TRY301 - as other damage
        except (BrokenPipeError, EOFError):  # it is gone
            process.wait()
            raise _ProcessEndedError(self._end(process)) from None
        except (ValueError, TypeError, RecursionError):  # not our answer: whatever wrote it must go
            raise _ProcessEndedError(self._end(process)) from None
        except BaseException:  # a job's time is up: half an answer is in the pipe
            self._end(process)
            raise
        self._idle.append(process)
        if isinstance(reason, str):
            raise ImageError(reason)
        return (width, height), pixels

    def _end(self, process: "subprocess.Popen[bytes]") -> int:
        self._running.remove(process)
        return _end(process)

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


#: Decodes files to images.
ImageDecoder = InProcessDecoder | SandboxedDecoder


class _ProcessEndedError(Exception):
    """A decoding process is gone, with this exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


def _end(process: "subprocess.Popen[bytes]") -> int:
    """Kill the process, if it still runs; return its exit status."""
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    return process.wait()


def _end_all(processes: "list[subprocess.Popen[bytes]]", owner: int) -> None:
    if owner == os.getpid():  # the exit of a fork must not end its parent's processes
        for process in processes:
            _end(process)


# Messages


def _send(descriptor: int, message: Mapping[str, object], data: bytes) -> None:
    words = json.dumps(message).encode()
    for part in (_LENGTHS.pack(len(words), len(data)) + words, data):
        view = memoryview(part)
        while view:
            view = view[os.write(descriptor, view) :]


def _receive(descriptor: int, most: int) -> tuple[dict[str, Any], bytearray]:
    """Return the next message.

    Raises:
        EOFError: the stream ended.
        ValueError: it is no message, or has more bytes than ``most``.
    """
    length, size = _LENGTHS.unpack(_read(descriptor, _LENGTHS.size))
    if length > _LONGEST or size > most:
        raise ValueError("a message is too long")
    message = json.loads(_read(descriptor, length))
    if not isinstance(message, dict):
        raise TypeError("a message is no object")
    return message, _read(descriptor, size)


def _read(descriptor: int, length: int) -> bytearray:
    data = bytearray(length)
    view, got = memoryview(data), 0
    while got < length:
        if not (count := os.readv(descriptor, [view[got:]])):
            raise EOFError
        got += count
    return data


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
    answers = os.dup(1)
    os.dup2(2, 1)  # a library that prints must not be taken for an answer
    while True:
        try:
            request, data = _receive(0, sys.maxsize)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, float(cpu_seconds))  # a signal ends us
        signal.setitimer(signal.ITIMER_REAL, float(seconds))
        answer, body = _answer(decode, request, bytes(data))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(answers, answer, body)


def _confine(max_pixels: int) -> None:
    """Give up what decoding does not need: memory without end, files, a core of private pixels."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    most = pages * resource.getpagesize() + BYTES_PER_PIXEL * max_pixels + (256 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _answer(
    decode: Callable[..., Image.Image], request: Mapping[str, Any], data: bytes
) -> tuple[dict[str, object], bytes]:
    """Return size and pixels of an image, or the inputs of networks, or why there are none."""
    limits = ImageLimits(max_pixels=request["max_pixels"])
    try:
        if fits := [Fit(*fields) for fields in request["fits"]]:
            return {}, b"".join(image_decoder.planes(data, fits, limits=limits, decode=decode))
        image = decode(data, limits=limits, at_least=request["at_least"])
    except ImageError as error:
        return {"reason": error.reason[: _LONGEST // 12]}, b""  # JSON may take 12 bytes for one
    return {"size": image.size}, image.tobytes()


if __name__ == "__main__":
    main()
