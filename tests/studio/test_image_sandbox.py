"""Decoding in processes apart: the same images and reasons, and whatever happens stays there."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from studio import image_sandbox
from studio.errors import ImageError
from studio.image_decoder import Fit, ImageLimits, decode, fitted
from studio.image_sandbox import InProcessDecoder, SandboxedDecoder
from tests.studio.failing_decoder import FAILURES
from tests.studio.test_image_decoder import corners, saved

LIMITS = ImageLimits()
ROOT = Path(__file__).resolve().parents[2]
GOOD = saved(corners(), "PNG")


@pytest.fixture(scope="module")
def decoders() -> Iterator[SandboxedDecoder]:
    made = SandboxedDecoder(2)
    yield made
    made.close()


@pytest.fixture
def ill(monkeypatch: pytest.MonkeyPatch) -> Iterator[SandboxedDecoder]:
    """One process, which some files make ill."""
    command = [sys.executable, "-m", "tests.studio.failing_decoder"]
    monkeypatch.setattr(image_sandbox, "COMMAND", command)
    made = SandboxedDecoder(1, cpu_seconds=0.5, seconds=2)
    yield made
    made.close()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("at_least", [None, 16])
def test_images_are_those_of_decode(
    decoders: SandboxedDecoder, kind: str, at_least: int | None
) -> None:
    data = saved(corners().resize((480, 320)), kind)
    here = decode(data, limits=LIMITS, at_least=at_least)
    there = decoders.decode(data, limits=LIMITS, at_least=at_least)
    assert (there.mode, there.size, there.info) == (here.mode, here.size, {})
    assert (np.asarray(there) == np.asarray(here)).all()


@pytest.mark.parametrize("size", [(480, 320), (60, 900), (224, 224), (5, 4)])
@pytest.mark.parametrize("filter_", ["bicubic", "bilinear", "lanczos", "nearest"])
def test_what_a_network_is_shown_is_that_of_decode(
    decoders: SandboxedDecoder, size: tuple[int, int], filter_: str
) -> None:
    data, fits = saved(corners().resize(size), "PNG"), [Fit(64, 56, filter_), Fit(40, 32, filter_)]
    there = decoders.planes(data, fits, limits=LIMITS)
    assert there == InProcessDecoder().planes(data, fits, limits=LIMITS)
    for planes, fit in zip(there, fits, strict=True):
        whole = np.asarray(fitted(decode(data, limits=LIMITS), fit)).transpose(2, 0, 1)
        assert planes == whole.tobytes()


@pytest.mark.parametrize(
    ("data", "limits"),
    [
        (b"", LIMITS),
        (b"<svg/>", LIMITS),
        (GOOD[:-40], LIMITS),
        (saved(corners(), "JPEG")[:200], LIMITS),
        (GOOD, ImageLimits(max_pixels=100)),
    ],
    ids=["empty", "drawing", "torn PNG", "torn JPEG", "too large"],
)
def test_reasons_are_those_of_decode(
    decoders: SandboxedDecoder, data: bytes, limits: ImageLimits
) -> None:
    with pytest.raises(ImageError) as here:
        decode(data, limits=limits)
    with pytest.raises(ImageError) as there:
        decoders.decode(data, limits=limits)
    assert there.value.reason == here.value.reason


def test_a_size_that_makes_no_sense_is_a_fault_of_the_caller(decoders: SandboxedDecoder) -> None:
    with pytest.raises(ValueError, match="above 0, got 0"):
        decoders.decode(GOOD, limits=LIMITS, at_least=0)


def test_many_threads_share_a_few_processes(decoders: SandboxedDecoder) -> None:
    sizes = [(20 + at, 30) for at in range(60)]
    files = [saved(corners().resize(size), "PNG") for size in sizes]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda file: decoders.decode(file, limits=LIMITS).size, files))
    assert found == sizes
    assert 1 <= len(decoders.processes) <= 2


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("crash", "crashed the reader (SIGSEGV)"),
        ("hang", "takes longer than the 0.5 s that are allowed"),
        ("sleep", "takes longer than"),
        ("leave", "ended the reader (status 3)"),
        ("lie", "crashed the reader (SIGKILL)"),
    ],
)
def test_an_image_that_ends_its_process_is_named_and_the_next_one_is_read(
    ill: SandboxedDecoder, how: str, reason: str
) -> None:
    assert ill.decode(GOOD, limits=LIMITS).size == corners().size
    (before,) = ill.processes
    with pytest.raises(ImageError) as refused:
        ill.decode(FAILURES[how], limits=LIMITS)
    assert reason in refused.value.reason
    assert not alive(before)
    assert ill.decode(GOOD, limits=LIMITS).size == corners().size
    assert ill.processes != [before]


def test_such_an_image_does_it_once(ill: SandboxedDecoder) -> None:
    with pytest.raises(ImageError) as first:
        ill.decode(FAILURES["leave"], limits=LIMITS)
    ill.decode(GOOD, limits=LIMITS)
    (process,) = ill.processes
    with pytest.raises(ImageError) as again:
        ill.decode(FAILURES["leave"], limits=LIMITS)
    assert again.value.reason == first.value.reason
    assert ill.processes == [process]


def test_a_process_that_somebody_kills_costs_no_image(decoders: SandboxedDecoder) -> None:
    """The system does, when memory runs out."""
    decoders.decode(GOOD, limits=LIMITS)
    for process in decoders.processes:
        os.kill(process, signal.SIGKILL)
    assert decoders.decode(GOOD, limits=LIMITS).size == corners().size


def test_memory_has_an_end(ill: SandboxedDecoder) -> None:
    """And the process goes on."""
    ill.decode(GOOD, limits=LIMITS)
    before = ill.processes
    with pytest.raises(ImageError):
        ill.decode(FAILURES["eat"], limits=LIMITS)
    assert ill.decode(GOOD, limits=LIMITS).size == corners().size
    assert len(before) == 1


def test_what_a_library_prints_is_no_answer(ill: SandboxedDecoder) -> None:
    assert ill.decode(FAILURES["chatter"] + b"|" + GOOD, limits=LIMITS).size == corners().size


def test_the_largest_image_that_is_allowed_fits(decoders: SandboxedDecoder) -> None:
    limits = ImageLimits(max_pixels=20_000_000)
    data = saved(corners().convert("L").resize((5000, 4000)), "PNG")
    assert decoders.decode(data, limits=limits).size == (5000, 4000)


def test_it_sees_no_secret_and_writes_no_file(
    decoders: SandboxedDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "hidden-from-readers")
    fresh = SandboxedDecoder(1)
    fresh.decode(GOOD, limits=LIMITS)
    process = Path(f"/proc/{fresh.processes[0]}")
    assert b"hidden-from-readers" not in (process / "environ").read_bytes()
    limits = dict(line.split("  ", 1) for line in (process / "limits").read_text().splitlines()[1:])
    assert limits["Max file size"].split()[0] == limits["Max core file size"].split()[0] == "0"
    assert limits["Max address space"].split()[0] != "unlimited"
    fresh.close()


STARTS_AND_WAITS = """
import os, sys, time
from studio.image_sandbox import SandboxedDecoder
from studio.image_decoder import ImageLimits
decoders = SandboxedDecoder(1)
decoders.decode(sys.stdin.buffer.read(), limits=ImageLimits())
print(decoders.processes[0], flush=True)
time.sleep(60)
"""

FORKS = """
import os, sys
from studio.image_sandbox import SandboxedDecoder
from studio.image_decoder import ImageLimits
data, decoders = sys.stdin.buffer.read(), SandboxedDecoder(1)
decoders.decode(data, limits=ImageLimits())
before = decoders.processes
if (child := os.fork()) == 0:
    decoders.decode(data, limits=ImageLimits())
    os._exit(int(decoders.processes == before))
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
decoders.decode(data, limits=ImageLimits())
print(status, decoders.processes == before)
"""


INTERRUPTED = f"""
import os, signal, sys, threading
from studio import image_sandbox
from studio.image_decoder import ImageLimits
image_sandbox.COMMAND[1:] = ["-m", "tests.studio.failing_decoder"]
data, decoders = sys.stdin.buffer.read(), image_sandbox.SandboxedDecoder(1)
decoders.decode(data, limits=ImageLimits())
(before,) = decoders.processes
def interrupt(*_):
    raise TimeoutError("the job's time is up")
