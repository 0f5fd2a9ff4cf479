"""Pictures decoded in processes apart: one that crashes or hangs a reader costs itself only.

Pillow and the libraries under it read what strangers send, in C. `Decoders` stands where
`Here` does and gives the same pictures and the same errors.
"""

import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from PIL import Image

from studio import decoding
from studio.decoder import FIT, FOUND, REPLY, REQUEST
from studio.decoding import Fit
from studio.errors import PictureError
from studio.guard import PictureUnavailableError
from studio.limits import PictureLimits

log = logging.getLogger(__name__)

#: How the process that decodes is started; its settings follow.
COMMAND: Final[list[str]] = [sys.executable, "-m", "studio.decoder"]

#: Seconds of computing for one picture: the dearest that the limits let through take five.
CPU_SECONDS: Final = 20.0
#: Seconds for one picture on a machine however busy.
SECONDS: Final = 60.0

#: Bytes in a pipe: those of most pictures, so that the two processes wait less for each other. What
#: Linux lets anyone have.
PIPE: Final = 1 << 20

#: What glibc is told, so that one picture's memory serves the next. Left to itself it gives it back
#: after each, and the system clears it again page by page: a fifth of the time of a photo.
_KEEP_MEMORY: Final = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # larger pieces are given back still
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),  # and so is what is free beyond this
}

#: Pictures remembered that ended a process, so that they do not do it each time they are met.
_REMEMBERED: Final = 1000
#: Longest reason that is read from a process which may have been taken over.
_LONGEST_REASON: Final = 10_000
_TIMES: Final = frozenset({signal.SIGALRM, signal.SIGPROF})


class Decode(Protocol):
    """What turns files into pictures: `Decoders`, or `Here`."""

    def decode(
        self, data: bytes, *, limits: PictureLimits, at_least: int | None = None
    ) -> Image.Image:
        """See `studio.decoding.decode`."""
        ...

    def planes(
        self, data: bytes, fits: Sequence[Fit], *, limits: PictureLimits
    ) -> Sequence[bytes | bytearray | memoryview]:
        """See `studio.decoding.planes`."""
        ...


class Here:
    """Decodes in this process: for pictures that are trusted."""

    def decode(
        self, data: bytes, *, limits: PictureLimits, at_least: int | None = None
    ) -> Image.Image:
        """See `studio.decoding.decode`."""
        return decoding.decode(data, limits=limits, at_least=at_least)

    def planes(self, data: bytes, fits: Sequence[Fit], *, limits: PictureLimits) -> list[bytes]:
        """See `studio.decoding.planes`."""
        return decoding.planes(data, fits, limits=limits)


#: Width and height, and the pixels.
_Found = tuple[tuple[int, int], bytearray]