signal.signal(signal.SIGUSR1, interrupt)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)).start()
try:
    decoders.decode({FAILURES["sleep"]!r}, limits=ImageLimits())
except TimeoutError:
    print("interrupted")
print("alive" if os.path.exists(f"/proc/{{before}}") else "gone")
print(decoders.decode(data, limits=ImageLimits()).size)
"""


def started(script: str) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(GOOD)
    process.stdin.close()
    return process


def test_it_ends_with_whoever_started_it_however_that_ends() -> None:
    process = started(STARTS_AND_WAITS)
    with process:
        assert process.stdout is not None
        helper = int(process.stdout.readline())
        assert alive(helper)
        process.send_signal(signal.SIGKILL)
        until(lambda: not alive(helper))


def test_a_fork_has_processes_of_its_own_and_leaves_its_parent_s_alone() -> None:
    with started(FORKS) as process:
        assert process.stdout is not None
        assert process.stdout.read().split() == [b"0", b"True"]


def alive(pid: int) -> bool:
    """Not gone, and not only waiting to be noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(happened: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_an_interrupted_caller_leaves_nothing_of_its_answer_behind() -> None:
    """A job's time limit is raised into whatever runs.

    In a process of its own: signals in the middle of a long run of tests have crashed Python 3.11.
    """
    with started(INTERRUPTED) as process:
        assert process.stdout is not None
        assert process.stdout.read().split() == [b"interrupted", b"gone", b"(48,", b"32)"]


def test_what_a_network_is_shown_may_be_larger_than_the_image(decoders: SandboxedDecoder) -> None:
    few = ImageLimits(max_pixels=40_000)
    data, fit = saved(corners().resize((100, 80)), "PNG"), Fit(256, 224, "bicubic")
    before = decoders.processes
    assert decoders.planes(data, [fit], limits=few) == InProcessDecoder().planes(
        data, [fit], limits=few
    )
    assert decoders.processes[: len(before)] == before


@pytest.mark.parametrize("lie", [{"size": [56, 55]}, {"size": [-3, -1]}, {"size": "x"}, [1]])
def test_a_process_whose_answer_is_none_goes(
    lie: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "liar.py"
    script.write_text(
        "import sys\nfrom studio import image_sandbox\n"
        f"image_sandbox._answer = lambda *_: ({lie!r}, bytes(9))\nimage_sandbox.main()\n"
    )
    monkeypatch.setattr(image_sandbox, "COMMAND", [sys.executable, str(script)])
    decoders = SandboxedDecoder(1)
    with pytest.raises(ImageError, match="SIGKILL"):
        decoders.decode(GOOD, limits=LIMITS)
    assert decoders.processes == []