class _Ended(Exception):  # noqa: N818 - what happened, no error of ours
    """The process is gone; its exit status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Helper:
    """One process that decodes, for one caller at a time."""

    def __init__(self, max_pixels: int, cpu_seconds: float, seconds: float) -> None:
        limits = (str(max_pixels), str(cpu_seconds), str(seconds))
        self.process = subprocess.Popen(
            [*COMMAND, *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # libtiff and libpng comment on what they read
            bufsize=0,
            env=_environment(),
            pipesize=PIPE,
        )

    def decode(
        self, data: bytes, limits: PictureLimits, at_least: int | None, fits: Sequence[Fit]
    ) -> _Found:
        """A picture's size and pixels; the planes of all squares if ``fits`` are given.

        Raises:
            PictureError: its reason, as the process told it.
            _Ended: the process is gone.
        """
        try:
            self._send(REQUEST.pack(len(data), limits.max_pixels, at_least or 0, len(fits)))
            self._send(b"".join(FIT.pack(one.resize, one.crop, _number(one)) for one in fits))
            self._send(data)
        except BrokenPipeError:
            raise _Ended(self.process.wait()) from None
        kind, first, second = REPLY.unpack(self._receive(REPLY.size))
        squares = sum(fit.crop**2 for fit in fits)
        if kind == FOUND and (
            (first, second) == (squares, 1) if fits else first * second <= limits.max_pixels
        ):
            return (first, second), self._receive(3 * first * second)
        if kind == FOUND or first > _LONGEST_REASON:
            raise _Ended(self.end())  # no answer of ours: whatever wrote it, it goes
        raise PictureError(self._receive(first).decode("utf-8", "replace"))

    def end(self) -> int:
        """Kill it, if it still runs; its exit status."""
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        return self.process.wait()

    def _send(self, data: bytes) -> None:
        assert self.process.stdin is not None  # noqa: S101 - made with a pipe
        descriptor, view = self.process.stdin.fileno(), memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def _receive(self, length: int) -> bytearray:
        assert self.process.stdout is not None  # noqa: S101 - made with a pipe
        data = bytearray(length)
        view, got = memoryview(data), 0
        while got < length:
            if not (count := os.readv(self.process.stdout.fileno(), [view[got:]])):
                raise _Ended(self.process.wait())
            got += count
        return data


def _environment() -> dict[str, str]:
    """Where Python and this package are, and nothing that is secret."""
    root = str(Path(__file__).resolve().parents[1])
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ}
    ours = {"PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1"}
    return {**kept, **ours, **_KEEP_MEMORY}


class Decoders:
    """A few processes that decode, started when first needed. Threads may share it.

    A forked process that uses it starts processes of its own. They end with the process that
    started them, however it ends.
    """

    def __init__(
        self,
        processes: int | None = None,
        *,
        max_pixels: int = PictureLimits.max_pixels,
        cpu_seconds: float = CPU_SECONDS,
        seconds: float = SECONDS,
    ) -> None:
        """Nothing is started yet.

        Args:
            processes: pictures decoded at once, at most; one more than there are cores if not
                given, and no more than 16.
            max_pixels: of the largest image that is asked for: memory for it, and time in
                proportion where it is more than usual.
            cpu_seconds: of computing, for one picture.
            seconds: for one picture, however busy the machine is.
        """
        self._most = processes or min(16, (os.cpu_count() or 1) + 1)
        more = max(1.0, max_pixels / PictureLimits.max_pixels)
        self._max_pixels = max_pixels
        self._times = (more * cpu_seconds, more * seconds)
        self._bad: OrderedDict[bytes, str] = OrderedDict()
        self._begin()

    def decode(
        self, data: bytes, *, limits: PictureLimits, at_least: int | None = None
    ) -> Image.Image:
        """The picture; see `studio.decoding.decode`.

        Raises:
            PictureError: the file is no picture, too large, damaged, or it crashed or hung the
                process that read it.
            ValueError: ``at_least`` is not above zero.
        """
        if at_least is not None and at_least < 1:
            raise ValueError(f"at_least must be above 0, got {at_least}")
        size, pixels = self._apart(data, limits, at_least, ())
        return Image.frombytes("RGB", size, pixels)

    def planes(
        self, data: bytes, fits: Sequence[Fit], *, limits: PictureLimits
    ) -> list[memoryview]:
        """What networks are shown of it; see `studio.decoding.planes`.

        Raises:
            PictureError: see `decode`.
        """
        _, pixels = self._apart(data, limits, None, fits)
        squares, start = [], 0
        for fit in fits:
            end = start + 3 * fit.crop**2
            squares.append(memoryview(pixels)[start:end])
            start = end
        return squares

    def _apart(
        self, data: bytes, limits: PictureLimits, at_least: int | None, fits: Sequence[Fit]
    ) -> _Found:
        if self._bad and (known := self._bad.get(hashlib.sha256(data).digest())) is not None:
            raise PictureError(known)
        if self._owner != os.getpid():
            self._begin()  # after a fork: their pipes are the parent's
        with self._turns:
            try:
                return self._decoded(self._ready(), data, limits, at_least, fits)
            except _Ended as gone:
                if gone.status != -signal.SIGKILL:
                    raise PictureError(self._remember(data, gone.status)) from None
            try:  # whoever killed it may have meant it, or memory: the picture may be innocent
                return self._decoded(self._start(), data, limits, at_least, fits)
            except _Ended as gone:
                raise PictureError(self._remember(data, gone.status)) from None

    def close(self) -> None:
        """End the processes; the next picture starts new ones."""
        self._finish()
        self._begin()

    @property
    def processes(self) -> list[int]:
        """Their process ids."""
        return [helper.process.pid for helper in self._running]

    def _begin(self) -> None:
        self._owner = os.getpid()
        self._turns = threading.BoundedSemaphore(self._most)
        self._idle: list[_Helper] = []
        self._running: list[_Helper] = []
        self._finish = weakref.finalize(self, _end_all, self._running, self._owner)

    def _start(self) -> _Helper:
        try:
            helper = _Helper(self._max_pixels, *self._times)
        except OSError as error:
            words = f"no process could be started to decode it: {error}"
            raise PictureUnavailableError(words) from error
        self._running.append(helper)
        return helper

    def _ready(self) -> _Helper:
        """A process that is idle, or a new one."""
        try:
            return self._idle.pop()
        except IndexError:  # asked for and not looked up: another thread may take the last one
            return self._start()

    def _decoded(
        self,
        helper: _Helper,
        data: bytes,
        limits: PictureLimits,
        at_least: int | None,
        fits: Sequence[Fit],
    ) -> _Found:
        try:
            found = helper.decode(data, limits, at_least, fits)
        except PictureError:
            self._idle.append(helper)
            raise
        except BaseException:  # it is gone, or a job's time is up: half an answer is in the pipe
            self._forget(helper)
            raise
        self._idle.append(helper)
        return found

    def _forget(self, helper: _Helper) -> None:
        self._running.remove(helper)
        helper.end()

    def _remember(self, data: bytes, status: int) -> str:
        """Why the process ended, in words; the picture is refused from now on."""
        digest = hashlib.sha256(data)
        reason = _why(status, self._times)
        log.warning("a picture ended its decoder digest=%s: %s", digest.hexdigest()[:12], reason)
        self._bad[digest.digest()] = reason
        while len(self._bad) > _REMEMBERED:
            self._bad.popitem(last=False)
        return reason


def _number(fit: Fit) -> int:
    return Image.Resampling[fit.interpolation.upper()].value


def _why(status: int, times: Sequence[float]) -> str:
    """For people, of an exit status."""
    if -status in _TIMES:
        return f"reading the picture takes longer than the {times[0]:g} s that are allowed"
    if status < 0:
        return f"reading the picture crashed the reader ({signal.Signals(-status).name})"
    return f"reading the picture ended the reader (status {status})"


def _end_all(helpers: list[_Helper], owner: int) -> None:
    if owner == os.getpid():  # a fork's exit is no business of the parent's processes
        for helper in helpers:
            helper.end()
